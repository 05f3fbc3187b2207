//! Answers to calls of Connect as GET are kept like those over REST.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::{Method, StatusCode};
use prost::Message as _;
use proto::project::{Api, GetApiRequest};
use service_kit::Clock;

use super::{
    client::{Answer, Ask},
    harness::{Call, Options, Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const JSON: &str = "connect=v1&encoding=json&message=%7B%22apiId%22:%22a1%22%7D";
/// The same message, written in other ways.
const JSON_TOO: &str = "message=eyJhcGlJZCI6ICJhMSJ9&base64=1&encoding=json";
const PROTO: &str = "encoding=proto&base64=1&message=CgJhMQ";
const REST: &str = "/api/v1/apis/a1";

/// A service whose every answer is another.
fn versions() -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |_| {
        let name = format!("v{}", count.fetch_add(1, Ordering::SeqCst) + 1);
        ok(&Api { id: "a1".into(), project_id: "p1".into(), name, ..Api::default() })
    }
}

async fn world() -> (World, Clock) {
    let clock = Clock::fixed(Clock::system().now_ms());
    (World::with(Options { clock: clock.clone(), ..Options::default() }, versions()).await, clock)
}

fn ask<'w>(world: &'w World, query: &str, user: &str) -> Ask<'w> {
    let bearer = format!("Bearer {}", world.token_with(|claims| claims["sub"] = user.into()));
    world.get(&format!("{GET_API}?{query}")).header("authorization", &bearer)
}

async fn get(world: &World, query: &str, user: &str) -> Answer {
    ask(world, query, user).send("").await
}

fn name(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    match answer.header("content-type") {
        "application/proto" => Api::decode(answer.body.clone()).unwrap().name,
        _ => answer.json()["name"].as_str().unwrap().to_owned(),
    }
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status")
}

#[tokio::test]
async fn an_answer_is_given_again_in_its_form_and_to_its_user_only() {
    let (world, clock) = world().await;
    let first = get(&world, JSON, "u").await;
    assert_eq!((&*name(&first), status(&first)), ("v1", "edge; fwd=uri-miss; stored; ttl=10"));
    let read: GetApiRequest = world.call().decode();
    assert_eq!(read.api_id, "a1");
    clock.advance_ms(4_000);
    for h1 in [false, true] {
        let ask = ask(&world, JSON_TOO, "u");
        let again = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!((&*name(&again), status(&again)), ("v1", "edge; hit; ttl=6"));
        assert_eq!((again.header("etag"), again.header("age")), (first.header("etag"), "4"));
        assert_eq!(
            (again.header("cache-control"), again.header("content-type")),
            ("private, no-cache", "application/json")
        );
        assert!(again.header("vary").contains("authorization"), "{again:?}");
    }
    let known = ask(&world, JSON, "u").header("if-none-match", first.header("etag")).send("").await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0), "{known:?}");
    // Other bytes are another answer, and so is another user's.
    assert_eq!(name(&get(&world, PROTO, "u").await), "v2");
    let again = get(&world, PROTO, "u").await;
    assert_eq!((&*name(&again), status(&again)), ("v2", "edge; hit; ttl=10"));
    assert_eq!(name(&get(&world, JSON, "v").await), "v3");
    assert_eq!(name(&world.get(REST).user().send("").await), "v4");
    assert_eq!(world.get(&format!("{GET_API}?{JSON}")).send("").await.status, StatusCode::UNAUTHORIZED);
    // A POST is asked anew.
    let post = world.post(GET_API).user().json(r#"{"apiId":"a1"}"#).await;
    assert_eq!((&*name(&post), status(&post)), ("v5", ""));
    let fresh = ask(&world, JSON, "u").header("cache-control", "no-cache").send("").await;
    assert_eq!((&*name(&fresh), status(&fresh)), ("v6", "edge; fwd=request; stored; ttl=10"));
}

#[tokio::test]
async fn what_a_path_of_rest_changes_is_wrong_over_connect_too() {
    let (world, _) = world().await;
    assert_eq!(
        (name(&get(&world, JSON, "u").await), name(&get(&world, JSON, "u").await)),
        ("v1".into(), "v1".into())
    );
    let other = format!("Bearer {}", world.token_with(|claims| claims["sub"] = "v".into()));
    let put = async |path: &str| {
        let ask = world.ask(Method::PUT, path).header("authorization", &other);
        assert_eq!(ask.json("{}").await.status, StatusCode::OK);
    };
    put("/api/v1/apis/a2").await;
    assert_eq!(name(&get(&world, JSON, "u").await), "v1", "another one changed");
    put(REST).await;
    assert_eq!(name(&get(&world, JSON, "u").await), "v4");
    // And the user's own writes, over whatever protocol.
    let update = world.post("/tollgate.project.v1.ApiService/UpdateApi").user().json("{}").await;
    assert_eq!(update.status, StatusCode::OK, "{update:?}");
    assert_eq!(name(&get(&world, JSON, "u").await), "v6");
}

#[tokio::test]
async fn while_the_service_is_down_the_last_answer_is_given() {
    let clock = Clock::fixed(Clock::system().now_ms());
    let calls = AtomicUsize::new(0);
    let options = Options { clock: clock.clone(), ..Options::default() };
    let mut world = World::with(options, move |call| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => ok(&Api { id: "a1".into(), name: "v1".into(), ..Api::default() }),
        _ if call.header("x-fails") == Some("with-a-word") => Reply::Fail(tonic::Status::not_found("gone")),
        _ => Reply::Fail(tonic::Status::unavailable("busy elsewhere")),
    })
    .await;
    assert_eq!(name(&get(&world, JSON, "u").await), "v1");
    clock.advance_ms(100_000);
    let expected = "edge; fwd=stale; ttl=-90; detail=stale-if-error";
    let stale = get(&world, JSON, "u").await;
    assert_eq!((&*name(&stale), status(&stale)), ("v1", expected));
    // A service that answers is not down, and its word stays its own.
    let gone = ask(&world, JSON, "u").header("x-fails", "with-a-word").send("").await;
    assert_eq!(
        (gone.status, gone.json()["code"].as_str()),
        (StatusCode::NOT_FOUND, Some("not_found")),
        "{gone:?}"
    );
    assert_eq!(gone.json()["message"], "gone");
    let nothing = get(&world, PROTO, "u").await;
    assert_eq!(
        (nothing.status, nothing.json()["message"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("busy elsewhere"))
    );
    world.stop_service("project-service").await;
    let stale = tokio::time::timeout(Duration::from_secs(30), get(&world, JSON, "u")).await.unwrap();
    assert_eq!((&*name(&stale), status(&stale)), ("v1", expected));
}
