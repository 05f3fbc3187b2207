//! Logs to stderr, W3C trace context through every hop, OTLP export when asked for, Prometheus text.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    time::Instant,
};

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde::Deserialize;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The `[telemetry]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What to log: `info`, or a filter such as `info,auth_service=debug`.
    pub log: String,
    /// How: `text` or `json`.
    pub format: LogFormat,
    /// The OTLP endpoint (gRPC) that traces go to; none when empty.
    pub otlp_endpoint: String,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Flushes traces when it is dropped.
#[derive(Debug)]
pub struct Guard(SdkTracerProvider);

impl Drop for Guard {
    fn drop(&mut self) {
        // The process ends: nobody is left to hear of an error.
        let _ = self.0.shutdown();
    }
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Buckets of durations in seconds (OpenTelemetry semantic conventions).
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Starts logs, traces and metrics of the process. Once, at the very beginning.
pub fn init(config: &TelemetryConfig, service: &'static str) -> anyhow::Result<Guard> {
    let filter = EnvFilter::try_new(&config.log).context("telemetry.log is not a filter")?;
    let provider = tracer_provider(config, service)?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    // Spans carry trace ids even when nothing exports them: the ids go into logs and error bodies.
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("tollgate"));
    let logs = match config.format {
        LogFormat::Text => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).boxed(),
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(traces).with(logs).try_init()?;
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    let _ = METRICS.set(recorder);
    Ok(Guard(provider))
}

fn tracer_provider(config: &TelemetryConfig, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
    let builder =
        SdkTracerProvider::builder().with_resource(Resource::builder().with_service_name(service).build());
    if config.otlp_endpoint.is_empty() {
        return Ok(builder.build());
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .context("telemetry.otlp_endpoint cannot be used")?;
    Ok(builder.with_batch_exporter(exporter).build())
}

/// The metrics of the process in Prometheus text.
pub fn render_metrics() -> String {
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Puts the current span's context into headers.
pub fn inject(headers: &mut HeaderMap) {
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Headers(headers)));
}

/// Makes the context in headers the parent of a span.
pub fn adopt_parent(span: &tracing::Span, headers: &HeaderMap) {
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)));
    if context.span().span_context().is_valid() {
        let _ = span.set_parent(context);
    }
}

/// The trace id of the current span, 32 hexadecimal digits; `None` outside of a trace.
pub fn trace_id() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| span.trace_id().to_string())
}

struct Headers<'a>(&'a mut HeaderMap);
struct HeadersRef<'a>(&'a HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

impl Extractor for HeadersRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// A span, a log line and a duration for every gRPC call that a service answers.
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
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Only known methods become labels: anything else would let callers make metrics without end.
        let method = proto::Contract::get().method(request.uri().path()).map_or("_OTHER", |m| &m.path[1..]);
        let span = tracing::info_span!("rpc", service = self.service, rpc.method = method);
        adopt_parent(&span, request.headers());
        let service = self.service;
        let started = Instant::now();
        let future = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let response = future.await?;
            // A unary error is trailers-only: its status stands in the headers. Streams report OK here.
            let code = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).unwrap_or("0");
            let elapsed = started.elapsed();
            metrics::histogram!("rpc_server_call_duration_seconds", "service" => service, "rpc_method" => method,
                "rpc_status_code" => code.to_owned())
            .record(elapsed.as_secs_f64());
            tracing::debug!(
                code,
                micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
                "answered"
            );
            Ok(response)
        };
        Box::pin(answer.instrument(span))
    }
}
