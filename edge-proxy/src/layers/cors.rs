//! CORS (Fetch standard): exact origins; preflights are answered here, before anybody is authenticated.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::{HeaderName, Method, StatusCode, header};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowCredentials, AllowOrigin, CorsLayer};

use super::{Next, Request};
use crate::{config::CorsConfig, live::Live};

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

pub(crate) fn wrap<S: Next<Infallible>>(inner: S, rules: &CorsLayer) -> impl Next<Infallible> + use<S> {
    let with = rules.layer(inner.clone());
    service_fn(move |request: Request| {
        let (with, without) = (with.clone(), inner.clone());
        // An OPTIONS without these is a question about the resource, and no preflight.
        let headers = request.headers();
        let options = request.method() == Method::OPTIONS;
        let preflight = options
            && headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        async move {
            if options && !preflight {
                return without.oneshot(request).await;
            }
            let mut response = with.oneshot(request).await?;
            if preflight {
                *response.status_mut() = StatusCode::NO_CONTENT;
            }
            Ok(response)
        }
    })
}
