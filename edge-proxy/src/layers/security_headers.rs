//! The headers that tell browsers to distrust: on every answer, errors included.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Request;
use crate::Client;

/// Two years; only over TLS, where it means something.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains");

/// For answers of an API: nothing in them may run, be framed, or be read by another site without CORS.
const ALWAYS: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// The rules for the answer to one request.
pub(crate) struct Rules {
    /// Whether it came over TLS.
    is_secure: bool,
}

impl Rules {
    pub(crate) fn of(request: &Request) -> Self {
        Self { is_secure: request.extensions().get::<Client>().is_some_and(|client| client.secure) }
    }

    /// Adds them to the headers of the answer.
    pub(crate) fn add(self, headers: &mut HeaderMap) {
        for (name, value) in ALWAYS {
            headers.insert(name, value);
        }
        if self.is_secure {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        // Whoever may be cached says so itself.
        headers.entry(header::CACHE_CONTROL).or_insert(const { HeaderValue::from_static("no-store") });
    }
}
