//! Mixed clients on one process for a long time: they come and go, cancel, break off, and send what is no call. At rest
//! the process is then what it was before: as many descriptors, no call under way, no more memory.
//!
//! A short run is part of `make test`; `make soak` runs the long one. `EDGE` names a program of the edge to judge in
//! place of the whole suite in one process; `SOAK_ORDINARY` is how many ordinary calls come on each that is not.
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
#[path = "soak/subject.rs"]
mod subject;
mod support;
#[path = "soak/tally.rs"]
mod tally;
#[path = "soak/vitals.rs"]
mod vitals;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use suite::{
    client::{Client, text_at},
    transport::Transport,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    hands::{Hands, KINDS, World},
    streams::Gateway,
    subject::Subject,
    support::{Account, PASSWORD, admin, client, wait_for},
    tally::{Course, Look, Tally},
    vitals::{Held, Watched},
};

/// From so many seconds on a run is long: twenty parts or more, and its slopes count.
const LONG: u64 = 60;
const PARTS: u64 = 20;
/// No part is longer than this: its access token is good for five minutes.
const LONGEST_PART: u64 = 240;
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
/// KiB that one look at rest may have more than another without anything being held: pages that an allocator with an
/// arena for each of 30 threads keeps, or gives back later.
const NOISE: f64 = 1024.0;
/// Descriptors and tasks for each 1,000 calls. One that each call of one of the 22 kinds leaves behind would be 45.
const LEFT_BEHIND: f64 = 1.0;
/// So many more of them one look may see than another: readers of databases, the question itself.
const PASSING: f64 = 6.0;
/// Of memory in the second quarter, in the last one.
const GROWTH: f64 = 1.15;
/// One answer in so many may be none of those that it must be: an overloaded machine is no leak.
const UNEXPECTED: u64 = 100;

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
    let parts = if long { seconds.div_ceil(LONGEST_PART).max(PARTS) } else { 4 };
    println!("SOAK_SECONDS={seconds}, in {parts} parts");
    let folder = tempfile::tempdir().unwrap();
    let subject = Subject::start(folder.path()).await;
    let edge = subject.admin();
    let anybody = client(&subject.url(), &suite::ca_file(&folder.path().join("data")));
    let mut world = world(anybody).await;
    let watched = Watched { pid: subject.pid(), port: world.port };

    let (tally, mut course) = (Tally::default(), Course::default());
    let warm_up = Duration::from_secs((seconds / 10).clamp(SHORTEST_WARM_UP, LONGEST_PART));
    let part = Duration::from_secs(seconds) / u32::try_from(parts).unwrap();
    for at in 0..=parts {
        // The access token of the part; links and connections are new in each as well.
        let body = json!({"email": world.email, "password": PASSWORD});
        let pair = anybody_of(&world).post("/api/v1/auth/login", &body).await.unwrap().expect(200).unwrap();
        text_at(&pair, "/accessToken").unwrap().clone_into(&mut world.token);
        play(&world, if at == 0 { warm_up } else { part }, &tally).await;
        let vitals = watched.at_rest().await;
        let held = Held::by(edge).await;
        course.0.push(Look { calls: tally.calls(), vitals, held });
    }

    let baseline = course.0[0].vitals.descriptors;
    let bound = baseline + DESCRIPTORS;
    let descriptors = wait_for("descriptors are as after the warm-up", async || {
        let look = watched.look();
        (look.descriptors <= bound).then_some(look.descriptors)
    });
    println!("{tally}\n{course}");
    println!("  descriptors: {baseline} after the warm-up, {} in the end", descriptors.await);
    println!("  held in the end: {}", admin(edge, "/held").await.1);
    nothing_is_under_way(&subject).await;
    assert!(tally.unexpected() * UNEXPECTED <= tally.calls(), "not what it must be:\n  {}", tally.problems());
    let links = [Transport::WebSocket, Transport::Grpc, Transport::Sse].map(Gateway::kind);
    let kinds = KINDS.iter().map(|kind| kind.name()).chain(links.iter().map(String::as_str));
    let missing: Vec<&str> = kinds.filter(|kind| !tally.has(kind)).collect();
    assert!(missing.is_empty(), "nothing came of {missing:?}");
    is_flat(&course, long);
    assert_eq!(subject.terminate().await, Some(0));
}

/// An account, APIs for each worker and the gateways.
async fn world(anybody: Client) -> World {
    let account = Account::new(&anybody).await;
    let mut world = World {
        url: anybody.base().as_str().trim_end_matches('/').to_owned(),
        port: anybody.base().port().unwrap(),
        trust: anybody.trust().clone(),
        email: account.email.clone(),
        visitor: Account::new(&anybody).await.email.clone(),
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
    let ordinary = usize::try_from(setting("SOAK_ORDINARY", 1)).unwrap();
    assert!(ordinary > 0, "SOAK_ORDINARY must be at least 1");
    let mut everybody = JoinSet::new();
    for number in 0..WORKERS {
        everybody.spawn(Hands::new(&world, number).work(until, ordinary, tally.clone()));
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

/// By what is said on admin ports: no call, no stream, no socket.
async fn nothing_is_under_way(subject: &Subject) {
    let mut open = under_way(subject).await;
    let ended = async {
        while !open.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // What was not there in one look only passes by, as health checks do.
            let now = under_way(subject).await;
            open.retain(|name, _| now.contains_key(name));
        }
    };
    let ended = tokio::time::timeout(support::PATIENCE, ended).await.is_ok();
    assert!(ended, "still under way: {open:?}");
}

/// What there is of what must come to an end.
async fn under_way(subject: &Subject) -> BTreeMap<String, f64> {
    let (edge, metrics) = (subject.admin(), subject.metrics().await);
    let of = |line: &str| line.split([' ', '{']).next().is_some_and(|name| GAUGES.contains(&name));
    let gauges: Vec<(&str, f64)> = metrics
        .lines()
        .filter(|line| of(line))
        .map(|line| line.rsplit_once(' ').map(|(name, value)| (name, value.parse().unwrap())).unwrap())
        .collect();
    for name in GAUGES {
        assert!(gauges.iter().any(|(line, _)| line.starts_with(name)), "{name} is not in the metrics");
    }
    let mut open: BTreeMap<String, f64> =
        gauges.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    open.insert("addresses, sockets, flights".to_owned(), Held::by(edge).await.of_the_present as f64);
    // Towards the services: calls and streams on each instance, and calls that have a place or wait for one.
    let upstreams: Value = serde_json::from_str(&admin(edge, "/upstreams").await.1).unwrap();
    for upstream in upstreams["upstreams"].as_array().unwrap() {
        let service = upstream["service"].as_str().unwrap();
        for instance in upstream["instances"].as_array().unwrap() {
            for pool in ["calls", "streams"] {
                // The edge itself follows the feed of revocations.
                let own = if service == OF_THE_FEED && pool == "streams" { 1.0 } else { 0.0 };
                let count = instance[pool]["open"].as_f64().unwrap();
                open.insert(format!("{service} at {}: {pool}", instance["address"]), count - own);
            }
        }
    }
    let load: Value = serde_json::from_str(&admin(edge, "/load").await.1).unwrap();
    for (service, load) in load.as_object().unwrap() {
        for what in ["inflight", "waiting"] {
            open.insert(format!("{service}: {what}"), load[what].as_f64().unwrap());
        }
    }
    open.retain(|_, count| *count > 0.0);
    open
}

/// The last quarter is as the second. A long run has looks and calls enough for a line through its second half: what that
/// line rises by is what calls leave behind, and what one look sees more than another.
fn is_flat(course: &Course, long: bool) {
    let parts = course.0.len() - 1;
    let (quarter, half) = (parts / 4, parts / 2);
    let anon = |look: &Look| look.vitals.rss_anon;
    let second = course.median(1 + quarter..1 + 2 * quarter, anon);
    let last = course.median(1 + parts - quarter..1 + parts, anon);
    let thousands = course.thousands(half);
    println!("  anonymous memory: second quarter {second:.0} KiB, last {last:.0} KiB");
    println!("  the second half, {thousands:.1} thousand calls, by least squares:");
    assert!(last <= second * GROWTH, "memory grows: {second:.0} KiB, then {last:.0} KiB");
    let rises = [
        ("KiB of anonymous memory", course.slope(half, anon) * thousands, SLOPE * thousands + NOISE),
        (
            "descriptors",
            course.slope(half, |look| look.vitals.descriptors as u64) * thousands,
            LEFT_BEHIND * thousands + PASSING,
        ),
        ("tasks", course.slope(half, |look| look.held.tasks) * thousands, LEFT_BEHIND * thousands + PASSING),
    ];
    for (what, rise, bound) in rises {
        println!("    {rise:+.1} {what}, at most {bound:.0}");
        assert!(!long || rise <= bound, "{rise:.1} {what} more in {thousands:.1} thousand calls");
    }
}
