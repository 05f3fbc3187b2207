//! Idempotency keys on their way to services, and what comes back. The services do the rest.

use http::{Method, StatusCode};
use proto::project::{Api, CreateProjectRequest, Project};
use serde_json::json;
use service_kit::{Error, Kind};

use super::{
    client::frame,
    harness::{Call, Options, Reply, World, ok},
};

const KEY: &str = "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"";
const CREATE: &str = "/tollgate.project.v1.ProjectService/CreateProject";

/// Has answered everything before; refuses some names.
fn service(call: &Call) -> Reply {
    if call.path.ends_with("/GetApi") {
        return Reply::Replayed(Box::new(ok(&Api::default())));
    }
    let refusal = match call.decode::<CreateProjectRequest>().name.as_str() {
        "reused" => Error::new(Kind::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED", "used"),
        "in use" => Error::new(Kind::Aborted, "IDEMPOTENCY_KEY_IN_USE", "in use")
            .retry_after(std::time::Duration::from_secs(1)),
        "taken" => {
            let taken = Error::new(Kind::AlreadyExists, "NAME_TAKEN", "taken");
            return Reply::Replayed(Box::new(Reply::Fail(taken.into())));
        }
        _ => return Reply::Replayed(Box::new(ok(&Project { id: "p1".into(), ..Project::default() }))),
    };
    Reply::Fail(refusal.into())
}

fn keys(call: &Call) -> Vec<&str> {
    call.headers.get_all("idempotency-key").iter().map(|key| key.to_str().unwrap()).collect()
}

#[tokio::test]
async fn over_rest_keys_reach_only_the_methods_that_take_one() {
    let world = World::start(service).await;
    let ask = || world.post("/api/v1/projects").user();
    let answer = ask().header("idempotency-key", KEY).json(r#"{"name": "a"}"#).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::CREATED, "/api/v1/projects/p1"));
    assert_eq!(answer.header("idempotency-replayed"), "true");
    assert_eq!(keys(&world.calls()[0]), [KEY]);
    // Several are the service's to refuse.
    ask().header("idempotency-key", "a").header("idempotency-key", "b").json("{}").await;
    assert_eq!(keys(&world.calls()[1]), ["a", "b"]);
    let answer = world.get("/api/v1/apis/a1").user().header("idempotency-key", KEY).send("").await;
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (StatusCode::OK, ""), "{answer:?}");
    assert!(keys(&world.calls()[2]).is_empty());
}

#[tokio::test]
async fn refusals_have_their_statuses() {
    let world = World::start(service).await;
    for (name, status, code, retry, replayed) in [
        ("reused", StatusCode::UNPROCESSABLE_ENTITY, "FAILED_PRECONDITION", "", ""),
        ("in use", StatusCode::CONFLICT, "ABORTED", "1", ""),
        ("taken", StatusCode::CONFLICT, "ALREADY_EXISTS", "", "true"),
    ] {
        let body = json!({"name": name}).to_string();
        let answer = world.post("/api/v1/projects").user().header("idempotency-key", KEY).json(body).await;
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{answer:?}");
        assert_eq!(answer.json()["status"], status.as_u16());
        assert_eq!((answer.header("retry-after"), answer.header("idempotency-replayed")), (retry, replayed));
    }
    // gRPC knows codes only.
    let message =
        prost::Message::encode_to_vec(&CreateProjectRequest { name: "reused".into(), ..Default::default() });
    let headers = [("authorization", &*world.bearer()), ("idempotency-key", KEY)];
    assert_eq!(world.grpc(CREATE, &headers, &[&message]).await.grpc_status(), "9");
}

#[tokio::test]
async fn in_every_protocol_the_key_goes_and_the_mark_comes() {
    let world = World::start(service).await;
    let bearer = world.bearer();
    let native = world.grpc(CREATE, &[("authorization", &*bearer), ("idempotency-key", KEY)], &[b""]).await;
    let web = world.post(CREATE).user().header("content-type", "application/grpc-web+proto");
    let web = web.header("idempotency-key", KEY).send(frame(b"")).await;
    let connect = world.post(CREATE).user().header("idempotency-key", KEY).json("{}").await;
    let part = json!({"id": "p", "method": "POST", "path": "/api/v1/projects", "body": {},
        "headers": {"Idempotency-Key": KEY}});
    let batch = world.post("/api/v1/batch").user().json(json!({"requests": [part]}).to_string()).await;
    for answer in [&native, &web, &connect] {
        assert_eq!(
            (answer.status, answer.header("idempotency-replayed")),
            (StatusCode::OK, "true"),
            "{answer:?}"
        );
    }
    assert_eq!(batch.json()["responses"][0]["headers"]["idempotency-replayed"], "true", "{batch:?}");
    let calls = world.calls();
    assert!(calls.len() == 4 && calls.iter().all(|call| keys(call) == [KEY]), "{calls:?}");
}

#[tokio::test]
async fn browsers_may_send_keys_and_read_the_mark() {
    const ORIGIN: &str = "https://app.example.com";
    let options = Options::default().set("cors.allowed_origins", format!("[\"{ORIGIN}\"]"));
    let world = World::with(options, service).await;
    let ask = world.ask(Method::OPTIONS, "/api/v1/projects").header("origin", ORIGIN);
    let ask = ask.header("access-control-request-method", "POST");
    let answer = ask.header("access-control-request-headers", "idempotency-key").send("").await;
    assert!(answer.header("access-control-allow-headers").contains("idempotency-key"), "{answer:?}");
    let answer = world.post("/api/v1/projects").user().header("origin", ORIGIN).json("{}").await;
    assert!(answer.header("access-control-expose-headers").contains("idempotency-replayed"), "{answer:?}");
}
