use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use proto::{auth::TokenPair, project::Api};
use serde_json::{Value, json};
use service_kit::{Error, Kind};
use tonic::Status;

use super::{
    client::Answer,
    harness::{Options, Reply, World, ok},
    rogue::until,
};

fn unused(call: &super::harness::Call) -> Reply {
    panic!("{} must not be reached", call.path)
}

/// A problem document with this status, code and reason; returns it.
fn kind_of(reason: &str) -> &'static str {
    match reason {
        "RATE_LIMITED" => "https://iana.org/assignments/http-problem-types#quota-exceeded",
        _ => "about:blank",
    }
}

fn problem(answer: &Answer, status: u16, code: &str, reason: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert_eq!(
        (problem["code"].as_str(), problem["reason"].as_str()),
        (Some(code), Some(reason)),
        "{problem}"
    );
    assert_eq!(problem["title"].as_str(), answer.status.canonical_reason());
    assert!(!problem["detail"].as_str().unwrap().is_empty() && problem["type"] == kind_of(reason));
    problem
}

#[tokio::test]
async fn what_a_service_says_is_told_with_its_fields() {
    let world =
        World::start(|_| Reply::Fail(Error::field("operations[3].request.path", "is required").into())).await;
    let answer = world.post("/api/v1/apis?x=").user().json("{}").await;
    problem(&answer, 400, "INVALID_ARGUMENT", "INVALID_FIELD");
    let answer = world.post("/api/v1/apis").user().json("{}").await;
    let problem = problem(&answer, 400, "INVALID_ARGUMENT", "INVALID_FIELD");
    assert_eq!(problem["instance"], "/api/v1/apis");
    assert_eq!(problem["errors"], json!([{"field": "operations[3].request.path", "message": "is required"}]));
}

#[tokio::test]
async fn every_kind_has_its_status() {
    let kinds = [
        (Kind::NotFound, 404),
        (Kind::AlreadyExists, 409),
        (Kind::FailedPrecondition, 409),
        (Kind::Aborted, 409),
        (Kind::PermissionDenied, 403),
        (Kind::ResourceExhausted, 429),
        (Kind::Unavailable, 503),
        (Kind::Internal, 500),
        (Kind::Unimplemented, 501),
    ];
    for (kind, status) in kinds {
        let world = World::start(move |_| {
            let error =
                Error::new(kind, "SOME_REASON", "a sentence").retry_after(Duration::from_millis(2_500));
            Reply::Fail(error.into())
        })
        .await;
        let answer = world.get("/api/v1/apis/a1").user().send("").await;
        problem(&answer, status, kind.name(), "SOME_REASON");
        assert_eq!(answer.header("retry-after"), "3");
    }
}

#[tokio::test]
async fn what_is_not_ours_is_not_shown() {
    let world = World::start(|_| Reply::Fail(Status::internal("dsn=postgres://u:p@h"))).await;
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    let problem = problem(&answer, 500, "INTERNAL", "INTERNAL");
    assert!(!problem.to_string().contains("postgres"), "{problem}");
}

#[tokio::test]
async fn nobody_is_401_with_a_challenge() {
    let world = World::start(|_| ok(&Api::default())).await;
    let expired = world.token_with(|claims| {
        claims["exp"] = json!(claims["iat"].as_i64().unwrap() - 100);
        claims["iat"] = json!(claims["iat"].as_i64().unwrap() - 400);
    });
    let cases = [
        (None, "UNAUTHENTICATED", "Bearer realm=\"tollgate\""),
        (Some("Basic eDp5".to_owned()), "UNAUTHENTICATED", "Bearer realm=\"tollgate\""),
        (
            Some("Bearer a.b.c".to_owned()),
            "INVALID_TOKEN",
            "Bearer realm=\"tollgate\", error=\"invalid_token\"",
        ),
        (
            Some(format!("Bearer {expired}")),
            "TOKEN_EXPIRED",
            "Bearer realm=\"tollgate\", error=\"invalid_token\", error_description=\"expired\"",
        ),
    ];
    for (authorization, reason, challenge) in cases {
        let ask = world.get("/api/v1/apis/a1?unknown=1");
        let ask = match &authorization {
            Some(value) => ask.header("authorization", value),
            None => ask,
        };
        let answer = ask.send("").await;
        problem(&answer, 401, "UNAUTHENTICATED", reason);
        assert_eq!(answer.header("www-authenticate"), challenge);
    }
    let narrow = world.token_with(|claims| claims["scope"] = json!("profile:read"));
    let answer =
        world.get("/api/v1/apis/a1").header("authorization", &format!("Bearer {narrow}")).send("").await;
    problem(&answer, 403, "PERMISSION_DENIED", "INSUFFICIENT_SCOPE");
    assert!(answer.header("www-authenticate").contains("insufficient_scope"));
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn the_gateways_side_has_its_own_form() {
    let world = World::start(|_| Reply::Fail(Error::not_found("API").into())).await;
    let answer = world.get("/api/internal/v1/apis/a1").send("").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.header("www-authenticate"), "ApiKey realm=\"tollgate\"");
    assert_eq!(
        answer.json(),
        json!({"code": 401, "message": "Unauthorized", "description": "a gateway's token is required in `api-key`"})
    );
    let answer = world.get("/api/internal/v1/apis/a1").header("api-key", "k").send("").await;
    assert_eq!(answer.json(), json!({"code": 404, "message": "Not Found", "description": "no such API"}));
    // A user's token does not open it, and does not travel.
    let answer = world.get("/api/internal/v1/apis/a1").user().send("").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    world.get("/api/internal/v1/apis/a1").user().header("api-key", "k").send("").await;
    assert_eq!(world.calls()[1].header("authorization"), None);
    assert_eq!(world.get("/internal/gateway/.well-known").send("").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods() {
    let world = World::start(unused).await;
    for path in ["/", "/api", "/api/v1/apis/", "/api/v1/apis/a/b/c", "/api/v2/apis", "/apis/a1"] {
        problem(&world.get(path).send("").await, 404, "NOT_FOUND", "UNKNOWN_ROUTE");
    }
    // Paths of RPCs are no REST routes: they speak Connect, and a SERVICE method is not there.
    let answer = world.post("/tollgate.project.v1.AccessService/Check").json("{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (501, &json!("unimplemented")));

    let answer = world.ask(Method::PATCH, "/api/v1/apis/a1").user().json("{}").await;
    problem(&answer, 405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED");
    assert_eq!(answer.header("allow"), "DELETE, GET, HEAD, OPTIONS, PUT");
    let answer = world.get("/api/v1/apis/import").send("").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "OPTIONS, POST"));
    let answer = world.ask(Method::OPTIONS, "/api/v1/apis/a1").send("").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (204, "DELETE, GET, HEAD, OPTIONS, PUT"));
    let answer = world.ask(Method::OPTIONS, "/nowhere").send("").await;
    assert_eq!(answer.status.as_u16(), 404);
}

#[tokio::test]
async fn wrong_queries_are_named() {
    let world = World::start(unused).await;
    let cases = [
        ("colour=red", "colour"),
        ("limit=many", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=1&offset=99999999999", "offset"),
        ("projectId=other", "projectId"),
        ("project_id=other", "project_id"),
        ("projectId.x=other", "projectId.x"),
        ("%F0%28=1", "\u{fffd}("),
    ];
    for (query, field) in cases {
        let answer = world.get(&format!("/api/v1/projects/p1/apis?{query}")).user().send("").await;
        let problem = problem(&answer, 400, "INVALID_ARGUMENT", "INVALID_FIELD");
        if field != "\u{fffd}(" {
            assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        }
    }
    // All of them at once.
    let answer = world.get("/api/v1/apis?a=1&limit=x").user().send("").await;
    assert_eq!(answer.json()["errors"].as_array().unwrap().len(), 2);
    // Not UTF-8: in the query, in the path.
    let answer = world.get("/api/v1/apis?projectId=%ff").user().send("").await;
    assert_eq!(answer.json()["errors"][0]["field"], "projectId");
    let answer = world.get("/api/v1/apis/%ff").user().send("").await;
    assert_eq!(answer.json()["errors"][0]["field"], "apiId");
    // What the body sets, the query does not.
    let answer = world.post("/api/v1/auth/login?email=x").json("{}").await;
    assert_eq!(answer.json()["errors"][0]["field"], "email");
    let answer = world.post("/api/v1/apis?api.name=x").user().json("{}").await;
    assert_eq!(answer.json()["errors"][0]["field"], "api.name");
    let time =
        world.get("/api/internal/v1/deployments?since=yesterday").header("api-key", "k").send("").await;
    assert_eq!(time.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn wrong_bodies_are_named() {
    let world = World::start(unused).await;
    let deploy = "/api/v1/apis/a1/deploy-revision";
    let cases: &[(&str, &str, &[u8])] = &[
        ("/api/v1/apis", "nmae", br#"{"nmae":"x"}"#),
        ("/api/v1/apis", "operations[1].request.path", br#"{"operations":[{},{"request":{"path":5}}]}"#),
        ("/api/v1/apis", "security.apiKey.colour", br#"{"security":{"apiKey":{"colour":"red"}}}"#),
        ("/api/v1/apis", "name", b"{\"name\":\"\xff\"}"),
        ("/api/v1/apis", "body", b"[]"),
        ("/api/v1/apis", "lifeCycleStatus", br#"{"lifeCycleStatus":"DREAMT"}"#),
        (deploy, "deployments[0].colour", br#"[{"colour":"red"}]"#),
        (deploy, "deployments[1].gatewayId", br#"[{},{"gatewayId":7}]"#),
        (deploy, "body", br#"{"gatewayId":"g"}"#),
        ("/api/v1/organizations", "handle", br#"{"handle":[]}"#),
        ("/api/v1/organizations", "nmae", br#"{"nmae":"x"}"#),
    ];
    for (path, field, body) in cases {
        let answer = world.post(path).user().json(body.to_vec()).await;
        let problem = problem(&answer, 400, "INVALID_ARGUMENT", "INVALID_FIELD");
        assert_eq!(problem["errors"][0]["field"], *field, "{problem}");
    }
    // Not JSON at all, and no way out of the field.
    for body in ["{", "nope", "{\"name\":", "{}{}", "1},\"projectId\":\"p\"", "[],\"apiId\":\"x\""] {
        for path in ["/api/v1/apis", "/api/v1/organizations", deploy] {
            let answer = world.post(path).user().json(body).await;
            problem(&answer, 400, "INVALID_ARGUMENT", "MALFORMED_JSON");
        }
    }
    let answer = world.get("/api/v1/apis").user().json("{}").await;
    problem(&answer, 400, "INVALID_ARGUMENT", "UNEXPECTED_BODY");
    let answer = world.post("/api/v1/apis").user().header("content-type", "text/plain").send("{}").await;
    problem(&answer, 415, "INVALID_ARGUMENT", "UNSUPPORTED_MEDIA_TYPE");
    let answer = world.post("/api/v1/apis").user().send("{}").await;
    problem(&answer, 415, "INVALID_ARGUMENT", "UNSUPPORTED_MEDIA_TYPE");
    // Nested beyond reason.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = world.post("/api/v1/apis").user().json(deep).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_slow_service_is_504_and_the_call_is_cancelled() {
    let world = World::start(|_| Reply::Hang).await;
    // The deadline of the policy is 15 s: too long for a test. The client that leaves cancels too.
    for (count, h1) in [(1, false), (2, true)] {
        let ask = world.get("/api/v1/apis/a1").user();
        tokio::select! {
            answer = if h1 { ask.h1() } else { ask }.send("") => panic!("nobody answers: {answer:?}"),
            () = until("the service has it", async || world.calls().len() == count) => {}
        }
        world.given_up(count).await;
    }
}

#[tokio::test]
async fn late_is_504() {
    let late =
        World::start(|_| Reply::Fail(Status::deadline_exceeded("the deadline of the call has passed"))).await;
    let answer = late.get("/api/v1/apis/a1").user().send("").await;
    problem(&answer, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED");

    // The edge's own watch: an answer that begins in time and does not end.
    let world = World::start(|_| Reply::Stall(Vec::new())).await;
    let started = Instant::now();
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    problem(&answer, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED");
    assert!(started.elapsed().as_secs() >= 14);
    world.given_up(1).await;
}

#[tokio::test]
async fn a_service_that_is_gone_is_503() {
    let mut world = World::start(|_| Reply::Abort(b"\x0a\x01x".to_vec())).await;
    let ready = tokio::net::TcpStream::connect(world.edge.admin_addr).await.unwrap();
    assert!(http_get(ready, "/readyz").await.starts_with("HTTP/1.1 200"));
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    problem(&answer, 503, "UNAVAILABLE", "UNAVAILABLE");
    world.stop_services().await;
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    problem(&answer, 503, "UNAVAILABLE", "UNAVAILABLE");
    assert_eq!(answer.header("retry-after"), "1");

    // Without keys nobody can be known: that is not the caller's fault.
    let options = Options { services: vec![], ..Options::default() };
    let world = World::with(options, unused).await;
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    problem(&answer, 503, "UNAVAILABLE", "UNAVAILABLE");
    let ready = tokio::net::TcpStream::connect(world.edge.admin_addr).await.unwrap();
    let ready = http_get(ready, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("auth-service"), "{ready}");
}

async fn http_get(mut socket: tokio::net::TcpStream, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn credentials_cannot_be_tried_without_end() {
    let world =
        World::with(Options::default().set("limits.credential_per_minute", 2), |_| ok(&TokenPair::default()))
            .await;
    for _ in 0..2 {
        assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::OK);
    }
    let answer = world.post("/api/v1/auth/login/second-factor").json("{}").await;
    problem(&answer, 429, "RESOURCE_EXHAUSTED", "RATE_LIMITED");
    let after: u32 = answer.header("retry-after").parse().unwrap();
    assert!((1..=33).contains(&after));
    assert_eq!(answer.policies().0, "\"credential\";q=2;w=60");
    let told = answer.header("ratelimit").strip_prefix("\"credential\";r=0;t=").unwrap().to_owned();
    assert!(told.parse::<u32>().unwrap() <= after, "who heeds Retry-After is not early: {answer:?}");
    let answer = world.grpc("/tollgate.auth.v1.AuthService/Login", &[], &[b""]).await;
    assert_eq!(answer.grpc_status(), "8");
    // A forged address is no other address.
    let ask = world.post("/api/v1/auth/login").header("x-forwarded-for", "192.0.2.1");
    assert_eq!(ask.json("{}").await.status, StatusCode::TOO_MANY_REQUESTS);
    let keys = world.get("/.well-known/jwks.json").send("").await;
    assert_eq!(keys.status, StatusCode::OK);
    assert_eq!(keys.header("cache-control"), "public, max-age=300");
    assert_eq!(world.calls().len(), 2);
}
