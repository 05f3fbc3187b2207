//! Entity tags (RFC 9110 §8.8.3): by the hash of a representation, so that all edges and all restarts agree.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};

/// How many bytes of the hash make a tag.
const BYTES: usize = 16;

/// The strong tag of a representation.
pub(super) fn strong(content_type: &HeaderValue, body: &[u8]) -> HeaderValue {
    let hash = Sha256::new().chain_update(content_type).chain_update([0]).chain_update(body).finalize();
    let text = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash[..BYTES]));
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Makes the tag of an answer weak: its bytes are no longer those that the tag is of.
pub(crate) fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get_mut(header::ETAG) else { return };
    if !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        *tag = weak;
    }
}

/// The tag in `If-None-Match` that is the one of a representation, by weak comparison, as the client wrote it: a
/// compressed copy keeps its weak tag. `*` matches whatever there is.
pub(super) fn matching(headers: &HeaderMap, tag: &HeaderValue) -> Option<HeaderValue> {
    let opaque = tag.as_bytes();
    for line in headers.get_all(header::IF_NONE_MATCH) {
        let line = line.as_bytes();
        if line.trim_ascii() == b"*" {
            return Some(tag.clone());
        }
        for listed in list(line) {
            if listed.strip_prefix(b"W/").unwrap_or(listed) == opaque {
                return HeaderValue::from_bytes(listed).ok();
            }
        }
    }
    None
}

/// The tags of a list: a comma may stand inside of one.
fn list(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{matching, strong, weaken};

    #[test]
    fn equal_bytes_have_equal_tags_and_no_others_do() {
        let (json, yaml) = (HeaderValue::from_static("application/json"), HeaderValue::from_static("x/yaml"));
        assert_eq!(strong(&json, b"{}"), strong(&json, b"{}"));
        assert_ne!(strong(&json, b"{}"), strong(&json, b"{} "));
        assert_ne!(strong(&json, b"{}"), strong(&yaml, b"{}"));
        assert_eq!(strong(&json, b"").len(), 24);
    }

    #[test]
    fn tags_are_found_in_lists_weak_or_strong() {
        let tag = HeaderValue::from_static("\"a,b\"");
        let found = |line: &'static str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(line))]);
            matching(&headers, &tag).map(|found| found.to_str().unwrap().to_owned())
        };
        assert_eq!(found("\"a,b\"").as_deref(), Some("\"a,b\""));
        assert_eq!(found(" \"x\" ,W/\"a,b\"").as_deref(), Some("W/\"a,b\""));
        assert_eq!(found(" * ").as_deref(), Some("\"a,b\""));
        for other in ["", "\"a\"", "a,b", "\"a\",\"b\"", "w/\"a,b\"", "\"*\"", "\"a,b"] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_tag_is_weakened_once() {
        let mut headers = HeaderMap::new();
        weaken(&mut headers);
        assert!(headers.is_empty());
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        weaken(&mut headers);
        weaken(&mut headers);
        assert_eq!(headers[header::ETAG], "W/\"a\"");
    }
}
