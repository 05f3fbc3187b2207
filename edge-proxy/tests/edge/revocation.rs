//! Tokens that end early: sessions that are revoked, proofs that are too old, and a feed that is lost.

use std::time::Duration;

use http::StatusCode;
use proto::project::Api;
use service_kit::Clock;

use super::{
    client::Answer,
    harness::{Options, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";

async fn rest(world: &World, bearer: &str) -> Answer {
    world.get("/api/v1/apis/a1").header("authorization", bearer).send("").await
}

async fn grpc(world: &World, bearer: &str) -> Answer {
    world.grpc(GET_API, &[("authorization", bearer)], &[b""]).await
}

#[tokio::test]
async fn an_ended_session_is_dead_within_five_seconds() {
    let world = World::start(|_| ok(&Api::default())).await;
    let bearer = world.bearer();
    let other = format!("Bearer {}", world.token_with(|claims| claims["sid"] = "another".into()));
    assert_eq!(rest(&world, &bearer).await.status, StatusCode::OK);
    assert_eq!(grpc(&world, &bearer).await.grpc_status(), "0");
    world.signer.revoke("session-of-u");
    let dead = async {
        while rest(&world, &bearer).await.status == StatusCode::OK {}
        while grpc(&world, &bearer).await.grpc_status() == "0" {}
    };
    tokio::time::timeout(Duration::from_secs(5), dead).await.expect("revoked within five seconds");
    let answer = rest(&world, &bearer).await;
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (StatusCode::UNAUTHORIZED, &"TOKEN_REVOKED".into())
    );
    let challenge = "Bearer realm=\"tollgate\", error=\"invalid_token\"";
    assert_eq!(answer.header("www-authenticate"), challenge);
    assert_eq!(grpc(&world, &bearer).await.grpc_status(), "16");
    // A new token of the same session is as dead; another session lives.
    let calls = world.calls().len();
    assert_eq!(rest(&world, &world.bearer()).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.calls().len(), calls);
    assert_eq!(rest(&world, &other).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_lost_feed_closes_the_door_and_opens_it_again() {
    let clock = Clock::fixed(Clock::system().now_ms());
    let options = Options { clock: clock.clone(), ..Options::default() };
    // Each call is to reach its service.
    let options = options.set("cache.enabled", false);
    let mut world = World::with(options, |_| ok(&Api::default())).await;
    let (bearer, ended) =
        (world.bearer(), format!("Bearer {}", world.token_with(|claims| claims["sid"] = "ended".into())));
    for bearer in [&bearer, &ended] {
        assert_eq!(rest(&world, bearer).await.status, StatusCode::OK);
    }
    let address = world.stop_auth().await;
    // For a while what was heard last holds.
    clock.advance_ms(29_000);
    assert_eq!(rest(&world, &bearer).await.status, StatusCode::OK);
    world.signer.revoke("ended");
    clock.advance_ms(2_000);
    let answer = rest(&world, &bearer).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(grpc(&world, &bearer).await.grpc_status(), "14");
    let served = world.calls().len();
    world.start_auth(address).await;
    let back = async { while rest(&world, &bearer).await.status != StatusCode::OK {} };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("it recovers within ten seconds");
    // What ended meanwhile is not let in, not even for a moment.
    assert_eq!(rest(&world, &ended).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.calls().len(), served + 1);
}

#[tokio::test]
async fn who_was_never_heard_lets_nobody_in() {
    let options = Options { services: vec!["project-service"], ..Options::default() };
    let world = World::with(options, |call| panic!("{} must not be reached", call.path)).await;
    assert_eq!(rest(&world, &world.bearer()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(grpc(&world, &world.bearer()).await.grpc_status(), "14");
}

#[tokio::test]
async fn an_old_proof_is_asked_for_again() {
    let world =
        World::start(|_| ok(&proto::auth::CreatedToken { id: "t1".into(), ..Default::default() })).await;
    let create = async |age: i64| {
        let token = world.token_with(|claims| {
            claims["auth_time"] = (claims["auth_time"].as_i64().unwrap() - age).into();
        });
        world.post("/api/v1/auth/tokens").header("authorization", &format!("Bearer {token}")).json("{}").await
    };
    assert_eq!(create(500).await.status, StatusCode::CREATED);
    let answer = create(700).await;
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (StatusCode::UNAUTHORIZED, &"STEP_UP_REQUIRED".into())
    );
    assert_eq!(
        answer.header("www-authenticate"),
        "Bearer realm=\"tollgate\", error=\"insufficient_user_authentication\", max_age=\"600\""
    );
    assert_eq!(world.calls().len(), 1);
}
