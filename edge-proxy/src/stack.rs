//! The ordered list of layers that every request passes; `docs/edge-layers.md` shows the same list.
//!
//! A layer is one or two lines here: what it does on the way in, and what it owes on the way out. It keeps nothing
//! between requests, so nothing is copied for one.

use std::sync::Arc;

use tracing::Instrument as _;

use crate::{
    Edge,
    layers::{
        Request, Response, authority, compression, cors, date, identity, limits, paths, report, request_id,
        rescue, security_headers, trace,
    },
    rescue::{Asked, Refusal},
    routes,
};

/// Answers a request, errors and panics included.
pub(crate) async fn answer(edge: Arc<Edge>, mut request: Request) -> Response {
    // An id of ours, so that every line below can name the request.
    let id = request_id::give(&edge.ids, &mut request);
    let asked = Asked::of(&request);
    // Span, access line and duration: outside of all that can answer.
    let (record, span) = trace::Record::begin(&request, asked.protocol);
    // Browser rules on every answer, errors and preflights included.
    let browser = security_headers::Rules::of(&request);
    // Preflights end here: they carry no credentials. Errors below get CORS headers, so scripts can read them.
    let visit = cors::Visit::of(&request);
    // What the caller has left and how long it took: of errors too.
    let report = report::Report::of(&request);

    let mut response = match visit.is_preflight() {
        true => Response::default(),
        // Errors and panics of everything below become replies.
        false => {
            let inside = inside(&edge, &asked, request);
            rescue::rescued(&asked, inside).instrument(span).await
        }
    };

    // Room for what follows at once, and not in steps.
    response.headers_mut().reserve(16);
    report.add(response.headers_mut());
    response = visit.admit(&edge.cors, response).await;
    browser.add(response.headers_mut());
    request_id::tell(id, &mut response);
    // Of HTTP/2 too, where nobody else says it.
    date::add(&edge.fixed.clock, response.headers_mut());
    record.watch(response)
}

/// Everything that may refuse.
async fn inside(edge: &Arc<Edge>, asked: &Asked, mut request: Request) -> Result<Response, Refusal> {
    // Bounds first: what follows reads the path and the headers.
    limits::check_request(&request)?;
    // One host, so that nothing in front can have read another.
    authority::check(&request)?;
    // One reading of a path, before anything decides by it.
    paths::check(request.uri().path())?;
    // Nobody below sees what a client claims about itself.
    identity::strip(request.headers_mut());
    // JSON answers only; errors are too short to gain.
    let compression = compression::Wish::of(asked.protocol, request.headers());
    // Protocol, route, authentication, transcoding, upstream.
    let response = routes::dispatch(edge, asked.protocol, request).await?;
    Ok(compression.fulfil(response).await)
}
