//! Answers that are kept: for whom, for how long, and what makes them wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use proto::project::{Api, ListProjectsResponse, Project, UpdateApiRequest};
use service_kit::{
    Clock, Error,
    bus::{self, Bus, BusConfig, Message},
    shutdown::Tasks,
    testing::TestRedis,
};
use tokio::sync::Semaphore;

use super::{
    client::Answer,
    harness::{Call, Options, Reply, World, ok},
};

const PATH: &str = "/api/v1/apis/a1";
const GRPC: &str = "/tollgate.project.v1.ApiService/";

/// A service whose every answer is another.
fn versions() -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |call| {
        let version = format!("v{}", count.fetch_add(1, Ordering::SeqCst) + 1);
        match call.path.rsplit('/').next().unwrap() {
            "ListProjects" => ok(&ListProjectsResponse {
                list: vec![Project { id: "p1".into(), name: version, ..Project::default() }],
                ..ListProjectsResponse::default()
            }),
            "DeleteApi" => Reply::Message(Vec::new()),
            _ => ok(&Api { id: "a1".into(), project_id: "p1".into(), name: version, ..Api::default() }),
        }
    }
}

/// A clock that stands still, now.
fn clock() -> Clock {
    Clock::fixed(Clock::system().now_ms())
}

async fn world(clock: &Clock) -> World {
    World::with(Options { clock: clock.clone(), ..Options::default() }, versions()).await
}

fn name(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.json()["name"].as_str().unwrap().to_owned()
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status")
}

/// Asks until the answer is another.
async fn until_not(world: &World, known: &str) -> Answer {
    let changed = async {
        loop {
            let answer = world.get(PATH).user().send("").await;
            if name(&answer) != known {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.expect("another answer")
}

#[tokio::test]
async fn an_answer_is_given_again_while_it_is_fresh() {
    let clock = clock();
    let world = world(&clock).await;
    let first = world.get(PATH).user().send("").await;
    assert_eq!((&*name(&first), status(&first)), ("v1", "edge; fwd=uri-miss; stored; ttl=10"));
    assert_eq!(first.header("age"), "");
    clock.advance_ms(4_200);
    for h1 in [false, true] {
        let ask = world.get(PATH).user();
        let again = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!((&*name(&again), status(&again)), ("v1", "edge; hit; ttl=5"));
        assert_eq!((again.header("age"), again.header("etag")), ("4", first.header("etag")));
        assert_eq!(again.header("cache-control"), "private, no-cache");
        assert!(again.header("vary").contains("authorization"), "{again:?}");
        assert_eq!(again.header("content-length"), first.header("content-length"));
    }
    let head = world.ask(Method::HEAD, PATH).user().send("").await;
    assert_eq!((head.body.len(), status(&head)), (0, "edge; hit; ttl=5"));
    assert_eq!(head.header("content-length"), first.header("content-length"));
    assert_eq!(world.calls().len(), 1);
    // Another question is another answer, and so is the same by another path of it.
    world.get("/api/v1/apis/a2").user().send("").await;
    assert_eq!(world.calls().len(), 2);
    for path in ["/api/v1/projects?limit=5", "/api/projects?limit=5", "/api/v1/projects"] {
        world.get(path).user().send("").await;
    }
    assert_eq!(world.calls().len(), 4, "an alias asks the same");
    // What the contract does not name is not kept.
    for _ in 0..2 {
        let answer = world.get("/api/v1/apis/a1/deployments").user().send("").await;
        assert_eq!((status(&answer), answer.header("cache-control")), ("", "no-store"));
    }
    assert_eq!(world.calls().len(), 6);
}

#[tokio::test]
async fn nobody_gets_what_another_asked_for() {
    let world = world(&clock()).await;
    let ask = |token: String| {
        let bearer = format!("Bearer {token}");
        let world = &world;
        async move { world.get(PATH).header("authorization", &bearer).send("").await }
    };
    let own = |key: &'static str, value: &'static str| world.token_with(|claims| claims[key] = value.into());
    let mut seen = Vec::new();
    for token in [world.token(), own("sub", "v"), own("sid", "t"), own("scope", "apis:read")] {
        seen.push(name(&ask(token).await));
    }
    assert_eq!(seen, ["v1", "v2", "v3", "v4"]);
    // The same session with a new token finds what it had.
    assert_eq!(name(&ask(own("jti", "another")).await), "v1");
    // A token is judged before anything is looked for.
    let narrow = ask(own("scope", "projects:read")).await;
    assert_eq!(narrow.status, StatusCode::FORBIDDEN);
    let expired = world.token_with(|claims| {
        for time in ["exp", "iat", "auth_time"] {
            claims[time] = (claims[time].as_i64().unwrap() - 900).into();
        }
    });
    assert_eq!(ask(expired).await.status, StatusCode::UNAUTHORIZED);
    let sid = own("sid", "t");
    world.signer.revoke("t");
    let dead = async {
        while ask(sid.clone()).await.status != StatusCode::UNAUTHORIZED {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), dead).await.expect("the session is dead");
    let nobody = world.get(PATH).send("").await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.calls().len(), 4);
}

#[tokio::test]
async fn who_has_an_answer_hears_only_that_it_still_holds() {
    let clock = clock();
    let world = World::with(Options { clock: clock.clone(), ..Options::default() }, |_| {
        ok(&Api { id: "a1".into(), description: "x".repeat(5_000), ..Api::default() })
    })
    .await;
    let whole = world.get(PATH).user().send("").await;
    let tag = whole.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".into()] {
        let answer = world.get(PATH).user().header("if-none-match", &known).send("").await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}: {answer:?}");
        assert!(answer.header("etag").trim_start_matches("W/") == tag, "{answer:?}");
        assert_eq!((answer.header("content-type"), answer.header("age")), ("", "0"));
        assert_eq!(answer.header("cache-control"), "private, no-cache");
    }
    // The service's new answer is the old one: no bytes either.
    clock.advance_ms(31_000);
    let renewed = world.get(PATH).user().header("if-none-match", &tag).send("").await;
    assert_eq!(
        (renewed.status, status(&renewed)),
        (StatusCode::NOT_MODIFIED, "edge; fwd=stale; stored; ttl=10")
    );
    assert_eq!(world.calls().len(), 2);
    let other = world.get(PATH).user().header("if-none-match", "\"other\"").send("").await;
    assert_eq!((other.status, &other.body), (StatusCode::OK, &whole.body));
    // Compressed bytes are not those that the tag is of.
    let small = world.get(PATH).user().header("accept-encoding", "gzip").send("").await;
    assert_eq!((small.header("content-encoding"), small.header("etag")), ("gzip", &*format!("W/{tag}")));
}

#[tokio::test]
async fn a_client_may_ask_for_more_and_never_for_less() {
    let clock = clock();
    let world = world(&clock).await;
    let ask = |control: &'static str| world.get(PATH).user().header("cache-control", control);
    let nothing = ask("only-if-cached").send("").await;
    assert_eq!(
        (nothing.status, nothing.json()["reason"].as_str()),
        (StatusCode::GATEWAY_TIMEOUT, Some("NOT_CACHED"))
    );
    let first = ask("no-store").send("").await;
    assert_eq!((&*name(&first), status(&first)), ("v1", "edge; fwd=uri-miss"));
    assert_eq!(name(&ask("max-age=0").send("").await), "v2");
    assert_eq!(name(&ask("only-if-cached").send("").await), "v2");
    let renewed = ask("no-cache").send("").await;
    assert_eq!((&*name(&renewed), status(&renewed)), ("v3", "edge; fwd=request; stored; ttl=10"));
    clock.advance_ms(3_000);
    assert_eq!(name(&ask("max-age=3, min-fresh=7").send("").await), "v3");
    assert_eq!(name(&ask("max-age=2").send("").await), "v4");
    clock.advance_ms(3_000);
    assert_eq!(name(&ask("min-fresh=8").send("").await), "v5");
    assert_eq!(name(&world.get(PATH).user().header("pragma", "no-cache").send("").await), "v6");
}

#[tokio::test]
async fn who_takes_stale_answers_gets_them() {
    let clock = clock();
    let world = world(&clock).await;
    world.get(PATH).user().send("").await;
    clock.advance_ms(100_000);
    let ask = |control: &'static str| world.get(PATH).user().header("cache-control", control).send("");
    for control in ["max-stale=90", "max-stale", "max-stale, only-if-cached", "max-age=100, max-stale=100"] {
        let stale = ask(control).await;
        let expected = ("v1", "edge; hit; ttl=-90; detail=max-stale", "100");
        assert_eq!((&*name(&stale), status(&stale), stale.header("age")), expected, "{control}");
    }
    assert_eq!(world.calls().len(), 1, "nobody asked for a new one");
    // What is wrong is not stale.
    let put = world.ask(Method::PUT, PATH).user().json("{}").await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    assert_eq!(name(&ask("max-stale").await), "v3");
    for (control, expected) in
        [("max-stale=89", "v4"), ("max-age=99, max-stale", "v5"), ("max-stale=x", "v6")]
    {
        clock.advance_ms(100_000);
        assert_eq!(name(&ask(control).await), expected, "{control}");
    }
}

#[tokio::test]
async fn equal_questions_at_once_are_one_call() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let world = World::start(move |_| {
        let reply = ok(&Api { id: "a1".into(), name: "v1".into(), ..Api::default() });
        Reply::After(held.clone(), Box::new(reply))
    })
    .await;
    let called = async |count| {
        while world.calls().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let crowd = futures_util::future::join_all((0..10).map(|_| world.get(PATH).user().send("")));
    let other = world.get("/api/v1/apis/a2").user().send("");
    let open = async {
        called(2).await;
        gate.add_permits(2);
    };
    let (crowd, _, ()) = tokio::join!(crowd, other, open);
    assert!(crowd.iter().all(|answer| name(answer) == "v1"));
    assert_eq!(world.calls().len(), 2);

    // Who alone waits and leaves ends the call.
    let body = || Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    let asking = world.get("/api/v1/apis/a3").user().open(body());
    tokio::select! {
        _ = asking => panic!("nothing answers"),
        () = called(3) => {}
    }
    world.given_up(1).await;
}

#[tokio::test]
async fn an_old_answer_is_given_once_more_while_a_new_one_is_fetched() {
    let clock = clock();
    let world = world(&clock).await;
    world.get(PATH).user().send("").await;
    clock.advance_ms(29_000);
    let old = world.get(PATH).user().send("").await;
    assert_eq!((&*name(&old), status(&old)), ("v1", "edge; hit; ttl=-19; detail=stale-while-revalidate"));
    assert_eq!(old.header("age"), "29");
    let new = until_not(&world, "v1").await;
    assert_eq!((&*name(&new), status(&new)), ("v2", "edge; hit; ttl=10"));
    // Older than that, it is waited for.
    clock.advance_ms(30_000);
    let waited = world.get(PATH).user().send("").await;
    assert_eq!((&*name(&waited), status(&waited)), ("v3", "edge; fwd=stale; stored; ttl=10"));
}

#[tokio::test]
async fn while_a_service_is_down_the_last_answer_is_given_and_marked() {
    let clock = clock();
    let bus = "memory:edge-cache-down";
    let options = Options { clock: clock.clone(), ..Options::default() };
    let mut world = World::with(options.set("bus.url", format!("\"{bus}\"")), versions()).await;
    for path in [PATH, "/api/v1/apis/a2"] {
        world.get(path).user().send("").await;
    }
    world.stop_service("project-service").await;
    clock.advance_ms(200_000);
    for _ in 0..2 {
        let answer = world.get(PATH).user().send("").await;
        let expected = "edge; fwd=stale; ttl=-190; detail=stale-if-error";
        assert_eq!((&*name(&answer), status(&answer), answer.header("age")), ("v1", expected, "200"));
        assert_eq!(answer.header("warning"), "");
    }
    // Not to who wants a new one, not to who never had it, not after it is known to be wrong.
    for control in ["no-cache", "max-age=60", "no-store"] {
        let answer = world.get(PATH).user().header("cache-control", control).send("").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{control}");
    }
    let other = format!("Bearer {}", world.token_with(|claims| claims["sub"] = "v".into()));
    let answer = world.get(PATH).header("authorization", &other).send("").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    publish(bus, "changed.user.u").await;
    let gone = async {
        while world.get(PATH).user().send("").await.status != StatusCode::SERVICE_UNAVAILABLE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("rights that changed are heard of");
}

#[tokio::test]
async fn nothing_older_than_trusted_is_given_out() {
    let clock = clock();
    let options = Options { clock: clock.clone(), ..Options::default() };
    let mut world = World::with(options.set("cache.trust_seconds", 100), versions()).await;
    world.get(PATH).user().send("").await;
    world.stop_service("project-service").await;
    clock.advance_ms(99_000);
    assert_eq!(name(&world.get(PATH).user().send("").await), "v1");
    clock.advance_ms(1_000);
    assert_eq!(world.get(PATH).user().send("").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn who_writes_reads_what_was_written() {
    let world = world(&clock()).await;
    let read = async |path: &str, user: &str| {
        let bearer = format!("Bearer {}", world.token_with(|claims| claims["sub"] = user.into()));
        let answer = world.get(path).header("authorization", &bearer).send("").await;
        assert_eq!(answer.status, StatusCode::OK);
        status(&answer).starts_with("edge; hit")
    };
    let list = "/api/v1/projects";
    let warm = async || {
        for (path, user) in [(PATH, "u"), (list, "u"), (PATH, "v"), (list, "v")] {
            read(path, user).await;
            assert!(read(path, user).await);
        }
    };
    warm().await;
    let put = world.ask(Method::PUT, PATH).user().json("{}").await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    // All that the writer read, and what the path names for everybody.
    assert_eq!((read(PATH, "u").await, read(list, "u").await), (false, false));
    assert_eq!((read(PATH, "v").await, read(list, "v").await), (false, true));
    // Over gRPC and gRPC-Web as well.
    let request = UpdateApiRequest { api_id: "a1".into(), ..UpdateApiRequest::default() }.encode_to_vec();
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        warm().await;
        let ask = world.post(&format!("{GRPC}UpdateApi")).header("content-type", content_type).user();
        let answer = ask.header("te", "trailers").send(super::client::frame(&request)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!read(list, "u").await && read(list, "v").await, "{content_type}");
    }
    // A call that was never made changes nothing.
    warm().await;
    let refused = world.ask(Method::PUT, PATH).send("").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(read(list, "u").await && read(PATH, "v").await);
}

async fn publish(url: &str, subject: &str) {
    let bus = bus::connect(&BusConfig { url: url.into() }, &Tasks::new()).unwrap();
    bus.publish(Message { subject: subject.into(), payload: Bytes::new() }).await.unwrap();
}

#[tokio::test]
async fn a_change_elsewhere_is_heard_on_the_bus() {
    let bus = "memory:edge-cache-bus";
    let options = Options { clock: clock(), ..Options::default() };
    let world = World::with(options.set("bus.url", format!("\"{bus}\"")), versions()).await;
    world.get(PATH).user().send("").await;
    for other in ["changed.api.a2", "changed.project.p1", "changed.user.v", "gateway.events.a1"] {
        publish(bus, other).await;
    }
    // The subscription is one queue: once the next is heard, so were those.
    world.get("/api/v1/apis/a9").user().send("").await;
    publish(bus, "changed.api.a9").await;
    let renewed = async {
        while !status(&world.get("/api/v1/apis/a9").user().send("").await).contains("uri-miss") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), renewed).await.expect("the change is heard");
    assert_eq!(name(&world.get(PATH).user().send("").await), "v1");
    publish(bus, "changed.api.a1").await;
    assert_eq!(name(&until_not(&world, "v1").await), "v4");
}

#[tokio::test]
async fn over_redis_changes_are_heard_and_after_a_silence_nothing_is_believed() {
    let mut redis = TestRedis::start();
    let url = secrecy::ExposeSecret::expose_secret(&redis.config().url).to_owned();
    let world = World::with(Options::default().set("bus.url", format!("\"{url}\"")), versions()).await;
    let tasks = Tasks::new();
    let bus: Arc<dyn Bus> = bus::connect(&redis.config(), &tasks).unwrap();
    let mut known = name(&world.get(PATH).user().send("").await);
    for restarts in [false, true] {
        if restarts {
            redis.restart();
        }
        let message = Message { subject: "changed.api.a1".into(), payload: Bytes::new() };
        let said = async {
            while bus.publish(message.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // After a restart the edge hears that it may have missed something, if not the message itself.
        let (_, new) = tokio::join!(said, until_not(&world, &known));
        known = name(&new);
    }
    tasks.drain(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_fails_is_large_or_brings_cookies_is_not_kept() {
    let world = World::with(Options::default().set("cache.max_entry_bytes", 1_000), |call| {
        match call.decode::<proto::project::GetApiRequest>().api_id.as_str() {
            "missing" => Reply::Fail(Error::not_found("API").into()),
            "large" => ok(&Api { description: "x".repeat(1_000), ..Api::default() }),
            "cookie" => Reply::Cookies(vec!["a=b"], Box::new(ok(&Api::default()))),
            _ => ok(&Api::default()),
        }
    })
    .await;
    for (id, expected, kept) in [
        ("missing", StatusCode::NOT_FOUND, false),
        ("large", StatusCode::OK, false),
        ("cookie", StatusCode::OK, true),
        ("fine", StatusCode::OK, true),
    ] {
        let path = format!("/api/v1/apis/{id}");
        let before = world.calls().len();
        for _ in 0..2 {
            let answer = world.get(&path).user().send("").await;
            assert_eq!((answer.status, answer.header("set-cookie")), (expected, ""), "{id}");
        }
        assert_eq!(world.calls().len() - before == 1, kept, "{id}");
    }
    let off = World::with(Options::default().set("cache.enabled", false), versions()).await;
    for expected in ["v1", "v2"] {
        let answer = off.get(PATH).user().send("").await;
        assert_eq!((&*name(&answer), status(&answer), answer.header("etag")), (expected, "", ""));
    }
}
