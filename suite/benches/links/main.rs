//! 1,000 gateways on one instance: memory of a link, the way of an event from its commit to the sockets, one
//! deploy to all. Every service is a process of its own, on SQLite; the gateways are WebSockets over TLS
//! through the edge, in this process, on the same cores. Prints rows of the table of `make bench`.
//! LINKS=n gateways (1000), EVENTS=n single events (500), BURSTS=n bursts (20), TOLLGATE=the binary (that of the release build).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement fails by panicking"
)]

#[path = "../measure/cost.rs"]
mod cost;
mod fleet;
mod setup;
mod sockets;

use std::time::{Duration, Instant};

use crate::{fleet::Fleet, setup::Setup, sockets::Sockets};

/// Nothing takes longer, or it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn row(what: &str, measured: &str, goal: &str) {
    println!("| {what:<58} | {measured:>14} | {goal:<10} |");
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    let last = times.len() - 1;
    times[((last as f64) * part).round() as usize]
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

fn main() {
    // `cargo bench` passes flags that are for its own harness.
    service_kit::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(run());
}

async fn run() {
    let links = number("LINKS", 1_000);
    let tollgate = std::env::var_os("TOLLGATE").map_or_else(default_binary, Into::into);
    let fleet = Fleet::start(&tollgate, links).await;
    eprintln!("registering {links} gateways ...");
    let setup = Setup::register(&fleet, links).await;

    let (gateway_before, edge_before) = (fleet.gateway.resident_kib(), fleet.edge.resident_kib());
    eprintln!("connecting ...");
    let began = Instant::now();
    let mut sockets = Sockets::connect(&fleet, &setup).await;
    let connected = began.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let per_link = |now: u64, before: u64| (now.saturating_sub(before)) as f64 / links as f64;
    let idle = (
        per_link(fleet.gateway.resident_kib(), gateway_before),
        per_link(fleet.edge.resident_kib(), edge_before),
    );

    eprintln!("single events ...");
    let mut single = Vec::new();
    for at in 0..number("EVENTS", 500) {
        let target = at * 7 % links;
        let began = Instant::now();
        setup.append(&[target]).await;
        let arrived = sockets.wait(1).await;
        single.push(arrived.duration_since(began));
    }

    eprintln!("an event for each ...");
    let all: Vec<usize> = (0..links).collect();
    let (mut from_call, mut from_commit) = (Vec::new(), Vec::new());
    let cpu = (fleet.gateway.cpu(), fleet.edge.cpu());
    let bursts = number("BURSTS", 20);
    for _ in 0..bursts {
        let began = Instant::now();
        setup.append(&all).await;
        let committed = Instant::now();
        let last = sockets.wait(links).await;
        from_call.push(last.duration_since(began));
        from_commit.push(last.saturating_duration_since(committed));
        // Every event is acknowledged before the next burst.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let deliveries = (bursts * links) as f64;
    let micros = |now: Duration, before: Duration| (now - before).as_secs_f64() * 1e6 / deliveries;
    let cpu = (micros(fleet.gateway.cpu(), cpu.0), micros(fleet.edge.cpu(), cpu.1));

    eprintln!("one deploy to all ...");
    let mut deploys = Vec::new();
    for _ in 0..3 {
        deploys.push(setup.deploy_to_all(&mut sockets, links).await);
    }
    let used = (
        per_link(fleet.gateway.resident_kib(), gateway_before),
        per_link(fleet.edge.resident_kib(), edge_before),
    );

    let kb = |kib: f64| format!("{:.1} KiB", kib);
    row(&format!("{links} gateways connect through one edge"), &ms(connected), "-");
    row("memory per link, gateway-service, idle", &kb(idle.0), "<= 15 KB");
    row("memory per link, edge (TLS and WebSocket), idle", &kb(idle.1), "-");
    row("  after all of the traffic below, gateway-service", &kb(used.0), "<= 15 KB");
    row("  after all of the traffic below, edge", &kb(used.1), "-");
    row("event: call of the append to the socket, median", &ms(percentile(&mut single, 0.5)), "-");
    row("event: call of the append to the socket, 99 %", &ms(percentile(&mut single, 0.99)), "<= 50 ms");
    row("an event for each: call to the last socket, median", &ms(percentile(&mut from_call, 0.5)), "-");
    row("an event for each: commit to the last socket, median", &ms(percentile(&mut from_commit, 0.5)), "-");
    row(
        "an event for each: commit to the last socket, 99 %",
        &ms(percentile(&mut from_commit, 0.99)),
        "<= 50 ms",
    );
    row("CPU per event sent and acknowledged, gateway-service", &format!("{:.0} us", cpu.0), "-");
    row("CPU per event sent and acknowledged, edge", &format!("{:.0} us", cpu.1), "-");
    deploys.sort_by_key(|deploy| deploy.acknowledged);
    let middle = &deploys[deploys.len() / 2];
    row("one deploy to all: the call", &ms(middle.answered), "-");
    row("one deploy to all: to the last socket", &ms(middle.arrived), "-");
    row("one deploy to all: to the last acknowledgement on record", &ms(middle.acknowledged), "<= 1000 ms");
    row("one deploy to all: to DEPLOYED everywhere in the API", &ms(middle.deployed), "-");
    drop(fleet.auth);
    drop(fleet.project);
}

/// Where cargo puts binaries: beside this one's folder.
fn default_binary() -> std::path::PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(|deps| deps.parent()).unwrap().join("tollgate")
}
