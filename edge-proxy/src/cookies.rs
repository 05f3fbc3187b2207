//! The cookies of browsers: ours go in and out of the few methods whose policy says so, and over REST only.
//!
//! A browser sends cookies whoever wrote the page that makes it call, so a call with one of ours must come
//! from a page that we trust: from an allowed origin, or from our own.

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts};

use crate::{Client, rescue::Refusal};

/// The names of our cookies start so. Browsers take `__Host-` from this very host over TLS only.
const PREFIX: &str = "__Host-tollgate-";

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Our cookies in a request, as one header; `None` when there are none. 403 when a page has sent them that
/// we do not trust.
pub(crate) fn incoming(
    parts: &Parts,
    client: &Client,
    allowed: &[String],
) -> Result<Option<HeaderValue>, Refusal> {
    let Some(ours) = ours(&parts.headers) else { return Ok(None) };
    if trusts(&parts.headers, &parts.uri, client.secure, allowed) {
        return Ok(Some(ours));
    }
    Err(Refusal::http(
        StatusCode::FORBIDDEN,
        "CROSS_SITE",
        "cookies count only with an `Origin` that is ours or allowed",
    ))
}

fn ours(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs: Vec<&str> = lines
        .flat_map(|line| line.split(';'))
        .map(str::trim)
        .filter(|pair| pair.starts_with(PREFIX))
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let mut value = HeaderValue::try_from(pairs.join("; ")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether the page that makes a request is one of ours, or of an allowed origin.
pub(crate) fn is_trusted<B>(request: &http::Request<B>, secure: bool, allowed: &[String]) -> bool {
    trusts(request.headers(), request.uri(), secure, allowed)
}

fn trusts(headers: &HeaderMap, uri: &Uri, secure: bool, allowed: &[String]) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(Ok(origin)), None) = (origins.next().map(HeaderValue::to_str), origins.next()) else {
        return false;
    };
    if allowed.iter().any(|known| known == origin) {
        return true;
    }
    let cross_site = headers.get_all(SEC_FETCH_SITE).iter().any(|site| site == "cross-site");
    !cross_site && is_own(headers, uri, secure, origin)
}

/// Whether an origin is the one that the request itself went to.
fn is_own(headers: &HeaderMap, uri: &Uri, secure: bool, origin: &str) -> bool {
    let host = || headers.get(header::HOST)?.to_str().ok();
    let authority = uri.authority().map(http::uri::Authority::as_str).or_else(host);
    let (scheme, port) = if secure { ("https://", ":443") } else { ("http://", ":80") };
    authority
        .zip(origin.strip_prefix(scheme))
        .is_some_and(|(ours, theirs)| ours.strip_suffix(port).unwrap_or(ours).eq_ignore_ascii_case(theirs))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Request, header, request::Parts};

    use super::{ours, trusts};

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request =
            headers.iter().fold(Request::post(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn trusted(uri: &str, headers: &[(&str, &str)]) -> bool {
        let parts = parts(uri, headers);
        trusts(&parts.headers, &parts.uri, true, &["https://app.example.com".to_owned()])
    }

    #[test]
    fn only_ours_are_passed_on() {
        let mut headers = HeaderMap::new();
        assert_eq!(ours(&headers), None);
        headers.append(header::COOKIE, "a=b; tollgate=1; __host-tollgate-x=1".parse().unwrap());
        assert_eq!(ours(&headers), None);
        headers.append(header::COOKIE, "x=1;__Host-tollgate-refresh=r=1 ; y=2".parse().unwrap());
        headers.append(header::COOKIE, "__Host-tollgate-device=d".parse().unwrap());
        let found = ours(&headers).unwrap();
        assert_eq!(found, "__Host-tollgate-refresh=r=1; __Host-tollgate-device=d");
        assert!(!format!("{found:?}").contains("refresh"), "it does not print");
    }

    #[test]
    fn pages_that_are_ours_or_allowed_are_trusted() {
        for (uri, headers) in [
            ("https://edge.example.com/x", &[("origin", "https://edge.example.com")][..]),
            ("https://edge.example.com:443/x", &[("origin", "https://edge.example.com")]),
            ("https://EDGE.example.com:8443/x", &[("origin", "https://edge.example.com:8443")]),
            ("/x", &[("origin", "https://[::1]:8443"), ("host", "[::1]:8443")]),
            ("/x", &[("origin", "https://edge"), ("host", "edge"), ("sec-fetch-site", "same-origin")]),
            ("/x", &[("origin", "https://app.example.com"), ("host", "edge")]),
            (
                "/x",
                &[("origin", "https://app.example.com"), ("host", "edge"), ("sec-fetch-site", "cross-site")],
            ),
        ] {
            assert!(trusted(uri, headers), "{uri} {headers:?}");
        }
        let plain = parts("/x", &[("origin", "http://edge"), ("host", "edge:80")]);
        let by = |secure| trusts(&plain.headers, &plain.uri, secure, &[]);
        assert!(by(false) && !by(true));
    }

    #[test]
    fn all_others_are_not() {
        for origin in [
            "",
            "null",
            "https://evil.example",
            "https://app.example.com.evil.example",
            "https://evil-app.example.com",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://APP.example.com",
            "https://edge.example.com.evil.example",
            "http://edge.example.com",
            "https://edge.example.com:8443",
            "https://edge.example.com/",
            "edge.example.com",
        ] {
            assert!(!trusted("https://edge.example.com/x", &[("origin", origin)]), "{origin}");
        }
        let own = ("origin", "https://edge.example.com");
        assert!(!trusted("https://edge.example.com/x", &[]));
        assert!(!trusted("https://edge.example.com/x", &[own, own]), "two origins are none");
        assert!(!trusted("https://edge.example.com/x", &[own, ("sec-fetch-site", "cross-site")]));
    }
}
