//! A span, a log line and a duration for every gRPC call that a service answers.
//!
//! How a call ended is only known from its trailers, so line and duration wait for them. The span of a call that
//! may last for weeks ends with the head of its answer: nobody would see it before, and there are thousands of them.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty};

/// Puts [`TraceService`] in front of a service.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer(&'static str);

impl TraceLayer {
    /// For the service of this name.
    pub fn new(service: &'static str) -> Self {
        Self(service)
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TraceService { inner, service: self.0 }
    }
}

/// A service with spans.
#[derive(Debug, Clone)]
pub struct TraceService<S> {
    inner: S,
    service: &'static str,
}

impl<S, B, R> Service<Request<B>> for TraceService<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Call<R>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Only known methods become labels: anything else would let callers make metrics without end.
        let known = proto::Contract::get().method(request.uri().path());
        let method = known.map_or("_OTHER", |m| &m.path[1..]);
        let lasts = known.is_some_and(|m| m.max_deadline.is_none());
        let span = tracing::info_span!(
            "rpc",
            otel.kind = "server",
            otel.name = method,
            service = self.service,
            rpc.method = method,
            trace_id = Empty
        );
        super::adopt_parent(&span, request.headers());
        let record = Record {
            service: self.service,
            method,
            started: Instant::now(),
            span: span.clone(),
            code: Code::Cancelled,
        };
        let future = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let mut record = record;
            let response = future.await?;
            // An error without an answer is trailers-only: its status stands in the headers.
            record.code = code_in(response.headers()).unwrap_or(record.code);
            if lasts {
                record.span = Span::none();
            }
            Ok(response.map(|inner| Call { inner, record }))
        };
        Box::pin(answer.instrument(span))
    }
}

/// The body of an answer, which knows its call.
#[derive(Debug)]
pub struct Call<R> {
    inner: R,
    record: Record,
}

/// Is written when it is dropped: with the last byte, or when the caller has gone.
#[derive(Debug)]
struct Record {
    service: &'static str,
    method: &'static str,
    started: Instant,
    span: Span,
    /// Until a status is known, the caller gave up.
    code: Code,
}

impl<R: Body + Unpin> Body for Call<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(code) = frame.as_ref().and_then(|frame| code_in(frame.as_ref().ok()?.trailers_ref()?)) {
            this.record.code = code;
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
        let code = code_name(self.code);
        metrics::histogram!("rpc_server_call_duration_seconds",
            "service" => self.service,
            "rpc_system_name" => "grpc",
            "rpc_method" => self.method,
            "rpc_status_code" => code)
        .record(elapsed.as_secs_f64());
        super::describe_rpc(&self.span, code);
        let _inside = self.span.enter();
        tracing::debug!(code, micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), "answered");
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// The name of a code, as the specification of gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
