//! Compresses JSON answers (gzip, br) where the client takes it. gRPC has a compression of its own.

use http::{Extensions, HeaderMap, StatusCode, Version, header};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::compression::CompressionLayer;

use super::{Next, Request};
use crate::{Body, rescue::Refusal, routes::Protocol};

/// Below this size a packet is a packet, compressed or not.
const MIN_BYTES: u64 = 1_024;

pub(crate) fn wrap<S: Next<Refusal>>(inner: S) -> impl Next<Refusal> {
    let rules = CompressionLayer::new().compress_when(worthwhile as Predicate);
    let with = rules.layer(inner.clone());
    service_fn(move |request: Request| {
        let (with, without) = (with.clone(), inner.clone());
        async move {
            if Protocol::of(request.headers()) != Protocol::Rest {
                return without.oneshot(request).await;
            }
            Ok(with.oneshot(request).await?.map(Body::new))
        }
    })
}

type Predicate = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

fn worthwhile(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text(header::CONTENT_TYPE).starts_with("application/json")
        && text(header::CONTENT_LENGTH).parse::<u64>().is_ok_and(|bytes| bytes >= MIN_BYTES)
}
