//! The ordered list of layers that every request passes, outermost first; `docs/edge-layers.md` shows
//! the same list.

use std::{convert::Infallible, sync::Arc};

use tower::{ServiceBuilder, service_fn};

use crate::{
    Edge,
    layers::{
        Next, Request, authority, compression, cors, identity, limits, paths, report, request_id, rescue,
        security_headers, trace,
    },
    routes,
};

/// The whole stack in front of the dispatcher.
pub(crate) fn stack(edge: &Arc<Edge>) -> anyhow::Result<impl Next<Infallible> + use<>> {
    let dispatch = {
        let edge = edge.clone();
        // Boxed: the future of a request is large, and is moved by each layer.
        service_fn(move |request: Request| Box::pin(routes::dispatch(edge.clone(), request)))
    };
    let ids = edge.ids.clone();
    let cors_rules = cors::rules(&edge.live);
    Ok(ServiceBuilder::new()
        // An id of ours, so that every line below can name the request.
        .layer_fn(|inner| request_id::wrap(inner, ids.clone()))
        // Span, access line and duration: outside of all that can answer.
        .layer_fn(trace::wrap)
        // Browser rules on every answer, errors and preflights included.
        .layer_fn(security_headers::wrap)
        // Preflights end here: they carry no credentials. Errors below get CORS headers, so scripts can read them.
        .layer_fn(|inner| cors::wrap(inner, &cors_rules))
        // What the caller has left and how long it took: of errors too.
        .layer_fn(report::wrap)
        // Errors and panics of everything below become replies.
        .layer_fn(rescue::wrap)
        // Bounds first: what follows reads the path and the headers.
        .layer_fn(limits::wrap)
        // One host, so that nothing in front can have read another.
        .layer_fn(authority::wrap)
        // One reading of a path, before anything decides by it.
        .layer_fn(paths::wrap)
        // Nobody below sees what a client claims about itself.
        .layer_fn(identity::wrap)
        // JSON answers only; errors are too short to gain.
        .layer_fn(compression::wrap)
        // Protocol, route, authentication, transcoding, upstream.
        .service(dispatch))
}
