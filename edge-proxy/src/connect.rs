//! The Connect protocol in front of the gRPC pass-through: unary calls as plain POST or GET, streams in
//! envelopes, errors as JSON.
//!
//! A call becomes a gRPC call of `grpc::serve`, which admits it like any other; messages are read, and
//! translated where they are JSON, only after that.

mod answers;
mod codecs;
mod get;
mod metadata;
mod query;
mod streams;
mod unary;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use proto::MethodPolicy;
use service_kit::{Error, Kind};

pub(crate) use answers::{Answers, Piece};
pub(crate) use codecs::{Codecs, Format, malformed};

use crate::{
    Body, Edge, access,
    incoming::Incoming,
    layers::{Request, Response},
    rescue::Refusal,
};

const VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");

/// What a unary method takes.
const UNARY_TYPES: HeaderValue = HeaderValue::from_static("application/json, application/proto");
/// What a method with a stream takes.
const STREAM_TYPES: HeaderValue =
    HeaderValue::from_static("application/connect+json, application/connect+proto");

/// Whether a path is that of an RPC, `/package.Service/Method`; no path of REST looks so.
pub(crate) fn is_rpc_path(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return false;
    };
    !service.starts_with('.') && service.contains('.') && !method.is_empty() && !method.contains('/')
}

/// Answers a call.
pub(crate) async fn serve(edge: &Arc<Edge>, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let policy = access::known(parts.uri.path()).ok_or_else(access::unknown_method)?;
    let asked = Asked::of(policy, &parts).map_err(|refusal| refusal.at(&policy.path))?;
    asked.answer(edge, parts, body).await.map_err(|refusal| refusal.at(&policy.path))
}

/// What a request asks for, by its head.
#[derive(Debug, Clone, Copy)]
struct Asked {
    policy: &'static MethodPolicy,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Options { with_get: bool },
    Get,
    Unary(Format),
    Stream(Format),
}

impl Asked {
    fn of(policy: &'static MethodPolicy, parts: &Parts) -> Result<Self, Refusal> {
        let method = &policy.descriptor;
        let streams = method.is_client_streaming() || method.is_server_streaming();
        let with_get = policy.no_side_effects && !streams;
        let how = match parts.method {
            Method::OPTIONS => How::Options { with_get },
            Method::GET if with_get => How::Get,
            Method::POST => {
                let content_type = parts.headers.get(header::CONTENT_TYPE);
                let text = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
                match Format::of_type(text) {
                    Some((format, framed)) if framed == streams => match streams {
                        true => How::Stream(format),
                        false => How::Unary(format),
                    },
                    _ => return Err(wrong_type(streams)),
                }
            }
            _ => {
                let message = "a call is POST, or GET where it has no side effects and no stream";
                let refusal = Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message);
                return Err(refusal.with_header(header::ALLOW, allow(with_get)));
            }
        };
        if !matches!(how, How::Options { .. }) {
            check_version(&parts.headers)?;
        }
        Ok(Self { policy, how })
    }

    async fn answer(self, edge: &Arc<Edge>, parts: Parts, body: Incoming) -> Result<Response, Refusal> {
        let policy = self.policy;
        match self.how {
            How::Options { with_get } => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert(header::ALLOW, allow(with_get));
                Ok(response)
            }
            How::Get => get::get(edge, policy, parts).await,
            How::Unary(format) => unary::post(edge, policy, format, parts, Body::new(body)).await,
            How::Stream(format) => streams::post(edge, policy, format, parts, Body::new(body)).await,
        }
    }
}

/// The methods of HTTP that reach an RPC.
fn allow(with_get: bool) -> HeaderValue {
    HeaderValue::from_static(if with_get { "GET, OPTIONS, POST" } else { "OPTIONS, POST" })
}

fn wrong_type(streams: bool) -> Refusal {
    let (types, message) = match streams {
        true => {
            (STREAM_TYPES, "this method streams: `application/connect+json` or `application/connect+proto`")
        }
        false => (UNARY_TYPES, "messages are `application/json` or `application/proto`"),
    };
    Refusal::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message)
        .with_header(HeaderName::from_static("accept-post"), types)
}

/// There is one version of the protocol; who does not say which one speaks it.
fn check_version(headers: &HeaderMap) -> Result<(), Error> {
    match headers.get_all(VERSION).iter().all(|version| version == "1") {
        true => Ok(()),
        false => Err(Error::new(
            Kind::InvalidArgument,
            "INVALID_PROTOCOL",
            "`connect-protocol-version` must be `1`",
        )),
    }
}

/// The gRPC call that a request becomes.
pub(crate) fn call(policy: &MethodPolicy, parts: Parts, body: Body) -> Result<http::Request<Body>, Error> {
    let mut request = http::Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::try_from(policy.path.as_str()).map_err(Error::internal)?;
    *request.extensions_mut() = parts.extensions;
    *request.headers_mut() = metadata::of_request(parts.headers)?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::is_rpc_path;

    #[test]
    fn paths_of_rpcs_are_told_from_others() {
        for path in ["/tollgate.auth.v1.AuthService/Login", "/a.b/c"] {
            assert!(is_rpc_path(path), "{path}");
        }
        for path in [
            "",
            "/",
            "*",
            "/health",
            "/openapi.json",
            "/.well-known/jwks.json",
            "/api/v1/apis",
            "/a.b/",
            "/a.b/c/d",
            "/a/b",
        ] {
            assert!(!is_rpc_path(path), "{path}");
        }
    }
}
