//! What the edge answers itself: health and the OpenAPI document.

use http::{Method, StatusCode};
use serde_json::json;

use super::harness::{Options, Reply, World};

#[tokio::test]
async fn health_names_what_is_down() {
    let mut world = World::start(|_| Reply::Hang).await;
    let answer = world.get("/health").send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let up = json!({"status": "ok", "services": {"auth": "up", "project": "up", "gateway": "up"}});
    assert_eq!(answer.json(), up);
    assert_eq!(answer.header("cache-control"), "no-store");
    let head = world.ask(Method::HEAD, "/health").send("").await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    world.stop_services().await;

    let options = Options { services: vec!["auth-service", "gateway-service"], ..Options::default() };
    let world = World::with(options, |_| Reply::Hang).await;
    let answer = world.get("/health").h1().send("").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let degraded =
        json!({"status": "degraded", "services": {"auth": "up", "project": "down", "gateway": "up"}});
    assert_eq!(answer.json(), degraded);
    assert!(world.calls().is_empty(), "health asks grpc.health.v1 and nothing else");
}

#[tokio::test]
async fn the_openapi_document_is_served() {
    let world = World::start(|_| Reply::Hang).await;
    let answer = world.get("/openapi.json").header("accept-encoding", "gzip").send("").await;
    assert_eq!((answer.status, answer.header("content-encoding")), (StatusCode::OK, "gzip"));
    let answer = world.get("/openapi.json").send("").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json()["openapi"], "3.1.0");
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    let answer = world.ask(Method::DELETE, "/openapi.json").send("").await;
    assert_eq!(
        (answer.status, answer.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, OPTIONS")
    );
}
