//! A span with the caller's trace as its parent, one access log line and one duration for each request.
//!
//! The line is written when the last byte has gone, so that it knows how a stream ended. It holds the
//! route's template, never the path, a query or a token.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use http_body::{Frame, SizeHint};
use metrics::Label;
use tonic::Code;
use tower::{ServiceExt as _, service_fn};
use tracing::{Instrument as _, Span, field::Empty};

use super::{Next, Request, Response, request_id::X_REQUEST_ID};
use crate::{Body, Client};

/// What the inside tells the log of a request; in the extensions of its response.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noted {
    /// The route: a path template or a gRPC path.
    pub(crate) route: Option<&'static str>,
    /// How the call ended, where no trailer says it.
    pub(crate) code: Option<Code>,
}

pub(crate) fn wrap<S: Next<Infallible>>(inner: S) -> impl Next<Infallible> {
    service_fn(move |request: Request| {
        let inner = inner.clone();
        let started = Instant::now();
        let method = method_name(request.method());
        let client = request.extensions().get::<Client>().cloned();
        let id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("-");
        let version = version_name(request.version());
        let span = tracing::info_span!(
            "request",
            otel.kind = "server",
            otel.name = Empty,
            method,
            id,
            trace_id = Empty
        );
        service_kit::telemetry::adopt_parent(&span, request.headers());
        let future = inner.oneshot(request);
        let inside = span.clone();
        async move {
            let response = future.await?;
            Ok(watched(response, Record::new(method, version, started, inside, client)))
        }
        .instrument(span)
    })
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

fn watched(response: Response, mut record: Record) -> Response {
    let noted = response.extensions().get::<Noted>().copied().unwrap_or_default();
    record.route = noted.route;
    record.status = response.status().as_u16();
    record.code = code_in(response.headers()).or(noted.code);
    response.map(|inner| Body::new(Watched { inner, record }))
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// A body that knows its request's record, and gives it to the log when it ends or is given up.
struct Watched {
    inner: Body,
    record: Record,
}

struct Record {
    method: &'static str,
    version: &'static str,
    route: Option<&'static str>,
    status: u16,
    code: Option<Code>,
    started: Instant,
    span: Span,
    /// The connection is busy until the answer has gone.
    client: Option<Client>,
}

impl Record {
    fn new(
        method: &'static str,
        version: &'static str,
        started: Instant,
        span: Span,
        client: Option<Client>,
    ) -> Self {
        Self { method, version, route: None, status: 0, code: None, started, span, client }
    }

    /// The duration, named as OpenTelemetry's conventions have it. Each label is one of a few.
    fn measure(&self, elapsed: Duration) {
        let secure = self.client.as_ref().is_some_and(|client| client.secure);
        let mut labels = vec![
            Label::new("http_request_method", self.method),
            Label::new("url_scheme", if secure { "https" } else { "http" }),
            Label::new("network_protocol_version", self.version),
            Label::new("http_response_status_code", self.status.to_string()),
        ];
        labels.extend(self.route.map(|route| Label::new("http_route", route)));
        // Of a server, only 5xx is an error.
        if self.status >= 500 {
            labels.push(Label::new("error_type", self.status.to_string()));
        }
        metrics::histogram!("http_server_request_duration_seconds", labels).record(elapsed.as_secs_f64());
    }
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
        let _inside = self.span.enter();
        tracing::info!(
            target: "access",
            method = self.method,
            route = self.route.unwrap_or("-"),
            client = self.client.as_ref().map(|client| tracing::field::display(client.address)),
            status = self.status,
            grpc = self.code.map(|code| code as i32),
            micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            trace_id = service_kit::telemetry::trace_id(),
            "answered"
        );
        self.measure(elapsed);
        service_kit::telemetry::describe_http(&self.span, self.method, self.route, self.status);
    }
}
