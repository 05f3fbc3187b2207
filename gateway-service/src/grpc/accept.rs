//! What form of an answer a gateway asks for in `Accept` (RFC 9110, section 12.5.1).

use service_kit::{Error, Kind, Result, client_info::ACCEPT};
use tonic::metadata::MetadataMap;

/// The first of `forms` that is asked for most; each has one or more media types. INVALID_ARGUMENT `NOT_ACCEPTABLE`
/// when the caller wants none of them.
pub(super) fn choose<F: Copy>(metadata: &MetadataMap, forms: &[(F, &[&str])]) -> Result<F> {
    let asked = metadata.get(ACCEPT.as_str()).map_or(Ok("*/*"), |value| value.to_str()).unwrap_or_default();
    let asked = if asked.trim().is_empty() { "*/*" } else { asked };
    let mut best: Option<(F, u16)> = None;
    for (form, types) in forms {
        let quality = types.iter().map(|media_type| quality(asked, media_type)).max().unwrap_or_default();
        if quality > best.map_or(0, |(_, quality)| quality) {
            best = Some((*form, quality));
        }
    }
    best.map(|(form, _)| form).ok_or_else(|| {
        let types: Vec<&str> = forms.iter().flat_map(|(_, types)| types.iter().copied()).collect();
        let message = format!("`Accept` allows none of the forms that there are: {}", types.join(", "));
        Error::new(Kind::InvalidArgument, "NOT_ACCEPTABLE", message)
    })
}

/// How much a type is wanted, 0 to 1,000: what names it most exactly decides.
fn quality(asked: &str, media_type: &str) -> u16 {
    let family = media_type.split('/').next().unwrap_or_default();
    let mut found: Option<(u8, u16)> = None;
    for range in asked.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let exactness = match name.split_once('/') {
            _ if name.eq_ignore_ascii_case(media_type) => 2,
            Some((range, "*")) if range.eq_ignore_ascii_case(family) => 1,
            Some(("*", "*")) => 0,
            _ => continue,
        };
        let weight = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(1.0, |(_, value)| value.trim().parse::<f32>().unwrap_or(0.0));
        // Between 0 and 1,000: nothing is cut off.
        let weight = (weight.clamp(0.0, 1.0) * 1_000.0) as u16;
        if found.is_none_or(|(known, _)| exactness > known) {
            found = Some((exactness, weight));
        }
    }
    found.map_or(0, |(_, weight)| weight)
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::choose;

    const FORMS: &[(char, &[&str])] =
        &[('z', &["application/zip"]), ('y', &["application/yaml", "application/x-yaml", "text/yaml"])];

    fn chosen(accept: Option<&str>) -> Option<char> {
        let mut metadata = MetadataMap::new();
        if let Some(accept) = accept {
            metadata.insert("tollgate-client-accept", accept.parse().unwrap());
        }
        choose(&metadata, FORMS).ok()
    }

    #[test]
    fn the_most_wanted_form_is_chosen() {
        for zip in [
            None,
            Some(""),
            Some("*/*"),
            Some("application/*"),
            Some("application/zip"),
            Some("Application/ZIP"),
            Some("text/html, application/zip;q=0.5, application/yaml;q=0.4"),
            Some("application/yaml;q=0, */*"),
            Some("application/zip, application/yaml"),
        ] {
            assert_eq!(chosen(zip), Some('z'), "{zip:?}");
        }
        for yaml in [
            "application/yaml",
            "text/yaml",
            "application/x-yaml; charset=utf-8",
            "text/*",
            "application/zip;q=0.1, application/yaml",
            "application/zip;q=0, */*;q=0.1",
        ] {
            assert_eq!(chosen(Some(yaml)), Some('y'), "{yaml}");
        }
        for none in ["application/json", "text/html", "zip", "*/*;q=0", "application/zip;q=x", "*", "image/*"]
        {
            assert_eq!(chosen(Some(none)), None, "{none}");
        }
        let error = choose(&metadata("image/png"), FORMS).unwrap_err();
        assert!(error.reason() == "NOT_ACCEPTABLE" && error.message().contains("text/yaml"), "{error}");
    }

    fn metadata(accept: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("tollgate-client-accept", accept.parse().unwrap());
        metadata
    }
}
