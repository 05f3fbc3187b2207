//! Calls inside of a call: parts of a batch, and of a composite read.
//!
//! Each passes what a call of its own would: bounds, one reading of its path, admission with its limits, the cache.
//! It has the credentials and the client of the call that it is part of, and none of its own; it is no stream, and no
//! batch.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::{
    Client, Edge,
    access::CREDENTIALS,
    layers::{Response, limits, paths, request_id::X_REQUEST_ID},
    rescue::{self, Asked, Refusal},
    routes::{self, Protocol},
    transcode::Input,
};

/// What parts get of the call that they are part of, besides its credentials.
const SHARED: [HeaderName; 2] = [header::USER_AGENT, X_REQUEST_ID];

/// The call that others are part of.
#[derive(Debug)]
pub(crate) struct Outer {
    client: Client,
    headers: HeaderMap,
    /// When all of it must be answered.
    pub(crate) deadline: Instant,
}

/// A part.
#[derive(Debug)]
pub(crate) struct Subcall {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What a part was answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Outer {
    pub(crate) fn of(parts: &Parts, deadline: Instant) -> Result<Self, Refusal> {
        let mut headers = HeaderMap::new();
        for name in CREDENTIALS.iter().chain(&SHARED) {
            for value in parts.headers.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        Ok(Self { client: Client::of(&parts.extensions)?.clone(), headers, deadline })
    }

    /// Makes a call; what refuses it becomes its reply.
    pub(crate) async fn call(&self, edge: &Edge, call: Subcall) -> Reply {
        let Subcall { method, path, headers, body } = call;
        // What is no path at all is refused as what it is.
        let uri = path.parse::<Uri>().unwrap_or_default();
        let asked = Asked { protocol: Protocol::Rest, uri: uri.clone() };
        let answered = async {
            if !path.starts_with('/') || uri.path_and_query().is_none_or(|whole| whole.as_str() != path) {
                let message = "the path is none";
                return Err(Refusal::http(StatusCode::BAD_REQUEST, "INVALID_PATH", message));
            }
            let mut request = http::Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = uri;
            *request.headers_mut() = headers;
            request.headers_mut().extend(self.headers.clone());
            request.extensions_mut().insert(self.client.clone());
            let (parts, ()) = request.into_parts();
            limits::check(&parts.uri, &parts.headers)?;
            paths::check(parts.uri.path())?;
            routes::rest(edge, parts, Input::Whole(body)).await
        };
        let answered = tokio::time::timeout_at(self.deadline, Box::pin(answered)).await;
        let outcome = answered.unwrap_or_else(|_| Err(rescue::late().into()));
        Reply::of(outcome.unwrap_or_else(|refusal| rescue::reply(&asked, refusal))).await
    }
}

impl Reply {
    /// The reply that a refusal becomes.
    pub(crate) async fn refused(path: &str, refusal: Refusal) -> Self {
        let asked = Asked { protocol: Protocol::Rest, uri: path.parse().unwrap_or_default() };
        Self::of(rescue::reply(&asked, refusal)).await
    }

    /// Reads a response, which is whole already where it has one answer.
    async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// Whether its body is JSON.
    pub(crate) fn is_json(&self) -> bool {
        let text = self.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        text.starts_with(b"application/json") || text.starts_with(b"application/problem+json")
    }
}
