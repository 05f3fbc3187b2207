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
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    global,
    trace::{Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde::Deserialize;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

mod calls;
mod contexts;
mod fields;
mod json;
mod kept;
mod lines;
mod logs;
mod stamp;
mod text;

pub use calls::{Call, TraceLayer, TraceService, code_name};
pub use contexts::{TraceId, adopt_parent, inject, note_trace, trace_id};
pub use lines::ACCESS;
use lines::Lines;
use logs::{Form, Logs, is_ours};

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

/// Flushes traces and log lines when it is dropped.
#[derive(Debug)]
pub struct Guard {
    provider: SdkTracerProvider,
    lines: Lines,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The process ends: nobody is left to hear of an error.
        let _ = self.provider.shutdown();
        let _ = self.lines.flush();
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
    let provider = tracer_provider(config, service)?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    let lines = Lines::default();
    tokio::spawn(lines.clone().keep_going());
    if exports() {
        let exported = tracing_opentelemetry::layer()
            .with_threads(false)
            .with_location(false)
            .with_tracer(provider.tracer("tollgate"))
            .with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO));
        let spans = tracing_subscriber::registry().with(exported);
        spans.with(logs(config, lines.clone())?).try_init()?;
    } else {
        tracing_subscriber::registry().with(logs(config, lines.clone())?).try_init()?;
    }
    // The exporter tries suffixes in the order of the alphabet.
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_convergence_seconds".to_owned()), CONVERGENCE)?
        .set_buckets_for_metric(Matcher::Suffix("_revisions".to_owned()), REVISIONS)?
        .set_buckets_for_metric(Matcher::Suffix("_size_bytes".to_owned()), BYTES)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    tokio::spawn(upkeep(recorder.clone()));
    let _ = METRICS.set(recorder);
    Ok(Guard { provider, lines })
}

fn logs<S>(config: &TelemetryConfig, lines: Lines) -> anyhow::Result<Logs<S, Lines>>
where
    S: tracing::Subscriber + for<'l> LookupSpan<'l> + Send + Sync,
{
    let library = tracing_subscriber::fmt::layer().with_writer(lines.clone());
    let form = match config.format {
        LogFormat::Text if std::io::stderr().is_terminal() => Form::Library(library.boxed()),
        LogFormat::Text => Form::Text(lines),
        LogFormat::Json => Form::Json(lines, library.json().flatten_event(true).boxed()),
    };
    Logs::new(&config.log, !exports(), form).context("telemetry.log is not a filter")
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

fn exports() -> bool {
    EXPORTS.load(Ordering::Relaxed)
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

/// A hold on a span for what is told of it at its end; `None` where nobody looks at traces.
pub fn held(span: &tracing::Span) -> Option<tracing::Span> {
    exports().then(|| span.clone())
}

/// Tells those who look at traces how an HTTP request ended. It is no part of the
/// span's fields, because log lines would repeat it.
pub fn describe_http(span: &tracing::Span, method: &'static str, route: Option<&'static str>, status: u16) {
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
    if exports() {
        span.set_attribute("rpc.response.status_code", code);
        let ours = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
        if ours.contains(&code) {
            span.set_status(Status::error(""));
        }
    }
}
