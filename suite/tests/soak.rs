//! Mixed clients on one process for a long time: they come and go, cancel, break off, and send what is no call. At rest
//! the process is then what it was before: as many descriptors, no call under way, no more memory.
//!
//! A short run is part of `make test`; `make soak` runs the long one.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; this one prints figures"
)]

#[path = "soak/calls.rs"]
mod calls;
#[path = "soak/hands.rs"]
mod hands;
#[path = "soak/rude.rs"]
mod rude;
#[path = "soak/streams.rs"]
mod streams;
mod support;
#[path = "soak/tally.rs"]
mod tally;
#[path = "soak/vitals.rs"]
mod vitals;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use suite::{
    client::{Client, text_at},
    transport::Transport,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    hands::{Hands, KINDS, World},
    streams::Gateway,
    support::{Account, PASSWORD, Process, admin, client, config_file, wait_for},
    tally::{Course, Tally},
    vitals::Watched,
};

/// From so many seconds on a run is long: ten parts or more, and its slope counts.
const LONG: u64 = 60;
/// No part is longer than this: its access token is good for ten minutes.
const LONGEST_PART: u64 = 300;
/// The warm-up: pools are filled, buffers have grown, all code has run.
const SHORTEST_WARM_UP: u64 = 3;
/// How many make calls at the same time, and how many gateways there are.
const WORKERS: usize = 8;
const GATEWAYS: usize = 2;

/// Pools of database connections, and of connections between the services, open more when there is more to do.
const DESCRIPTORS: usize = 16;
/// KiB for each 1,000 calls: 64 bytes a call. Whatever a call may leave behind for good (a task, a stream, a session, an
/// entry of a map) takes more than that.
const SLOPE: f64 = 64.0;
/// Of memory in the second quarter, in the last one.
const GROWTH: f64 = 1.15;
/// One answer in so many may be none of those that it must be: an overloaded machine is no leak.
const UNEXPECTED: u64 = 100;

/// The cache of the edge may hold 64 MiB, which a run would fill bit by bit; this much is full after the warm-up.
const SETTINGS: &str = "[edge.cache]\nmax_bytes = 262144\n[edge.telemetry]\nformat = \"json\"\n\
    log = \"error,service_kit::server=info,edge_proxy=info\"\n";

/// glibc keeps blocks like the 19 MiB of a password's hash in whatever arena they were freed: steps of 19 MiB up and down
/// in what is measured. With this they go back at once, so that what stays is what somebody holds.
const LARGE_BLOCKS: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "1048576");

/// What must be 0 when nobody is there.
const GAUGES: &[&str] = &[
    "http_server_active_requests",
    "edge_gateway_sockets",
    "edge_call_sockets",
    "tollgate_gateway_connections",
];

/// The service with the feed of revocations.
const OF_THE_FEED: &str = "auth-service";

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mixed_clients_leave_nothing_behind() {
    let seconds = setting("SOAK_SECONDS", 8);
    let long = seconds >= LONG;
    let parts = if long { seconds.div_ceil(LONGEST_PART).max(10) } else { 4 };
    println!("SOAK_SECONDS={seconds}, in {parts} parts");
    let folder = tempfile::tempdir().unwrap();
    let limits = config_file(folder.path(), SETTINGS);
    let process = Process::start_with(folder.path(), &limits, &[LARGE_BLOCKS]).await;
    let anybody = client(&process.url, &suite::ca_file(&folder.path().join("data")));
    let mut world = world(anybody).await;
    let watched = Watched { pid: process.pid(), port: world.port };

    let (tally, mut course) = (Tally::default(), Course::default());
    let warm_up = Duration::from_secs((seconds / 10).clamp(SHORTEST_WARM_UP, LONGEST_PART));
    let part = Duration::from_secs(seconds) / u32::try_from(parts).unwrap();
    for at in 0..=parts {
        // The access token of the part; links and connections are new in each as well.
        let body = json!({"email": world.email, "password": PASSWORD});
        let pair = anybody_of(&world).post("/api/v1/auth/login", &body).await.unwrap().expect(200).unwrap();
        text_at(&pair, "/accessToken").unwrap().clone_into(&mut world.token);
        play(&world, if at == 0 { warm_up } else { part }, &tally).await;
        course.0.push((tally.calls(), watched.at_rest().await));
    }

    let baseline = course.0[0].1.descriptors;
    let bound = baseline + DESCRIPTORS;
    let descriptors = wait_for("descriptors are as after the warm-up", async || {
        let look = watched.look();
        (look.descriptors <= bound).then_some(look.descriptors)
    });
    println!("{tally}\n{course}");
    println!("  descriptors: {baseline} after the warm-up, {} in the end", descriptors.await);
    nothing_is_under_way(&process).await;
    assert!(tally.unexpected() * UNEXPECTED <= tally.calls(), "not what it must be:\n  {}", tally.problems());
    let links = [Transport::WebSocket, Transport::Grpc, Transport::Sse].map(Gateway::kind);
    let kinds = KINDS.iter().map(|kind| kind.name()).chain(links.iter().map(String::as_str));
    let missing: Vec<&str> = kinds.filter(|kind| !tally.has(kind)).collect();
    assert!(missing.is_empty(), "nothing came of {missing:?}");
    memory_is_flat(&course, long);
    assert_eq!(process.terminate().await, Some(0));
}

/// An account, APIs for each worker and the gateways.
async fn world(anybody: Client) -> World {
    let account = Account::new(&anybody).await;
    let mut world = World {
        url: anybody.base().as_str().trim_end_matches('/').to_owned(),
        port: anybody.base().port().unwrap(),
        trust: anybody.trust().clone(),
        email: account.email.clone(),
        token: String::new(),
        organization: account.organization.clone(),
        project: account.project.clone(),
        apis: Vec::new(),
        gateways: Vec::new(),
    };
    for number in 0..WORKERS {
        world.apis.push(account.api(&format!("api-{number}")).await);
    }
    for _ in 0..GATEWAYS {
        let gateway = account.gateway().await;
        world.gateways.push((gateway.id, gateway.token));
    }
    world
}

/// A client without a token, and without connections that stay.
fn anybody_of(world: &World) -> Client {
    Client::new(&world.url, &world.trust).unwrap()
}

/// Everybody calls for so long, and then everybody leaves.
async fn play(world: &World, long: Duration, tally: &Tally) {
    let (world, until) = (Arc::new(world.clone()), Instant::now() + long);
    let mut everybody = JoinSet::new();
    for number in 0..WORKERS {
        everybody.spawn(Hands::new(&world, number).work(until, tally.clone()));
    }
    for (at, (_, token)) in world.gateways.iter().enumerate() {
        for transport in [Transport::WebSocket, Transport::Grpc, Transport::Sse] {
            let (world, token) = (world.clone(), token.clone());
            let gateway = Gateway { world, transport, token, stays: at == 0 };
            everybody.spawn(gateway.live(until, tally.clone()));
        }
    }
    everybody.join_all().await;
}

/// By what the process says of itself: no call, no stream, no socket.
async fn nothing_is_under_way(process: &Process) {
    let ports = process.admin_ports();
    let edge: SocketAddr = ports.iter().find(|(service, _)| service == "edge-proxy").unwrap().1;
    let mut open = vec![String::new()];
    let ended = async {
        while !open.is_empty() {
            open = under_way(edge).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = tokio::time::timeout(support::PATIENCE, ended).await.is_ok();
    assert!(ended, "still under way:\n  {}", open.join("\n  "));
}

async fn under_way(edge: SocketAddr) -> Vec<String> {
    let (_, metrics) = admin(edge, "/metrics").await;
    let of = |line: &str| line.split([' ', '{']).next().is_some_and(|name| GAUGES.contains(&name));
    let gauges: Vec<&str> = metrics.lines().filter(|line| of(line)).collect();
    for name in GAUGES {
        assert!(gauges.iter().any(|line| line.starts_with(name)), "{name} is not in the metrics");
    }
    let mut open: Vec<String> = gauges
        .into_iter()
        .filter(|line| line.rsplit_once(' ').is_none_or(|(_, value)| value.parse() != Ok(0.0)))
        .map(str::to_owned)
        .collect();
    // Towards the services: calls and streams on each instance, and calls that have a place or wait for one.
    let upstreams: Value = serde_json::from_str(&admin(edge, "/upstreams").await.1).unwrap();
    for upstream in upstreams["upstreams"].as_array().unwrap() {
        for (instance, pool) in upstream["instances"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|instance| ["calls", "streams"].map(|pool| (instance, pool)))
        {
            let service = upstream["service"].as_str().unwrap();
            // The edge itself follows the feed of revocations.
            let own = u64::from(service == OF_THE_FEED && pool == "streams");
            let count = instance[pool]["open"].as_u64().unwrap();
            if count > own {
                open.push(format!("{service}: {count} {pool}"));
            }
        }
    }
    let load: Value = serde_json::from_str(&admin(edge, "/load").await.1).unwrap();
    for (service, load) in load.as_object().unwrap() {
        if load["inflight"] != 0 || load["waiting"] != 0 {
            open.push(format!("{service}: {load}"));
        }
    }
    open
}

/// The last quarter is as the second; a long run has enough calls to say what each leaves behind.
fn memory_is_flat(course: &Course, long: bool) {
    let parts = course.0.len() - 1;
    let quarter = parts / 4;
    let (second, last) =
        (course.mean(1 + quarter..1 + 2 * quarter), course.mean(1 + parts - quarter..1 + parts));
    let slope = course.slope(parts / 2);
    println!(
        "  second quarter {second:.0} KiB, last {last:.0} KiB; {slope:.1} KiB per 1,000 calls at the end"
    );
    assert!(last <= second * GROWTH, "memory grows: {second:.0} KiB, then {last:.0} KiB");
    assert!(!long || slope <= SLOPE, "memory grows by {slope:.1} KiB for each 1,000 calls");
}
