//! What the edge does about instances: which gets a call, how many connections there are, when it stops to ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use prost::Message as _;
use proto::project::Api;
use tokio::sync::Semaphore;

use super::{
    harness::World,
    rogue::{Act, Stage, nothing_leaks, report, states, until},
};

const READ: &str = "/tollgate.project.v1.ApiService/GetApi";
const WRITE: &str = "/tollgate.project.v1.ApiService/CreateApi";

fn api() -> Vec<u8> {
    Api { id: "a1".into(), ..Api::default() }.encode_to_vec()
}

async fn grpc(world: &World, path: &str) -> super::client::Answer {
    world.grpc(path, &[("authorization", &world.bearer())], &[b""]).await
}

fn busy() -> Act {
    Act::Only(vec![("grpc-status", "14")])
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| busy()).await;
    let set = [("upstreams.resilience.retry_burst", "3"), ("upstreams.resilience.retry_percent", "20")];
    let world = stage.world(rogue.addr, &set).await;
    for _ in 0..15 {
        assert_eq!(grpc(&world, READ).await.grpc_status(), "14");
    }
    // 15 calls, 3 retries from the start, and one more for every five calls.
    assert!((15 + 3..=15 + 3 + 3).contains(&rogue.calls()), "{}", rogue.calls());
}

#[tokio::test]
async fn a_service_that_fails_is_left_alone_until_one_call_succeeds() {
    let stage = Stage::new();
    let mode = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (script_mode, script_gate) = (mode.clone(), gate.clone());
    let act = move |_| match script_mode.load(Ordering::SeqCst) {
        0 => busy(),
        1 => Act::Gated(api(), script_gate.clone()),
        _ => Act::Answer(api()),
    };
    let rogue = stage.rogue(act).await;
    let set =
        [("upstreams.resilience.breaker_failures", "5"), ("upstreams.resilience.breaker_window_ms", "60000")];
    let world = stage.world(rogue.addr, &set).await;
    let post = async || world.post("/api/v1/apis").user().json("{}").await;
    for _ in 0..5 {
        assert_eq!(post().await.json()["reason"], "UNAVAILABLE");
    }
    let answer = post().await;
    assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (503, &"CIRCUIT_OPEN".into()));
    assert_eq!((answer.header("retry-after"), rogue.calls()), ("1", 5));
    assert_eq!(report(&world).await["breaker"], "open");
    // The service hangs: only one call at a time finds out.
    mode.store(1, Ordering::SeqCst);
    let probe = async {
        loop {
            let answer = grpc(&world, WRITE).await;
            if answer.grpc_status() == "0" {
                return;
            }
        }
    };
    let others = async {
        until("somebody tries", async || rogue.calls() == 6).await;
        let answers = join_all((0..10).map(|_| grpc(&world, WRITE))).await;
        assert!(answers.iter().all(|answer| answer.grpc_status() == "14"));
        assert_eq!((rogue.calls(), &report(&world).await["breaker"]), (6, &"half-open".into()));
        mode.store(2, Ordering::SeqCst);
        gate.add_permits(1);
    };
    tokio::join!(probe, others);
    assert_eq!(report(&world).await["breaker"], "closed");
    assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn short_deadlines_of_callers_break_nothing() {
    let stage = Stage::new();
    // Not by the number of the call: one may be over before it has come.
    let is_well = Arc::new(AtomicBool::new(false));
    let is_well_now = is_well.clone();
    let act = move |_| if is_well_now.load(Ordering::SeqCst) { Act::Answer(api()) } else { Act::Hang };
    let rogue = stage.rogue(act).await;
    let world = stage.world(rogue.addr, &[("upstreams.resilience.breaker_failures", "2")]).await;
    for _ in 0..8 {
        let headers = [("authorization", &*world.bearer()), ("grpc-timeout", "100m")];
        assert_eq!(world.grpc(WRITE, &headers, &[b""]).await.grpc_status(), "4");
    }
    assert_eq!(report(&world).await["breaker"], "closed");
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
}

#[tokio::test]
async fn an_instance_that_fails_is_left_out_and_never_too_many() {
    let stage = Stage::new();
    let all_bad = Arc::new(AtomicBool::new(false));
    let worse = all_bad.clone();
    let bad = stage.rogue(|_| busy()).await;
    let good =
        stage.rogue(move |_| if worse.load(Ordering::SeqCst) { busy() } else { Act::Answer(api()) }).await;
    let set = [
        ("upstreams.resilience.eject_failures", "3"),
        ("upstreams.resilience.eject_ms", "60000"),
        ("upstreams.resilience.breaker_failures", "0"),
    ];
    let world = stage.world(format!("{},{}", bad.addr, good.addr), &set).await;
    states(&world, &["well", "well"]).await;
    // Reads are not even seen to fail: they go to the other one.
    let ejected = async {
        until("it is left out", async || {
            assert_eq!(grpc(&world, READ).await.grpc_status(), "0");
            report(&world).await["instances"][0]["state"] == "ejected"
        })
        .await;
    };
    ejected.await;
    let (seen, served) = (bad.calls(), good.calls());
    for _ in 0..20 {
        assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    }
    assert_eq!((bad.calls(), good.calls()), (seen, served + 20));
    // Half of them at most: the last one stays, however bad.
    all_bad.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        assert_eq!(grpc(&world, WRITE).await.grpc_status(), "14");
    }
    states(&world, &["ejected", "well"]).await;
    assert_eq!(bad.calls(), seen);
}

#[tokio::test]
async fn an_instance_that_is_not_well_gets_no_calls() {
    let stage = Stage::new();
    let one = stage.rogue(|_| Act::Answer(api())).await;
    let other = stage.rogue(|_| Act::Answer(api())).await;
    let world = stage
        .world(format!("{},{}", one.addr, other.addr), &[("upstreams.resilience.health_ms", "50")])
        .await;
    states(&world, &["well", "well"]).await;
    one.record.is_ill.store(true, Ordering::SeqCst);
    states(&world, &["ill", "well"]).await;
    for _ in 0..20 {
        assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    }
    assert_eq!((one.calls(), other.calls()), (0, 20));
    one.record.is_ill.store(false, Ordering::SeqCst);
    states(&world, &["well", "well"]).await;
    until("both are used", async || {
        grpc(&world, WRITE).await;
        one.calls() > 0
    })
    .await;
    // One that is gone is not even seen to be.
    let addr = other.kill().await;
    for _ in 0..20 {
        assert_eq!(grpc(&world, READ).await.grpc_status(), "0");
    }
    states(&world, &["well", "away"]).await;
    let _other = stage.rogue_at(&addr.to_string(), 100, |_| Act::Answer(api())).await;
    states(&world, &["well", "well"]).await;
}

#[tokio::test]
async fn connections_grow_with_streams_and_go_when_idle() {
    let stage = Stage::new();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let rogue = stage.rogue_at("127.0.0.1:0", 2, move |_| Act::Gated(api(), opened.clone())).await;
    let set = [
        ("upstreams.project.max_connections", "3"),
        ("upstreams.resilience.idle_seconds", "1"),
        ("upstreams.resilience.health_ms", "50"),
    ];
    let world = stage.world(rogue.addr, &set).await;
    states(&world, &["well"]).await;
    assert_eq!(rogue.record.connections.load(Ordering::SeqCst), 1);
    let calls = join_all((0..10).map(|_| grpc(&world, WRITE)));
    let watch = async {
        // Three connections with two streams each; the other four wait.
        until("all streams are taken", async || rogue.calls() == 6).await;
        assert_eq!(rogue.record.connections.load(Ordering::SeqCst), 3);
        gate.add_permits(10);
    };
    let (answers, ()) = tokio::join!(calls, watch);
    assert!(answers.iter().all(|answer| answer.grpc_status() == "0"), "{answers:?}");
    assert_eq!(rogue.calls(), 10);
    until("one connection is kept", async || rogue.record.connections.load(Ordering::SeqCst) == 1).await;
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn a_setting_bounds_the_calls_on_a_connection() {
    let stage = Stage::new();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let rogue = stage.rogue(move |_| Act::Gated(api(), opened.clone())).await;
    let set = [
        ("upstreams.project.streams_per_connection", "5"),
        ("upstreams.project.max_connections", "2"),
        ("upstreams.resilience.queue", "3"),
        // Checks take streams too.
        ("upstreams.resilience.health_ms", "60000"),
    ];
    let world = stage.world(rogue.addr, &set).await;
    states(&world, &["well"]).await;
    let calls = join_all((0..20).map(|_| grpc(&world, WRITE)));
    let watch = async {
        // Five on the connection that is there, and the three in the queue on the next.
        until("all that find a place have come", async || rogue.calls() >= 8).await;
        gate.add_permits(20);
    };
    let (answers, ()) = tokio::join!(calls, watch);
    // What finds no place in the queue is told at once.
    let good = answers.iter().filter(|answer| answer.grpc_status() == "0").count();
    let full = answers.iter().filter(|answer| answer.grpc_status() == "14").count();
    assert!((8..20).contains(&good) && good + full == 20, "{good} {full}");
    assert_eq!(rogue.calls(), good);
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn a_list_in_a_file_is_followed_and_a_bad_one_refused() {
    let stage = Stage::new();
    let one = stage.rogue(|_| Act::Answer(api())).await;
    let other = stage.rogue(|_| Act::Answer(api())).await;
    let list = stage.path("instances");
    std::fs::write(&list, format!("# ours\n{}\n", one.addr)).unwrap();
    let address = format!("file:{}", list.display());
    let world = stage.world(address, &[("upstreams.resilience.resolve_ms", "20")]).await;
    assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    std::fs::write(&list, format!("{}\n", other.addr)).unwrap();
    until("the other one is known", async || {
        report(&world).await["instances"][0]["address"] == other.addr.to_string()
    })
    .await;
    let served = one.calls();
    assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    assert_eq!((one.calls(), other.calls()), (served, 1));
    until("the first is left", async || one.record.connections.load(Ordering::SeqCst) == 0).await;
    for bad in ["", "nonsense\n"] {
        std::fs::write(&list, bad).unwrap();
        // Long enough to be read a few times: nothing changes, which nothing tells.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    }
    std::fs::write(&list, format!("{}\n{}\n", one.addr, other.addr)).unwrap();
    states(&world, &["well", "well"]).await;
}

#[tokio::test]
async fn a_name_is_looked_up() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::Answer(api())).await;
    let world = stage.world(format!("dns:localhost:{}", rogue.addr.port()), &[]).await;
    until("a call succeeds", async || grpc(&world, READ).await.grpc_status() == "0").await;
}

#[tokio::test]
async fn a_read_that_takes_long_is_asked_twice_if_that_is_wanted() {
    let stage = Stage::new();
    let slow = stage.rogue(|_| Act::Hang).await;
    let quick = stage.rogue(|_| Act::Answer(api())).await;
    let set = [("upstreams.resilience.hedge_ms", "30"), ("upstreams.resilience.eject_failures", "0")];
    let world = stage.world(format!("{},{}", slow.addr, quick.addr), &set).await;
    states(&world, &["well", "well"]).await;
    let started = Instant::now();
    until("the slow one was asked", async || {
        assert_eq!(grpc(&world, READ).await.grpc_status(), "0");
        slow.calls() > 0
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(10));
    // What lost is cancelled, and what changes something is never asked twice.
    until("it is cancelled", async || slow.record.cancelled.load(Ordering::SeqCst) == slow.calls()).await;
    let asked = slow.calls() + quick.calls();
    for more in 1..=4 {
        // Long enough to be asked a second time, whenever the first was.
        let headers = [("authorization", &*world.bearer()), ("grpc-timeout", "1500m")];
        world.grpc(WRITE, &headers, &[b""]).await;
        assert_eq!(slow.calls() + quick.calls(), asked + more);
    }
    nothing_leaks(&world, &slow).await;
}
