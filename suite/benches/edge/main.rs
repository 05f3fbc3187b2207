//! What a call costs in the edge, beside Envoy, nginx and bare hyper: CPU time of the proxy per call, in turns, with
//! latencies at a fixed rate, and memory. The proxy has core 0 for itself; h2load and one cheap service share core 1.
//! Prints rows of the table of `make bench`; who is not installed is skipped, with a word.
//! CALLS=n calls of a turn (40000), TURNS=n turns (3), RPS=n calls per second for latencies (2000),
//! TOLLGATE=, EDGE= (or edge-proxy beside tollgate), ENVOY=, NGINX= the binaries.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement fails by panicking"
)]

mod backend;
mod case;
mod certs;
#[path = "../measure/cost.rs"]
mod cost;
mod floor;
mod load;
mod others;
mod process;
mod tollgate;
mod wire;

use std::{net::TcpListener, path::PathBuf};

use crate::{
    case::{Case, Kind},
    load::Load,
    process::Process,
    tollgate::Tollgate,
};

/// The core of the proxy that is measured, and the one of everything else.
const PROXY_CORE: &str = "0";
const OTHER_CORE: &str = "1";

/// Calls of one client alone, in each turn.
const ALONE: u32 = 2_000;

/// Says that this process is a part of the bench, not the bench.
const ROLE: &str = "TOLLGATE_BENCH_ROLE";

pub(crate) fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) fn row(what: &str, measured: &str, goal: &str) {
    println!("| {what:<58} | {measured:>14} | {goal:<10} |");
}

/// Addresses that were free a moment ago.
pub(crate) fn free_ports<const N: usize>() -> [String; N] {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    std::array::from_fn(|at| listeners[at].local_addr().unwrap().to_string())
}

fn main() {
    service_kit::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::var(ROLE).ok().as_deref() {
        Some("backend") => runtime.block_on(backend::run()),
        Some("floor") => runtime.block_on(floor::run()),
        _ => runtime.block_on(run()),
    }
}

async fn run() {
    for tool in ["h2load", "taskset"] {
        if others::find(tool).is_none() {
            row("CPU of the edge per call", "skipped", "-");
            eprintln!("skipped: {tool} is not installed (Debian: nghttp2-client, util-linux)");
            return;
        }
    }
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        row("CPU of the edge per call", "skipped", "-");
        eprintln!("skipped: the proxy and its load need a core each");
        return;
    }

    let tollgate = std::env::var_os("TOLLGATE").map_or_else(default_binary, PathBuf::from);
    let edge = std::env::var_os("EDGE").map_or_else(|| tollgate.with_file_name("edge-proxy"), PathBuf::from);
    // Programs are started in a folder of their own.
    let [tollgate, edge] = [tollgate, edge].map(|program| std::path::absolute(program).unwrap());
    let (setup, mut proxies) = Tollgate::start(&tollgate, &edge).await;
    proxies.push(floor::start(&setup).await);
    proxies.extend(others::start(&setup).await);
    let cases: Vec<Case> = proxies.iter().flat_map(|proxy| proxy.cases.clone()).collect();
    let idle: Vec<u64> = proxies.iter().map(|proxy| proxy.process.resident_kib()).collect();

    let load = Load::new(&setup);
    let mut costs = vec![Vec::new(); cases.len()];
    let mut paced = vec![Vec::new(); cases.len()];
    let mut times = vec![Vec::new(); cases.len()];
    let direct = Case::new("the service itself", Kind::Grpc, false, &setup.backend_plain);
    let mut direct_alone = Vec::new();
    let mut alone = vec![Vec::new(); cases.len()];
    let process =
        |case: &Case| -> &Process { &proxies.iter().find(|proxy| proxy.name == case.proxy).unwrap().process };
    for case in &cases {
        load.full(case, 2_000);
    }
    for round in 1..=number("TURNS", 3) {
        for (at, case) in cases.iter().enumerate() {
            let before = process(case).cpu();
            let calls = load.full(case, number("CALLS", 40_000));
            let cost = (process(case).cpu() - before).as_secs_f64() * 1e6 / f64::from(calls);
            eprintln!("turn {round}: {:<52} {cost:>6.1} us", case.to_string());
            costs[at].push(cost);
        }
        for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.has_latency) {
            let before = process(case).cpu();
            let mut taken = load.paced(case, number("RPS", 2_000));
            let cost = (process(case).cpu() - before).as_secs_f64() * 1e6 / taken.len() as f64;
            eprintln!("turn {round}: {:<52} {cost:>6.1} us, paced", case.to_string());
            paced[at].push(cost);
            times[at].append(&mut taken);
            direct_alone.append(&mut load.alone(&direct, ALONE));
            alone[at].append(&mut load.alone(case, ALONE));
        }
    }

    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let cost = |proxy: &str, kind: Kind, tls: bool| {
        let at = cases.iter().position(|case| (case.proxy, case.kind, case.tls) == (proxy, kind, tls))?;
        Some(median(&costs[at]))
    };
    for (at, case) in cases.iter().enumerate() {
        row(&format!("CPU per call: {case}"), &format!("{:.1} us", median(&costs[at])), case.goal());
    }
    for (kind, goal) in [(Kind::Rest, "<= 0.6"), (Kind::Grpc, "<= 0.55")] {
        for (front, tls) in [("plain", false), ("TLS", true)] {
            for (other, goal) in [("Envoy", goal), ("nginx", "-"), ("bare hyper", "-")] {
                if let (Some(edge), Some(other_cost)) = (cost("edge", kind, tls), cost(other, kind, tls)) {
                    let ratio = format!("{:.2}", edge / other_cost);
                    row(&format!("  edge / {other}, {kind}, {front} front"), &ratio, goal);
                }
            }
        }
        if let (Some(plain), Some(tls)) = (cost("edge", kind, false), cost("edge", kind, true)) {
            row(
                &format!("  TLS in front of the edge, {kind}"),
                &format!("{:+.1} us", tls - plain),
                "<= 4 us",
            );
        }
    }
    let rps = number("RPS", 2_000);
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.has_latency) {
        let [half, most] = [0.5, 0.99].map(|part| percentile(&mut times[at], part) as f64 / 1e3);
        let measured = format!("{half:.2}/{most:.2} ms");
        row(&format!("p50/p99 at {rps}/s: {case}"), &measured, "-");
        row("  its CPU per call", &format!("{:.1} us", median(&paced[at])), "-");
    }
    let service = percentile(&mut direct_alone, 0.5);
    row(&format!("p50, one client: {direct}"), &format!("{service} us"), "-");
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.has_latency) {
        let goal = if case.proxy == "edge" { "<= 100 us" } else { "-" };
        let added = percentile(&mut alone[at], 0.5).saturating_sub(service);
        row(&format!("  added to it by {case}"), &format!("{added} us"), goal);
    }
    for (proxy, idle) in proxies.iter().zip(idle) {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let measured = format!("{:.1}/{:.1} MiB", mib(idle), mib(proxy.process.resident_kib()));
        let goal = if proxy.name == "edge" { "<= 20 idle" } else { "-" };
        row(&format!("memory, idle/after: {}", proxy.name), &measured, goal);
    }
}

fn percentile(times: &mut [u64], part: f64) -> u64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part).round() as usize]
}

/// Where cargo puts binaries: beside this one's folder.
fn default_binary() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(|deps| deps.parent()).unwrap().join("tollgate")
}
