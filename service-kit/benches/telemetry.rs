//! What telemetry costs one request at the edge: its span with its trace passed on, and its line. CPU time of one
//! thread, medians of ROUNDS=n turns (15); FORMAT=json for lines as JSON. Log lines go to stderr: point it to /dev/null.
#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::{fs, io::Write as _, net::IpAddr, time::Duration};

use http::HeaderMap;
use service_kit::telemetry::{self, LogFormat, TelemetryConfig};
use tracing::field::Empty;

/// How many requests a turn has.
const COUNT: u32 = 100_000;

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(told.split(' ').next().unwrap().parse().unwrap())
}

fn time(mut work: impl FnMut()) -> f64 {
    let before = cpu_time();
    for _ in 0..COUNT {
        work();
    }
    (cpu_time() - before).as_nanos() as f64 / f64::from(COUNT)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let format = match std::env::var("FORMAT").as_deref() {
        Ok("json") => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let config = TelemetryConfig { log: "info".into(), format, otlp_endpoint: String::new() };
    let _guard = telemetry::init(&config, "edge-proxy").unwrap();
    let empty = HeaderMap::new();
    let mut headers = HeaderMap::with_capacity(8);
    let id = "0199a5c0-7f9b-7c1e-8a2b-3c4d5e6f7081";
    let address: IpAddr = "127.0.0.1".parse().unwrap();
    let mut span = || {
        let span = tracing::info_span!(
            "request",
            otel.kind = "server",
            otel.name = Empty,
            method = "POST",
            id,
            trace_id = Empty
        );
        let trace_id = telemetry::adopt_parent(&span, &empty);
        for _ in 0..2 {
            span.in_scope(|| ());
        }
        span.in_scope(|| telemetry::inject(&mut headers));
        trace_id
    };
    let trace_id = span();
    let line = || {
        tracing::info!(
            target: telemetry::ACCESS,
            parent: None,
            id = Some(id),
            trace_id = trace_id.as_deref(),
            protocol = "grpc",
            http = "2",
            method = "POST",
            route = "/tollgate.project.v1.ApiService/GetApi",
            client = Some(display(address)),
            status = 200_u16,
            grpc = Some(0_i32),
            received = None::<u64>,
            sent = 1_234_u64,
            upstream = Some("project-service"),
            micros = 1_734_u64,
            "answered"
        );
    };
    let (mut spans, mut lines) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        spans.push(time(|| _ = span()));
        lines.push(time(&line));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "span {:.0} ns, line {:.0} ns", median(spans), median(lines)).unwrap();
}
