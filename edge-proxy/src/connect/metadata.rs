//! Headers that travel between Connect and gRPC: the caller's and the service's own, none of either protocol's.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use service_kit::{Error, Kind};

use super::TIMEOUT;
use crate::grpc::timeout_value;

/// What belongs to HTTP or to a protocol and is no metadata.
const RESERVED: [HeaderName; 13] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::TE,
    header::DATE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    HeaderName::from_static("keep-alive"),
];

fn is_reserved(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("grpc-") || text.starts_with("connect-") || RESERVED.contains(name)
}

/// The headers of the gRPC call; its deadline is among them. `Connection` stays until what it names is gone too,
/// which is the same for all calls.
pub(super) fn of_request(mut headers: HeaderMap) -> Result<HeaderMap, Error> {
    let timeout = timeout(&headers)?;
    let is_ours = |name: &&HeaderName| is_reserved(name) && **name != header::CONNECTION;
    for name in headers.keys().filter(is_ours).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.extend(timeout.map(|limit| (HeaderName::from_static("grpc-timeout"), timeout_value(limit))));
    Ok(headers)
}

/// What a service sends before its first message.
pub(super) fn of_answer(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let own = headers.iter().filter(|(name, _)| !is_reserved(name));
    own.map(|(name, value)| (name.clone(), value.clone()))
}

/// What a service sends after its last message, without the status.
pub(crate) fn of_trailers(trailers: &HeaderMap) -> HeaderMap {
    of_answer(trailers).collect()
}

/// Trailers of a unary call, which are headers of Connect.
pub(super) fn prefixed(trailers: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    of_answer(trailers).filter_map(|(name, value)| Some((format!("trailer-{name}").parse().ok()?, value)))
}

/// `connect-timeout-ms`: at most ten digits.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let digits = value.to_str().unwrap_or_default();
    let plain = (1..=10).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(ms) if plain => Ok(Some(Duration::from_millis(ms))),
        _ => {
            let message = "`connect-timeout-ms` must be milliseconds in at most ten digits";
            Err(Error::new(Kind::InvalidArgument, "INVALID_TIMEOUT", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{of_answer, of_request, prefixed};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_metadata_travels() {
        let read = of_request(headers(&[
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("connect-protocol-version", "1"),
            ("connect-accept-encoding", "gzip"),
            ("grpc-timeout", "1S"),
            ("grpc-encoding", "gzip"),
            ("grpc-accept-encoding", "gzip"),
            ("connect-timeout-ms", "1500"),
            ("x-a", "1"),
            ("x-b-bin", "AAEC"),
        ]));
        let expected = headers(&[
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", "1500m"),
            ("x-a", "1"),
            ("x-b-bin", "AAEC"),
        ]);
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn trailers_become_headers() {
        let trailers = headers(&[("grpc-status", "0"), ("x-a", "1"), ("set-cookie", "a=b")]);
        assert_eq!(prefixed(&trailers).collect::<HeaderMap>(), headers(&[("trailer-x-a", "1")]));
        assert_eq!(of_answer(&trailers).collect::<HeaderMap>(), headers(&[("x-a", "1")]));
    }

    #[test]
    fn a_timeout_has_at_most_ten_digits() {
        for (text, expected) in [("0", "1u"), ("1", "1m"), ("9999999999", "9999999S"), ("0000000001", "1m")] {
            let read = of_request(headers(&[("connect-timeout-ms", text)])).unwrap();
            assert_eq!(read.get("grpc-timeout").unwrap(), expected, "{text}");
        }
        for bad in ["", "-1", "+1", "1.5", "10s", "00000000001", "x"] {
            assert!(of_request(headers(&[("connect-timeout-ms", bad)])).is_err(), "{bad}");
        }
    }
}
