//! Compresses answers (gzip, br, zstd) where the client takes it, by its weights. gRPC and streams have
//! compressions of their own.
//!
//! An answer that mixes a secret with what an attacker chose tells the secret by its length (BREACH). So nothing
//! is compressed that a browser asks for by a cookie, and no answer that brings a credential: see [`Secret`]. All
//! other calls need a token that no other page has.

use std::convert::Infallible;

use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Version, header};
use proto::{MethodPolicy, policy::RateClass};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::compression::CompressionLayer;

use super::Response;
use crate::{Body, cache::weaken, codings::Coding, routes::Protocol};

/// Below this size a packet is a packet, compressed or not.
const MIN_BYTES: u64 = 1_024;

/// What gains by it. Archives and the like are compressed already.
const TYPES: [&str; 5] =
    ["application/json", "application/proto", "application/yaml", "application/jwk-set+json", "text/"];

/// An answer that is never compressed; in its extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secret;

impl Secret {
    /// Marks the answer of a method that goes by cookies, or that brings credentials.
    pub(crate) fn mark(policy: &MethodPolicy, response: &mut Response) {
        let brings = [RateClass::Credential, RateClass::SignUp, RateClass::Refresh];
        if policy.cookies || brings.contains(&policy.rate_class) {
            response.extensions_mut().insert(Self);
        }
    }
}

/// What a client takes.
pub(crate) enum Wish {
    /// A protocol with compressions of its own.
    Never,
    /// Answers as they are.
    Plain,
    /// One of these.
    Codings(Box<http::Request<()>>),
}

impl Wish {
    pub(crate) fn of(protocol: Protocol, headers: &HeaderMap) -> Self {
        if !matches!(protocol, Protocol::Rest | Protocol::Connect) {
            return Self::Never;
        }
        if !takes_any(headers) {
            return Self::Plain;
        }
        let mut request = Box::new(http::Request::new(()));
        for line in headers.get_all(header::ACCEPT_ENCODING) {
            request.headers_mut().append(header::ACCEPT_ENCODING, line.clone());
        }
        Self::Codings(request)
    }

    /// The answer in the form that the client likes best, if that is worth it.
    pub(crate) async fn fulfil(self, mut response: Response) -> Response {
        if matches!(self, Self::Never) {
            return response;
        }
        let (status, version) = (response.status(), response.version());
        if !worthwhile(status, version, response.headers(), response.extensions()) {
            return response;
        }
        let Self::Codings(request) = self else {
            response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
            return response;
        };
        let mut answer = Some(response);
        let answered = service_fn(move |_: http::Request<()>| {
            std::future::ready(Ok::<_, Infallible>(answer.take().unwrap_or_default()))
        });
        let rules = CompressionLayer::new().compress_when(worthwhile as Predicate);
        let compressed = Box::pin(rules.layer(answered).oneshot(*request)).await;
        weakened(compressed.unwrap_or_else(|never| match never {}).map(Body::new))
    }
}

/// Who takes none of the codings gets the answer as it is: a refusal would come after the deed.
fn takes_any(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter();
    lines.filter_map(|line| line.to_str().ok()).any(|line| Coding::first_of(line).is_some())
}

/// Other bytes are another representation: what a strong tag names is not this (RFC 9110 §8.8.1).
fn weakened(mut response: Response) -> Response {
    if response.headers().contains_key(header::CONTENT_ENCODING) {
        weaken(response.headers_mut());
    }
    response
}

type Predicate = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

fn worthwhile(_: StatusCode, _: Version, headers: &HeaderMap, extensions: &Extensions) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = text(header::CONTENT_TYPE);
    TYPES.iter().any(|known| content_type.starts_with(known))
        && text(header::CONTENT_LENGTH).parse::<u64>().is_ok_and(|bytes| bytes >= MIN_BYTES)
        && extensions.get::<Secret>().is_none()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header};

    use super::{Response, takes_any, weakened};
    use crate::Body;

    #[test]
    fn a_strong_tag_of_other_bytes_becomes_weak() {
        for (coding, tag, expected) in
            [("gzip", "\"a\"", "W/\"a\""), ("gzip", "W/\"a\"", "W/\"a\""), ("", "\"a\"", "\"a\"")]
        {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert(header::ETAG, tag.parse().unwrap());
            if !coding.is_empty() {
                response.headers_mut().insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            }
            assert_eq!(weakened(response).headers()[header::ETAG], expected);
        }
    }

    #[test]
    fn who_takes_none_is_told_from_who_takes_one() {
        for (list, expected) in
            [("", false), ("identity;q=0", false), ("*;q=0", false), ("gzip;q=0, br", true), ("zstd", true)]
        {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, list.parse().unwrap())]);
            assert_eq!(takes_any(&headers), expected, "{list}");
        }
    }
}
