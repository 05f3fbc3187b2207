//! A batch as `multipart/mixed` of `application/http` (RFC 2046, RFC 9112 §10.2): each part is a request with
//! `Content-ID`, and `Depends-On` where it depends on others; each part of the answer is a response with the same
//! `Content-ID`.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use service_kit::{Error, opaque};

use super::{
    MAX_CALLS, malformed,
    plan::{Call, Content},
    whole,
};
use crate::{layers::Response, rescue::Refusal, subcall::Reply};

/// The most headers of a part, and of the request in it.
const MAX_HEADERS: usize = 32;

/// The boundary that a `Content-Type` names.
pub(super) fn boundary(content_type: &str) -> Result<String, Refusal> {
    let named = content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    let fits = |text: &String| {
        (1..=70).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    };
    named.filter(fits).ok_or_else(|| broken("`multipart/mixed` needs a boundary of 1 to 70 characters"))
}

fn broken(message: impl Into<String>) -> Refusal {
    malformed("MALFORMED_BODY", message)
}

/// Reads a batch.
pub(super) fn read(body: &Bytes, boundary: &str) -> Result<Vec<Call>, Refusal> {
    let mut calls = Vec::new();
    for part in parts(body, boundary)? {
        // One more than there may be is enough to be refused.
        if calls.len() > MAX_CALLS {
            break;
        }
        let number = calls.len();
        calls.push(call(&part, number).map_err(|what| broken(format!("part {number}: {what}")))?);
    }
    Ok(calls)
}

/// The parts between the boundaries.
fn parts(body: &Bytes, boundary: &str) -> Result<Vec<Bytes>, Refusal> {
    let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
    let first = delimiter.get(2..).unwrap_or_default();
    let mut at = if body.starts_with(first) {
        first.len()
    } else {
        find(body, &delimiter)
            .map(|at| at + delimiter.len())
            .ok_or_else(|| broken("the boundary is not there"))?
    };
    let mut parts = Vec::new();
    loop {
        let rest = body.slice(at..);
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        let line =
            find(&rest, b"\r\n").filter(|end| rest[..*end].iter().all(|byte| matches!(byte, b' ' | b'\t')));
        let start = line.ok_or_else(|| broken("a boundary is followed by something"))? + 2;
        // A part may be empty: then its end begins with the line break that ended the boundary.
        let end =
            find(&rest[start - 2..], &delimiter).ok_or_else(|| broken("the last boundary is missing"))?;
        parts.push(rest.slice(start..(start - 2 + end).max(start)));
        at += start - 2 + end + delimiter.len();
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// The call in a part.
fn call(part: &Bytes, number: usize) -> Result<Call, String> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let (start, headers) = match httparse::parse_headers(part, &mut room) {
        Ok(httparse::Status::Complete((start, headers))) => (start, headers),
        Ok(httparse::Status::Partial) => return Err("its headers have no end".into()),
        Err(error) => return Err(format!("its headers cannot be read: {error}")),
    };
    let header = |name: &str| {
        let line = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        line.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    let content_type = header("content-type").unwrap_or_default().to_ascii_lowercase();
    if content_type.split(';').next().map(str::trim) != Some("application/http") {
        return Err("must be `application/http`".into());
    }
    let id = header("content-id").map(|id| id.trim_matches(['<', '>']).to_owned());
    let depends_on = header("depends-on").unwrap_or_default();
    let depends_on = depends_on.split(',').map(|id| id.trim().trim_matches(['<', '>']).to_owned());
    let depends_on = depends_on.filter(|id| !id.is_empty()).collect();
    request(&part.slice(start..), id.unwrap_or_else(|| number.to_string()), depends_on)
}

fn request(text: &Bytes, id: String, depends_on: Vec<String>) -> Result<Call, String> {
    // What leads to an answer is written with braces, which no target of a request may have: it is read by hand.
    let end = find(text, b"\r\n").ok_or("its request has no end")?;
    let line = std::str::from_utf8(&text[..end]).map_err(|_| "its request line is no text")?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, path, "HTTP/1.1"] = words[..] else {
        return Err("its first line must be `METHOD /path HTTP/1.1`".into());
    };
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let rest = text.slice(end + 2..);
    let (start, headers) = match httparse::parse_headers(&rest, &mut room) {
        Ok(httparse::Status::Complete((start, headers))) => (start, headers),
        // A request without headers and body may end with its first line.
        Ok(httparse::Status::Partial) if rest.is_empty() => (0, &[][..]),
        Ok(httparse::Status::Partial) => return Err("the headers of its request have no end".into()),
        Err(error) => return Err(format!("the headers of its request cannot be read: {error}")),
    };
    let headers: Vec<(String, String)> = headers
        .iter()
        .filter(|header| !header.name.eq_ignore_ascii_case("content-length"))
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let body = rest.slice(start..);
    let is_json = headers.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("content-type") && value.to_ascii_lowercase().contains("json")
    });
    // Only what refers to others is touched; all else passes byte by byte.
    let content = match () {
        () if body.is_empty() => Content::Nothing,
        () if is_json && !depends_on.is_empty() => match serde_json::from_slice(&body) {
            Ok(value) => Content::Json(value),
            Err(_) => Content::Bytes(body),
        },
        () => Content::Bytes(body),
    };
    Ok(Call { id, method: method.to_owned(), path: path.to_owned(), headers, body: content, depends_on })
}

/// Writes the answers.
pub(super) fn write(ids: &[String], replies: &[Reply]) -> Result<Response, Refusal> {
    // Nobody can guess it, so no answer can hold it.
    let boundary: String = opaque::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut text = BytesMut::new();
    for (id, reply) in ids.iter().zip(replies) {
        let reason = reply.status.canonical_reason().unwrap_or_default();
        let head = format!(
            "--{boundary}\r\ncontent-type: application/http\r\ncontent-id: <{id}>\r\n\r\nHTTP/1.1 {} {reason}\r\n",
            reply.status.as_u16()
        );
        text.extend_from_slice(head.as_bytes());
        for (name, value) in reply.headers.iter().filter(|(name, _)| **name != header::SET_COOKIE) {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                text.extend_from_slice(piece);
            }
        }
        for piece in [b"\r\n", &reply.body[..], b"\r\n"] {
            text.extend_from_slice(piece);
        }
    }
    text.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let content_type = HeaderValue::try_from(format!("multipart/mixed; boundary={boundary}"));
    Ok(whole(text.freeze(), content_type.map_err(Error::internal)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{boundary, parts, read};

    #[test]
    fn parts_are_what_stands_between_boundaries() {
        let split = |text: &'static str| {
            let parts = parts(&Bytes::from_static(text.as_bytes()), "b").ok()?;
            Some(parts.into_iter().map(|part| String::from_utf8(part.to_vec()).unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(
            split("--b\r\nx\r\n--b \r\n\r\ny\r\n\r\n--b--"),
            Some(vec!["x".into(), "\r\ny\r\n".into()])
        );
        assert_eq!(split("before\r\n--b\r\n\r\n--b--after"), Some(vec![String::new()]));
        assert_eq!(split("--b--"), Some(vec![]));
        for broken in ["", "x", "--b", "--b\r\nx", "--bx\r\n--b--", "--b\r\nx\n--b--"] {
            assert_eq!(split(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_boundary_is_named_in_some_way() {
        for good in ["multipart/mixed; boundary=b", "multipart/mixed;x=y; Boundary=\"b\""] {
            assert_eq!(boundary(good).unwrap(), "b");
        }
        for bad in ["multipart/mixed", "multipart/mixed; boundary=", "multipart/mixed; boundary=\u{e9}"] {
            assert!(boundary(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Whatever comes, it is read or refused.
        #[test]
        fn nothing_is_too_strange(text in "(--b(--)?|\r\n|content-type: application/http|GET /x HTTP/1.1|[a-z: {}]){0,30}") {
            let _ = read(&Bytes::from(text), "b");
        }
    }
}
