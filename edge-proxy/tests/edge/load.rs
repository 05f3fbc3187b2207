//! What happens when there is more to do than a service can take.

use http::StatusCode;
use proto::{auth::TokenPair, project::Api};
use tokio::time::{Duration, timeout};

use super::harness::{Call, Options, Reply, World, ok};

/// Reads hang, everything else is answered.
fn stuck(call: &Call) -> Reply {
    match call.path.rsplit('/').next() {
        Some("GetApi") => Reply::Hang,
        Some("Connect") => Reply::Stall(Vec::new()),
        Some("GetProject") => ok(&Api::default()),
        _ => ok(&TokenPair::default()),
    }
}

/// Equal questions would be one call.
fn uncached() -> Options {
    Options::default().set("cache.enabled", false)
}

fn small() -> Options {
    ["concurrency.initial", "concurrency.least", "concurrency.most"]
        .into_iter()
        .fold(uncached(), |options, key| options.set(key, 2))
        .set("concurrency.queue", 4)
        .set("concurrency.wait_ms", 200)
}

async fn reached(world: &World, calls: usize) {
    let reached = async {
        while world.calls().len() < calls {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), reached).await.expect("the calls arrive");
}

#[tokio::test]
async fn more_than_a_service_takes_is_refused_soon_and_says_when_to_come_back() {
    let world = World::with(small(), stuck).await;
    let get = || async { world.get("/api/v1/apis/a1").user().send("").await };
    let stuck = async { tokio::join!(get(), get()) };
    let others = async {
        reached(&world, 2).await;
        // They wait for their turn, which does not come.
        let (one, two, three) = tokio::join!(get(), get(), get());
        for shed in [&one, &two, &three] {
            assert_eq!(shed.status, StatusCode::SERVICE_UNAVAILABLE, "{shed:?}");
            assert_eq!(
                (shed.header("retry-after"), shed.json()["reason"].as_str()),
                ("1", Some("OVERLOADED"))
            );
            let problem = shed.json()["type"].as_str().unwrap().to_owned();
            assert!(problem.ends_with("#temporary-reduced-capacity"), "{problem}");
        }
        let path = "/tollgate.project.v1.ApiService/GetApi";
        let shed = world.grpc(path, &[("authorization", &world.bearer())], &[b""]).await;
        assert_eq!((shed.grpc_status(), shed.header("retry-after")), ("14", "1"), "{shed:?}");
        // What goes to another service, health, and links of gateways go on.
        assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::OK);
        assert_eq!(world.get("/health").send("").await.status, StatusCode::OK);
        assert_eq!(world.calls().len(), 3, "what was shed never reached the service");
    };
    tokio::select! {
        answers = stuck => panic!("nobody answers these: {answers:?}"),
        () = others => {}
    }
    // Whoever was given up leaves its place to others.
    world.given_up(2).await;
    let answer = world.get("/api/v1/projects/p1").user().send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn links_of_gateways_are_never_shed() {
    let world = World::with(small().set("limits.gateway_connects_per_minute", 100), stuck).await;
    let mut links = Vec::new();
    for _ in 0..10 {
        let ask = world.post("/tollgate.gateway.v1.GatewayLink/Connect").header("api-key", "k");
        let body = http_body_util::BodyExt::map_err(http_body_util::Empty::new(), |never| match never {});
        let body = http_body_util::BodyExt::boxed_unsync(body);
        let link =
            timeout(Duration::from_secs(20), ask.header("content-type", "application/grpc").open(body));
        let link = link.await.expect("a link does not wait for a turn");
        assert_eq!(link.status(), StatusCode::OK);
        links.push(link);
    }
    assert_eq!(world.calls().len(), 10);
}

#[tokio::test]
async fn bounds_that_contradict_each_other_are_refused() {
    let error = World::try_with(Options::default().set("concurrency.least", 1_000)).await.unwrap_err();
    assert!(format!("{error:#}").contains("[concurrency]"), "{error:#}");
}

#[tokio::test]
async fn where_the_time_went_is_told_to_who_asks() {
    let world = World::with(uncached(), |_| ok(&Api::default())).await;
    let ask = || world.get("/api/v1/apis/a1").user();
    assert_eq!(ask().send("").await.header("server-timing"), "");
    let answer = ask().header("x-server-timing", "1").send("").await;
    let phases: Vec<(String, f64)> = answer
        .header("server-timing")
        .split(", ")
        .map(|phase| {
            let (name, took) = phase.split_once(";dur=").unwrap();
            (name.to_owned(), took.parse().unwrap())
        })
        .collect();
    let names: Vec<&str> = phases.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["admit", "queue", "upstream", "total"]);
    let [admit, queue, upstream, total] = [0, 1, 2, 3].map(|at: usize| phases[at].1);
    assert!(upstream > 0.0 && admit + queue + upstream <= total, "{phases:?}");
    // Of an answer of the edge's own there is only the whole.
    let answer = world.get("/nowhere").header("x-server-timing", "1").send("").await;
    assert!(answer.header("server-timing").starts_with("total;dur="), "{answer:?}");
}
