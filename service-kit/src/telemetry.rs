//! Logs to stderr, W3C trace context through every hop, OTLP export when asked for, Prometheus text.

use std::{
    io::IsTerminal as _,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::{Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde::Deserialize;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

mod calls;

pub use calls::{Call, TraceLayer, TraceService, code_name};

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

/// Whether traces go anywhere.
static EXPORTS: AtomicBool = AtomicBool::new(false);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Buckets of durations in seconds (OpenTelemetry semantic conventions).
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Buckets of durations that may be hours: until something far away is as it should be.
const CONVERGENCE: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0,
    21_600.0, 86_400.0,
];

/// Buckets of counts of revisions.
const REVISIONS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 10_000.0];

/// Buckets of sizes of bodies.
const BYTES: &[f64] = &[0.0, 128.0, 1_024.0, 8_192.0, 65_536.0, 524_288.0, 4_194_304.0, 33_554_432.0];

/// How often the samples of histograms are summed up, whether somebody scrapes or not.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logs, traces and metrics of the process. Once, at the very beginning, on the runtime.
pub fn init(config: &TelemetryConfig, service: &'static str) -> anyhow::Result<Guard> {
    let filter = EnvFilter::try_new(&config.log).context("telemetry.log is not a filter")?;
    let provider = tracer_provider(config, service)?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    // Spans carry trace ids even when nothing exports them: the ids go into logs and error bodies. That
    // is why `telemetry.log` decides about lines only, and the spans around them always exist.
    let traces = tracing_opentelemetry::layer()
        .with_threads(false)
        .with_location(false)
        .with_tracer(provider.tracer("tollgate"))
        .with_filter(our_spans());
    let filter = filter.or(our_spans());
    let logs = match config.format {
        LogFormat::Text => {
            let for_eyes = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_ansi(for_eyes).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(traces).with(logs.with_filter(filter)).try_init()?;
    // The exporter tries suffixes in the order of the alphabet.
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_convergence_seconds".to_owned()), CONVERGENCE)?
        .set_buckets_for_metric(Matcher::Suffix("_revisions".to_owned()), REVISIONS)?
        .set_buckets_for_metric(Matcher::Suffix("_size_bytes".to_owned()), BYTES)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    tokio::spawn(upkeep(recorder.clone()));
    let _ = METRICS.set(recorder);
    Ok(Guard(provider))
}

/// The spans of requests. Those of libraries are finer than `info`.
fn our_spans<S>() -> impl tracing_subscriber::layer::Filter<S> + Send + Sync + 'static {
    let is_ours: fn(&tracing::Metadata<'_>) -> bool =
        |metadata| metadata.is_span() && *metadata.level() <= tracing::Level::INFO;
    filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO)
}

/// Without it the exporter keeps every single sample until the next scrape.
async fn upkeep(recorder: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        recorder.run_upkeep();
    }
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
    EXPORTS.store(true, Ordering::Relaxed);
    Ok(builder.with_batch_exporter(exporter).build())
}

/// Whoever has something to measure when somebody asks, and not before.
static LOOKS: Mutex<Vec<Box<dyn Fn() -> bool + Send>>> = Mutex::new(Vec::new());

/// Has `look` set its gauges before each answer to a scrape: what changes with every call is true then, and costs the
/// calls nothing. It is forgotten once it says `false`.
pub fn at_scrape(look: impl Fn() -> bool + Send + 'static) {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
}

/// The metrics of the process in Prometheus text.
pub fn render_metrics() -> String {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner).retain(|look| look());
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Puts the current span's context into headers.
pub fn inject(headers: &mut HeaderMap) {
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Headers(headers)));
}

/// Makes the context in headers the parent of a span, and notes the trace in the span's field
/// `trace_id` if it has one: each log line inside of the span then names the trace.
pub fn adopt_parent(span: &tracing::Span, headers: &HeaderMap) {
    if has_parent(headers) {
        let context = global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)));
        if context.span().span_context().is_valid() {
            // Fails only when the span was entered already or nothing traces: then there is no parent.
            let _ = span.set_parent(context);
        }
    }
    note_trace(span);
}

/// Whether there is one `traceparent`, exactly as W3C Trace Context §3.2 has it; OpenTelemetry's
/// propagator also takes others. What follows the flags is for versions to come.
fn has_parent(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match value.as_bytes() {
        [v0, v1, b'-', trace @ .., b'-', f0, f1] if (*v0, *v1) == (b'0', b'0') => {
            matches!(trace.split_at_checked(32), Some((trace, [b'-', span @ ..]))
                if span.len() == 16 && is_hex(trace) && is_hex(span) && is_hex(&[*f0, *f1]))
        }
        longer => {
            longer.len() >= 55
                && is_hex(&longer[..2])
                && &longer[..2] != b"ff"
                && &longer[..2] != b"00"
                && longer.get(55).is_none_or(|byte| *byte == b'-')
        }
    }
}

/// Writes the trace id of a span into its field `trace_id`.
pub fn note_trace(span: &tracing::Span) {
    if let Some(id) = trace_id_of(span) {
        span.record("trace_id", id);
    }
}

/// Tells those who look at traces how an HTTP request ended. It is no part of the
/// span's fields, because log lines would repeat it.
pub fn describe_http(span: &tracing::Span, method: &'static str, route: Option<&'static str>, status: u16) {
    if !EXPORTS.load(Ordering::Relaxed) {
        return;
    }
    span.set_attribute("http.request.method", method);
    span.set_attribute("http.response.status_code", i64::from(status));
    match route {
        Some(route) => {
            span.context().span().update_name(format!("{method} {route}"));
            span.set_attribute("http.route", route);
        }
        None => span.context().span().update_name(method),
    }
    // Of a server, only 5xx is an error.
    if status >= 500 {
        span.set_status(Status::error(""));
    }
}

/// The same for a gRPC call, with the name of its status.
fn describe_rpc(span: &tracing::Span, code: &'static str) {
    if EXPORTS.load(Ordering::Relaxed) {
        span.set_attribute("rpc.response.status_code", code);
        let ours = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
        if ours.contains(&code) {
            span.set_status(Status::error(""));
        }
    }
}

/// The trace id of the current span, 32 hexadecimal digits; `None` outside of a trace.
pub fn trace_id() -> Option<String> {
    trace_id_of(&tracing::Span::current())
}

fn trace_id_of(span: &tracing::Span) -> Option<String> {
    let context = span.context();
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

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::has_parent;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("traceparent", HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_parent_is_exact_or_none() {
        let later = [&GOOD.replacen("00", "01", 1), &format!("{}-more", GOOD.replacen("00", "cc", 1))];
        assert!(has_parent(&headers(&[GOOD])));
        assert!(later.into_iter().all(|value| has_parent(&headers(&[value]))));
        let upper = GOOD.to_uppercase();
        let broken = [
            "",
            "00-nonsense",
            &upper,
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{GOOD}0"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0x", 1),
            &GOOD.replace('-', "_"),
            &format!("{}x", GOOD.replacen("00", "01", 1)),
        ];
        for value in broken {
            assert!(!has_parent(&headers(&[value])), "{value}");
        }
        assert!(!has_parent(&headers(&[GOOD, GOOD])) && !has_parent(&HeaderMap::new()));
    }
}
