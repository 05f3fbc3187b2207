//! The HTTP side of RFC 6455: what an upgrade must look like, and the 101.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::refusal::Refusal;
use crate::{Body, layers::Response};

/// Checks an upgrade; returns the value of `Sec-WebSocket-Accept`.
pub(crate) fn check<B>(request: &Request<B>) -> Result<HeaderValue, Refusal> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11
        || request.method() != Method::GET
        || !has_token(headers, header::UPGRADE, "websocket")
    {
        return Err(Refusal::UpgradeRequired);
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::BadHandshake("The header Connection must hold `upgrade`."));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::UpgradeRequired);
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) => {
            HeaderValue::try_from(derive_accept_key(key.as_bytes()))
                .map_err(|_| Refusal::BadHandshake("The header Sec-WebSocket-Key is not valid."))
        }
        _ => Err(Refusal::BadHandshake("The header Sec-WebSocket-Key must be 16 bytes in base64.")),
    }
}

/// The answer that ends HTTP on the connection. No extension is ever agreed on.
pub(crate) fn switching_protocols(accept: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Whether a comma-separated header holds a token, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let tokens = value.to_str().unwrap_or_default().split(',');
        tokens.map(str::trim).any(|found| found.eq_ignore_ascii_case(token))
    })
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};

    use super::{Refusal, check};

    fn upgrade() -> Request<()> {
        Request::get("/")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap()
    }

    #[test]
    fn the_example_of_the_rfc_is_answered() {
        assert_eq!(check(&upgrade()).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn anything_else_is_refused() {
        let with = |name: &'static str, value: &'static str| {
            let mut request = upgrade();
            request.headers_mut().remove(name);
            if !value.is_empty() {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            check(&request).unwrap_err()
        };
        assert_eq!(with("upgrade", ""), Refusal::UpgradeRequired);
        assert_eq!(with("upgrade", "h2c"), Refusal::UpgradeRequired);
        assert_eq!(with("sec-websocket-version", "8"), Refusal::UpgradeRequired);
        assert!(matches!(with("connection", "keep-alive"), Refusal::BadHandshake(_)));
        for key in ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE="] {
            assert!(matches!(with("sec-websocket-key", key), Refusal::BadHandshake(_)), "{key}");
        }
        let mut twice = upgrade();
        twice.headers_mut().append("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        assert!(matches!(check(&twice), Err(Refusal::BadHandshake(_))));
        let mut second = upgrade();
        *second.version_mut() = Version::HTTP_2;
        assert_eq!(check(&second), Err(Refusal::UpgradeRequired));
        let mut post = upgrade();
        *post.method_mut() = http::Method::POST;
        assert_eq!(check(&post), Err(Refusal::UpgradeRequired));
    }
}
