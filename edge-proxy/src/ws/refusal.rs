//! Answers to connection attempts that fail, with the bodies of the link's contract.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use crate::{Body, layers::Response, rate::Denied};

/// When to try again if nobody knows better, in seconds.
const RETRY_SECONDS: u64 = 5;

/// The body, its members in the order of the contract.
#[derive(Serialize)]
struct Text<'a> {
    status: &'static str,
    code: &'a str,
    message: &'a str,
}

/// Why a connection attempt fails.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An upgrade that breaks RFC 6455: 400.
    BadHandshake(&'static str),
    /// Not an upgrade to WebSocket at all, or to another version of it: 426.
    UpgradeRequired,
    /// No token, or one that is proven bad: 401, on which controllers end.
    Unauthorized,
    /// Too many attempts from this address: 429.
    TooManyRequests(Option<Duration>),
    /// Anything else: 503, on which controllers try again.
    Unavailable(Option<Duration>),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Exceeded(exceeded) => Self::TooManyRequests(Some(exceeded.after)),
            Denied::Away => Self::Unavailable(None),
        }
    }
}

impl Refusal {
    /// The same for sockets that are no gateway's: `rescue` writes it.
    pub(crate) fn plainly(self) -> crate::rescue::Refusal {
        use crate::rescue::Refusal;
        match self {
            Self::BadHandshake(message) => Refusal::http(StatusCode::BAD_REQUEST, "BAD_HANDSHAKE", message),
            _ => Refusal::http(
                StatusCode::UPGRADE_REQUIRED,
                "UPGRADE_REQUIRED",
                "a socket is WebSocket version 13 over HTTP/1.1",
            )
            .with_header(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        }
    }

    pub(super) fn response(self) -> Response {
        let (status, code, message) = match &self {
            Self::BadHandshake(message) => (StatusCode::BAD_REQUEST, "BAD_REQUEST", *message),
            Self::UpgradeRequired => (
                StatusCode::UPGRADE_REQUIRED,
                "UPGRADE_REQUIRED",
                "This path speaks WebSocket version 13 only.",
            ),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Invalid or expired credentials.")
            }
            Self::TooManyRequests(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "TOO_MANY_REQUESTS",
                "Connection rate limit exceeded. Please try again later.",
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                "The connection cannot be taken now. Please try again later.",
            ),
        };
        metrics::counter!("edge_gateway_refusals_total", "code" => code).increment(1);
        let text = serde_json::to_vec(&Text { status: "error", code, message }).unwrap_or_default();
        let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::UpgradeRequired => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::Unauthorized => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey realm=\"tollgate\""));
            }
            Self::TooManyRequests(after) | Self::Unavailable(after) => {
                let seconds = after
                    .map_or(RETRY_SECONDS, |after| after.as_secs() + u64::from(after.subsec_nanos() > 0));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            }
            Self::BadHandshake(_) => {}
        }
        response
    }
}
