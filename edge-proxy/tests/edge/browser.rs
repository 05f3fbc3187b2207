use http::{Method, StatusCode};
use proto::auth::TokenPair;

use super::harness::{Options, World, ok};

const ORIGIN: &str = "https://app.example.com";

async fn world() -> World {
    let options = Options::default().set("cors.allowed_origins", format!("[\"{ORIGIN}\"]"));
    World::with(options, |_| ok(&TokenPair::default())).await
}

#[tokio::test]
async fn preflights_are_answered_before_anybody_is_known() {
    let world = world().await;
    let ask = |origin| {
        let ask = world.ask(Method::OPTIONS, "/api/v1/apis/a1").header("origin", origin);
        ask.header("access-control-request-method", "DELETE")
            .header("access-control-request-headers", "authorization,content-type")
    };
    let answer = ask(ORIGIN).send("").await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), ORIGIN);
    assert!(answer.header("access-control-allow-methods").contains("DELETE"));
    assert!(answer.header("access-control-allow-headers").contains("authorization"));
    assert!(answer.header("vary").to_lowercase().contains("origin"));
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert_eq!(answer.header("access-control-max-age"), "600");
    for stranger in
        ["https://evil.example", "null", "https://app.example.com.evil.example", "http://app.example.com"]
    {
        let answer = ask(stranger).send("").await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{stranger}");
        assert_eq!(answer.header("access-control-allow-credentials"), "", "{stranger}");
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn preflights_are_no_calls_for_any_limit() {
    let options = Options::default().set("cors.allowed_origins", format!("[\"{ORIGIN}\"]"));
    let world = World::with(options.set("limits.address_per_minute", 1), |_| ok(&TokenPair::default())).await;
    for h1 in [false, true] {
        for _ in 0..5 {
            let ask = world.ask(Method::OPTIONS, "/api/v1/auth/login").header("origin", ORIGIN);
            let ask = ask.header("access-control-request-method", "POST");
            let answer = if h1 { ask.h1() } else { ask }.send("").await;
            assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), ORIGIN);
        }
    }
    let login = async || world.post("/api/v1/auth/login").header("origin", ORIGIN).json("{}").await;
    assert_eq!(login().await.status, StatusCode::OK, "the one that there is");
    let refused = login().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    assert_eq!(refused.header("access-control-allow-origin"), ORIGIN, "scripts can read that too");
}

#[tokio::test]
async fn scripts_can_read_answers_and_errors() {
    let world = world().await;
    let answer = world.post("/api/v1/auth/login").header("origin", ORIGIN).json("{}").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (StatusCode::OK, ORIGIN));
    for name in
        ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "location", "retry-after"]
    {
        assert!(answer.header("access-control-expose-headers").contains(name), "{name}");
    }
    for path in ["/nowhere", "/api/v1/apis/a1", "/a//b"] {
        let answer = world.get(path).header("origin", ORIGIN).send("").await;
        assert!(answer.status.is_client_error());
        assert_eq!(answer.header("access-control-allow-origin"), ORIGIN, "{path}");
    }
    let answer = world.post("/api/v1/auth/login").header("origin", "null").json("{}").await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    assert!(answer.header("vary").to_lowercase().contains("origin"));
}

#[tokio::test]
async fn every_answer_tells_browsers_to_distrust() {
    let world = world().await;
    let answers = [
        world.post("/api/v1/auth/login").json("{}").await,
        world.get("/nowhere").send("").await,
        world.get("/api/v1/apis/a1").h1().send("").await,
        world.ask(Method::OPTIONS, "/api/v1/apis/a1").send("").await,
        world.grpc("/tollgate.auth.v1.AuthService/Login", &[], &[b""]).await,
    ];
    for answer in answers {
        let expected = [
            ("strict-transport-security", "max-age=63072000; includeSubDomains"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("server", ""),
        ];
        for (name, value) in expected {
            assert_eq!(answer.header(name), value, "{name} of {answer:?}");
        }
        let id = answer.header("x-request-id");
        assert!(service_kit::id::is_id(id) && id.as_bytes()[14] == b'7', "{id}");
    }
}

#[tokio::test]
async fn origins_are_exact_or_refused_at_the_start() {
    for bad in ["*", "null", "https://app.example.com/", "app.example.com", "https://APP.example.com:x"] {
        let mut layers = service_kit::config::Layers::new(edge_proxy::DEFAULTS, None, "NOTHING__").unwrap();
        let folder = tempfile::tempdir().unwrap();
        layers = layers
            .set("tls.dev_ca_dir", &format!("\"{}\"", folder.path().display()))
            .set("cors.allowed_origins", &format!("[\"{bad}\"]"));
        service_kit::tls::install_provider();
        let listeners = service_kit::server::Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let error =
            edge_proxy::start(service_kit::config::Source::new(move || Ok(layers.clone())), listeners)
                .await
                .unwrap_err();
        assert!(error.to_string().contains("cors.allowed_origins"), "{bad}: {error:#}");
    }
}
