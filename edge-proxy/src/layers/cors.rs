//! CORS (Fetch standard): exact origins; preflights are answered here, before anybody is authenticated.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowCredentials, AllowOrigin, CorsLayer};

use super::{Request, Response};
use crate::{Body, config::CorsConfig, live::Live};

/// What the answer to a request depends on that comes from no page at all: as the rules say it of all others.
const VARY: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");

/// What browsers may send besides the safelisted headers.
const ALLOWED: &[&str] = &[
    "authorization",
    "cache-control",
    "connect-protocol-version",
    "connect-timeout-ms",
    "content-encoding",
    "content-type",
    "grpc-timeout",
    "idempotency-key",
    "if-none-match",
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-server-timing",
    "x-user-agent",
];

/// What scripts may read besides the safelisted headers.
const EXPOSED: &[&str] = &[
    "connect-content-encoding",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "x-request-id",
    "idempotency-replayed",
    "etag",
    "age",
    "cache-status",
    "location",
    "retry-after",
    "ratelimit",
    "ratelimit-policy",
    "server-timing",
    "www-authenticate",
];

/// Fails when an entry is not an origin.
pub(crate) fn check(config: &CorsConfig) -> anyhow::Result<()> {
    config.allowed_origins.iter().try_for_each(|origin| {
        let uri: http::Uri = origin.parse().with_context(|| format!("cors.allowed_origins: {origin}"))?;
        let exact = format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
        let exact = uri.port_u16().map_or(exact.clone(), |port| format!("{exact}:{port}"));
        anyhow::ensure!(exact == *origin, "cors.allowed_origins: {origin} is not `scheme://host[:port]`");
        Ok(())
    })
}

/// The rules, by the origins that are allowed at the moment.
pub(crate) fn rules(live: &Arc<ArcSwap<Live>>) -> CorsLayer {
    let (live, known) = (live.clone(), live.clone());
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| live.load().allows_origin(origin.as_bytes())))
        .allow_credentials(AllowCredentials::predicate(move |origin, _| {
            known.load().allows_origin(origin.as_bytes())
        }))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(names(ALLOWED))
        .expose_headers(names(EXPOSED))
        .max_age(Duration::from_secs(600))
}

fn names(names: &'static [&'static str]) -> Vec<HeaderName> {
    names.iter().map(|name| HeaderName::from_static(name)).collect()
}

/// The part of a request that CORS is about.
pub(crate) enum Visit {
    /// It comes from no page of another origin.
    Own,
    /// A question about the resource, and no preflight.
    Options,
    /// It comes from a page.
    Page(Box<http::Request<()>>),
    /// It asks whether a page may call.
    Preflight(Box<http::Request<()>>),
}

impl Visit {
    pub(crate) fn of(request: &Request) -> Self {
        let (method, headers) = (request.method(), request.headers());
        let is_options = *method == Method::OPTIONS;
        let has_origin = headers.contains_key(header::ORIGIN);
        let is_preflight = has_origin && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let page = || {
            let mut page = Box::new(http::Request::new(()));
            page.method_mut().clone_from(method);
            page.headers_mut().clone_from(headers);
            page
        };
        match (is_options, is_preflight, has_origin) {
            (true, true, _) => Self::Preflight(page()),
            (true, false, _) => Self::Options,
            (false, _, true) => Self::Page(page()),
            (false, _, false) => Self::Own,
        }
    }

    pub(crate) fn is_preflight(&self) -> bool {
        matches!(self, Self::Preflight(_))
    }

    /// Says in an answer who may read it; makes the answer to a preflight.
    pub(crate) async fn admit(self, rules: &CorsLayer, mut response: Response) -> Response {
        let (page, is_preflight) = match self {
            Self::Own => {
                response.headers_mut().append(header::VARY, VARY);
                return response;
            }
            Self::Options => return response,
            Self::Page(page) => (page, false),
            Self::Preflight(page) => (page, true),
        };
        let mut answer = Some(response);
        let answered = service_fn(move |_: http::Request<()>| {
            std::future::ready(Ok::<_, Infallible>(answer.take().unwrap_or_default()))
        });
        let mut response: http::Response<Body> =
            Box::pin(rules.layer(answered).oneshot(*page)).await.unwrap_or_else(|never| match never {});
        if is_preflight {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        response
    }
}
