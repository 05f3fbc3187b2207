//! Personal access tokens and keys of service accounts: exchanged at the edge, never passed on.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use proto::project::Api;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{Clock, opaque};

use super::{
    client::{Answer, frame},
    clients::is_after,
    harness::{Options, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const INVALID: &str = "Bearer realm=\"tollgate\", error=\"invalid_token\"";

fn issue(kind: &str) -> String {
    let (token, _): (SecretString, _) = opaque::issue(kind);
    token.expose_secret().to_owned()
}

async fn world(clock: &Clock) -> World {
    let options = Options { clock: clock.clone(), ..Options::default() };
    World::with(options.set("limits.credential_per_minute", 3), |_| ok(&Api::default())).await
}

fn now() -> Clock {
    Clock::fixed(Clock::system().now_ms())
}

async fn rest(world: &World, token: &str) -> Answer {
    world.get("/api/v1/apis/a1").header("authorization", &format!("Bearer {token}")).send("").await
}

async fn grpc(world: &World, token: &str) -> Answer {
    world.grpc(GET_API, &[("authorization", &format!("bearer  {token}"))], &[b""]).await
}

async fn web(world: &World, token: &str) -> Answer {
    let ask = world.post(GET_API).header("content-type", "application/grpc-web+proto");
    ask.header("authorization", &format!("Bearer {token}")).send(frame(b"")).await
}

/// An access token as auth-service makes it for an opaque one with this id.
fn access(world: &World, id: &str) -> String {
    world.token_with(|claims| {
        claims["sid"] = id.into();
        claims["amr"] = serde_json::json!(["pat"]);
    })
}

fn reason(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["reason"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn an_access_token_travels_in_place_of_an_opaque_one() {
    let clock = now();
    let world = world(&clock).await;
    for kind in ["pat", "svc"] {
        let (token, access) = (issue(kind), access(&world, kind));
        world.signer.exchange(&token, &access);
        let (calls, exchanges) = (world.calls().len(), world.exchanges().len());
        assert_eq!(rest(&world, &token).await.status, StatusCode::OK);
        assert_eq!(grpc(&world, &token).await.grpc_status(), "0");
        assert_eq!(web(&world, &token).await.status, StatusCode::OK);
        for call in &world.calls()[calls..] {
            assert_eq!(call.header("authorization"), Some(format!("Bearer {access}").as_str()), "{call:?}");
            assert!(!format!("{call:?}").contains(&token), "the opaque token is passed on");
        }
        assert_eq!((world.calls().len(), world.exchanges().len()), (calls + 3, exchanges + 1));
        let exchange = world.exchanges().pop().unwrap();
        assert_eq!(exchange.header("tollgate-client-address"), Some("127.0.0.1"));
        assert_eq!(exchange.header("authorization"), None);
        // It is remembered for a minute, and costs its address nothing.
        clock.advance_ms(59_999);
        assert_eq!(rest(&world, &token).await.status, StatusCode::OK);
        assert_eq!(world.exchanges().len(), exchanges + 1);
        clock.advance_ms(1);
        for _ in 0..3 {
            assert_eq!(rest(&world, &token).await.status, StatusCode::OK);
            clock.advance_ms(60_000);
        }
        assert_eq!(world.exchanges().len(), exchanges + 4);
    }
}

#[tokio::test]
async fn a_wrong_checksum_asks_nobody() {
    let mut world = world(&now()).await;
    let good = issue("pat");
    world.signer.exchange(&good, &access(&world, "t1"));
    world.stop_auth().await;
    for at in 0..40 {
        let mut broken = good.clone().into_bytes();
        let at = broken.len() - 1 - at;
        broken[at] = if broken[at] == b'x' { b'y' } else { b'x' };
        let answer = rest(&world, &String::from_utf8(broken).unwrap()).await;
        assert_eq!(reason(&answer), (401, "INVALID_TOKEN".to_owned()));
        assert_eq!(answer.header("www-authenticate"), INVALID);
    }
    for broken in ["tgpat_", "tgsvc_x", &good.replace("tgpat", "tgsvc"), &format!("{good}0")] {
        assert_eq!(reason(&rest(&world, broken).await).1, "INVALID_TOKEN", "{broken}");
        assert_eq!(grpc(&world, broken).await.grpc_status(), "16");
    }
    assert!(world.exchanges().is_empty() && world.calls().is_empty());
}

#[tokio::test]
async fn guesses_are_counted_and_then_not_even_asked_about() {
    let clock = now();
    let world = world(&clock).await;
    let (known, unknown) = (issue("pat"), issue("pat"));
    for token in [&known, &unknown] {
        world.signer.exchange(token, &access(&world, token));
    }
    assert_eq!(rest(&world, &known).await.status, StatusCode::OK);
    let guess = issue("svc");
    for _ in 0..5 {
        // The same guess again is answered from memory.
        let answer = rest(&world, &guess).await;
        assert_eq!(reason(&answer), (401, "INVALID_TOKEN".to_owned()));
        assert_eq!(answer.header("www-authenticate"), INVALID);
    }
    assert_eq!(world.exchanges().len(), 2);
    // Many at once do not slip through.
    let guesses: Vec<String> = (0..20).map(|_| issue("pat")).collect();
    let answers = join_all(guesses.iter().map(|guess| rest(&world, guess))).await;
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!((refused, world.exchanges().len()), (18, 4));
    let refused = rest(&world, &issue("pat")).await;
    assert_eq!(reason(&refused), (429, "RATE_LIMITED".to_owned()));
    assert!(is_after(&refused, 20), "{refused:?}");
    assert_eq!(grpc(&world, &issue("svc")).await.grpc_status(), "8");
    // So is a good one that nobody has asked about yet, and a login; one that is known goes on.
    assert_eq!(rest(&world, &unknown).await.status, StatusCode::TOO_MANY_REQUESTS);
    let login = world.post("/api/v1/auth/login").json("{}").await;
    assert_eq!(login.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(rest(&world, &known).await.status, StatusCode::OK);
    assert_eq!(world.exchanges().len(), 4);
    // A guess is bad for ten seconds, not for ever.
    clock.advance_ms(20_000);
    assert_eq!(rest(&world, &unknown).await.status, StatusCode::OK);
    world.signer.exchange(&guess, &access(&world, "t2"));
    assert_eq!(rest(&world, &guess).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_token_is_dead_while_its_exchange_is_remembered() {
    let world = world(&now()).await;
    let (token, other) = (issue("pat"), issue("pat"));
    world.signer.exchange(&token, &access(&world, "t1"));
    world.signer.exchange(&other, &access(&world, "t2"));
    assert_eq!(rest(&world, &token).await.status, StatusCode::OK);
    world.signer.revoke("t1");
    let dead = async { while rest(&world, &token).await.status == StatusCode::OK {} };
    tokio::time::timeout(Duration::from_secs(5), dead).await.expect("revoked within five seconds");
    let answer = rest(&world, &token).await;
    assert_eq!(reason(&answer), (401, "TOKEN_REVOKED".to_owned()));
    assert_eq!(answer.header("www-authenticate"), INVALID);
    assert_eq!(grpc(&world, &token).await.grpc_status(), "16");
    assert_eq!(world.exchanges().len(), 1);
    assert_eq!(rest(&world, &other).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_opaque_token_opens_what_it_may_and_no_more() {
    let world = world(&now()).await;
    let (token, narrow) = (issue("pat"), issue("pat"));
    world.signer.exchange(&token, &access(&world, "t1"));
    let reads = world.token_with(|claims| claims["scope"] = "*:read".into());
    world.signer.exchange(&narrow, &reads);
    let bearer = format!("Bearer {token}");
    let answer = world.post("/api/v1/auth/tokens").header("authorization", &bearer).json("{}").await;
    assert_eq!(reason(&answer), (403, "INTERACTIVE_LOGIN_REQUIRED".to_owned()));
    let bearer = format!("Bearer {narrow}");
    let answer = world.post("/api/v1/apis").header("authorization", &bearer).json("{}").await;
    assert_eq!(reason(&answer), (403, "INSUFFICIENT_SCOPE".to_owned()));
    assert!(world.calls().is_empty());
    // Methods that are not about users do not get it, in whatever form.
    let ask = world.post("/api/v1/auth/login").header("authorization", &format!("Bearer {token}"));
    ask.json("{}").await;
    let ask = world.get("/api/internal/v1/apis/a1").header("authorization", &format!("Bearer {token}"));
    ask.header("api-key", "k").send("").await;
    for call in world.calls() {
        assert_eq!(call.header("authorization"), None);
    }
    // Twice is no token at all.
    let ask = world.get("/api/v1/apis/a1").user().header("authorization", &bearer);
    assert_eq!(reason(&ask.send("").await), (401, "UNAUTHENTICATED".to_owned()));
}

#[tokio::test]
async fn doubt_is_no_proof_against_a_token() {
    let clock = now();
    let mut world = world(&clock).await;
    let (token, known) = (issue("pat"), issue("svc"));
    world.signer.exchange(&token, &access(&world, "t1"));
    world.signer.exchange(&known, &access(&world, "t2"));
    assert_eq!(rest(&world, &known).await.status, StatusCode::OK);
    let address = world.stop_auth().await;
    // As often as it may be tried: what auth-service did not answer costs nothing.
    for _ in 0..5 {
        let answer = rest(&world, &token).await;
        assert_eq!(reason(&answer), (503, "UNAVAILABLE".to_owned()));
        assert!(!answer.header("retry-after").is_empty());
        clock.advance_ms(1_000);
    }
    assert_eq!(grpc(&world, &token).await.grpc_status(), "14");
    assert_eq!(rest(&world, &known).await.status, StatusCode::OK);
    world.start_auth(address).await;
    let back = async {
        while rest(&world, &token).await.status != StatusCode::OK {
            clock.advance_ms(1_000);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("it recovers");
}
