//! A span with the caller's trace as its parent, one access log line and one duration for each request.
//!
//! The line is written when the last byte has gone, so that it knows how a stream ended. It holds the
//! route's template, never the path, a query or a token.

mod figures;

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body::{Frame, SizeHint};
use metrics::Gauge;
use service_kit::telemetry::TraceId;
use tonic::Code;
use tracing::{Span, field::Empty};

use super::{Request, Response, request_id::X_REQUEST_ID};
use crate::{Body, Client, grpc::code_in, routes::Protocol};
pub(crate) use figures::Figures;
use figures::Kind;

/// What the inside tells the log of a request; in the extensions of its response.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noted {
    /// The route: a path template or a gRPC path.
    pub(crate) route: Option<&'static str>,
    /// How the call ended, where no trailer says it.
    pub(crate) code: Option<Code>,
}

/// How a call ended, where only the last of its bytes tell; in the extensions of its response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending(Arc<OnceLock<Code>>);

impl Ending {
    /// The call has ended so.
    pub(crate) fn is(&self, code: Code) {
        // The first word counts.
        let _ = self.0.set(code);
    }
}

/// As `network.protocol.version` has it.
fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Methods that nobody knows share a label.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

fn scheme(client: &Client) -> &'static str {
    if client.secure { "https" } else { "http" }
}

/// A body that knows its request's record, and gives it to the log when it ends or is given up.
struct Watched {
    inner: Body,
    record: Record,
}

/// What is known of a request so far. Is written when it is dropped.
pub(crate) struct Record {
    method: &'static str,
    version: &'static str,
    route: Option<&'static str>,
    status: u16,
    code: Option<Code>,
    ending: Option<Ending>,
    started: Instant,
    id: Option<HeaderValue>,
    trace_id: Option<TraceId>,
    span: Option<Span>,
    /// How the client speaks.
    protocol: Protocol,
    /// Bytes of the request's body as far as it says, and of the answer's so far.
    received: Option<u64>,
    sent: u64,
    /// The connection is busy until the answer has gone.
    client: Option<Client>,
    /// It is one of these for as long.
    active: Option<Gauge>,
}

impl Record {
    /// Begins with a request, and with its span.
    pub(crate) fn begin(request: &Request, protocol: Protocol) -> (Self, Span) {
        let method = method_name(request.method());
        let client = request.extensions().get::<Client>().cloned();
        let active = client.as_ref().map(|client| client.connection.figures.active(method, scheme(client)));
        if let Some(active) = &active {
            active.increment(1.0);
        }
        let (span, trace_id) = span(method, request.headers());
        let record = Self {
            method,
            id: request.headers().get(X_REQUEST_ID).cloned(),
            trace_id,
            version: version_name(request.version()),
            route: None,
            status: 0,
            code: None,
            ending: None,
            started: client.as_ref().map_or_else(Instant::now, |client| client.marks().begun()),
            span: service_kit::telemetry::held(&span),
            protocol,
            received: http_body::Body::size_hint(request.body()).exact(),
            sent: 0,
            client,
            active,
        };
        (record, span)
    }

    /// Watches an answer to its end.
    pub(crate) fn watch(mut self, response: Response) -> Response {
        let noted = response.extensions().get::<Noted>().copied().unwrap_or_default();
        self.route = noted.route.or_else(|| self.client.as_ref()?.marks().route());
        self.status = response.status().as_u16();
        self.code = code_in(response.headers()).or(noted.code);
        self.ending = response.extensions().get::<Ending>().cloned();
        response.map(|inner| Body::new(Watched { inner, record: self }))
    }

    fn code(&self) -> Option<Code> {
        let ending = self.ending.as_ref().and_then(|ending| ending.0.get().copied());
        ending.or(self.code)
    }

    /// Duration and sizes.
    fn measure(&self, elapsed: Duration) {
        let Some(client) = &self.client else { return };
        let Self { method, version, status, route, .. } = *self;
        let scheme = scheme(client);
        let kind = Kind { method, scheme, version, status, route };
        client.connection.figures.answered(kind, elapsed, self.received, self.sent);
        if let Some(active) = &self.active {
            active.decrement(1.0);
        }
    }
}

/// The span of a request, and the trace that it is in.
fn span(method: &'static str, headers: &HeaderMap) -> (Span, Option<TraceId>) {
    let id = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("-");
    let span =
        tracing::info_span!("request", otel.kind = "server", otel.name = Empty, method, id, trace_id = Empty);
    let trace_id = service_kit::telemetry::adopt_parent(&span, headers);
    (span, trace_id)
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.record.code = code_in(trailers).or(this.record.code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        // Whole by itself: what its span says of the request is in it.
        tracing::info!(
            target: service_kit::telemetry::ACCESS,
            parent: None,
            id = self.id.as_ref().and_then(|id| id.to_str().ok()),
            trace_id = self.trace_id.as_deref(),
            protocol = self.protocol.name(),
            http = self.version,
            method = self.method,
            route = self.route.unwrap_or("-"),
            client = self.client.as_ref().map(|client| tracing::field::display(client.address)),
            status = self.status,
            grpc = self.code().map(|code| code as i32),
            received = self.received,
            sent = self.sent,
            upstream = self.client.as_ref().and_then(|client| client.marks().service()),
            micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "answered"
        );
        self.measure(elapsed);
        if let Some(span) = &self.span {
            service_kit::telemetry::describe_http(span, self.method, self.route, self.status);
        }
    }
}
