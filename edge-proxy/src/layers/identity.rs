//! Removes what only somebody in front of the edge, or the edge itself, may say about a caller.

use http::{HeaderMap, HeaderName};
use service_kit::client_info;

const PREFIXES: &[&str] =
    &["x-forwarded-", "x-user-", "x-org-", "x-internal-", "grpc-internal-", client_info::PREFIX];
const NAMES: &[&str] = &["forwarded", "x-real-ip", "true-client-ip", "grpc-tags-bin", "grpc-trace-bin"];

/// Removes it from the headers of a request.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let forged: Vec<HeaderName> = headers.keys().filter(|name| is_forged(name.as_str())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Names with `_` would be read as `-` by some: two names for one header are a way around a check.
fn is_forged(name: &str) -> bool {
    // What begins otherwise is on no list.
    let may_be = matches!(name.as_bytes().first(), Some(b'x' | b'f' | b't' | b'g'));
    name.as_bytes().contains(&b'_') || may_be && is_listed(name)
}

fn is_listed(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    #[test]
    fn nothing_on_the_lists_begins_otherwise() {
        assert!(super::NAMES.iter().chain(super::PREFIXES).all(|name| super::is_forged(name)));
    }

    #[test]
    fn identity_is_stripped_and_the_rest_stays() {
        let gone = [
            "x-forwarded-for",
            "x-forwarded-host",
            "x-real-ip",
            "forwarded",
            "x-user-id",
            "x-org-id",
            "x-internal-token",
            "x_request_id",
            "true-client-ip",
            "tollgate-client-address",
            "tollgate-client-anything",
            "tollgate_client_address",
            "grpc-trace-bin",
        ];
        let kept = ["authorization", "api-key", "content-type", "traceparent", "x-request-id", "accept"];
        let mut headers = HeaderMap::new();
        for name in gone.iter().chain(&kept) {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        super::strip(&mut headers);
        assert_eq!(headers.keys_len(), kept.len());
        assert!(kept.iter().all(|name| headers.contains_key(*name)), "{headers:?}");
    }
}
