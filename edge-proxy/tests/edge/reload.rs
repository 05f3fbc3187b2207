//! Settings that change under load: nobody notices, and what is not good is refused.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http::StatusCode;
use proto::{auth::TokenPair, project::Api};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use service_kit::server::Running;

use super::{
    client::tls,
    harness::{Call, Options, Reply, World, ok},
};

fn api(call: &Call) -> Reply {
    if call.path.contains("/Get") { ok(&Api::default()) } else { ok(&TokenPair::default()) }
}

/// Signs certificates for localhost: clients trust all of them.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), cert)
    }

    /// Writes a new certificate and its key into a folder.
    fn certify(&self, folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(folder.join("cert.pem"), params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
    }
}

/// A world whose certificate is in files.
async fn world(folder: &Path, authority: &Authority, options: Options) -> World {
    authority.certify(folder);
    let quoted = |name| format!("\"{}\"", folder.join(name).display());
    let options = options.set("public_tls.cert", quoted("cert.pem")).set("public_tls.key", quoted("key.pem"));
    let mut world = World::with(options, api).await;
    world.ca_file = folder.join("trusted.pem");
    std::fs::write(&world.ca_file, &authority.1).unwrap();
    world
}

/// With files that are looked at when somebody asks.
fn when_asked() -> Options {
    Options::default().set("reload.check_ms", 0)
}

/// What the edge says of its last reload.
async fn reload(world: &World) -> serde_json::Value {
    let answer = world.admin("POST", "/reload").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

async fn leaf(world: &World) -> Vec<u8> {
    let stream = tls(world, &["h2"]).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_fail_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let world = Arc::new(world(folder.path(), &authority, when_asked()).await);
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..50).map(|number| {
        let (world, done, answered) = (world.clone(), done.clone(), answered.clone());
        tokio::spawn(async move {
            // Half of them keep a connection for all their calls, the others make one for each.
            let mut kept = match number % 4 {
                0 => Some(super::restart::Kept::h1(&world).await),
                1 => Some(super::restart::Kept::h2(&world).await),
                _ => None,
            };
            while !done.load(Ordering::Relaxed) {
                let status = match &mut kept {
                    Some(kept) => kept.get("/api/v1/apis/a1", &world.bearer()).await,
                    None => {
                        let ask = world.get("/api/v1/apis/a1").user();
                        let ask = if number % 4 == 2 { ask.h1() } else { ask };
                        ask.send("").await.status
                    }
                };
                assert_eq!(status, StatusCode::OK, "client {number}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for generation in 1..=100_u32 {
        authority.certify(folder.path());
        let limit = (1_000_000 + generation).to_string();
        let class = if generation % 2 == 0 { "heavy" } else { "default" };
        world.change(&[
            ("limits.user_per_minute", &limit),
            ("limits.token_per_minute", &limit),
            ("limits.address_per_minute", &limit),
            ("limits.heavy_per_minute", &limit),
            ("routes.class", &format!("{{\"tollgate.project.v1.ApiService/GetApi\" = \"{class}\"}}")),
            ("cors.allowed_origins", &format!("[\"https://app{generation}.example.com\"]")),
        ]);
        let before = answered.load(Ordering::Relaxed);
        let status = reload(&world).await;
        assert_eq!((&status["generation"], &status["refused"]), (&generation.into(), &0.into()), "{status}");
        // Somebody is served by each of them.
        while answered.load(Ordering::Relaxed) == before && !clients.iter().any(|client| client.is_finished())
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in join_all(clients).await {
        client.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > 100);
    // The last one counts.
    let told = world.get("/api/v1/apis/a1").user().send("").await;
    assert!(told.header("ratelimit-policy").contains("\"heavy\";q=1000100;w=60"), "{told:?}");
    let page = world.get("/api/v1/apis/a1").user().header("origin", "https://app100.example.com");
    assert_eq!(page.send("").await.header("access-control-allow-origin"), "https://app100.example.com");
}

#[tokio::test]
async fn what_is_not_good_is_refused_and_the_old_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), &Authority::new(), when_asked()).await;
    let first = leaf(&world).await;
    let good = std::fs::read(folder.path().join("key.pem")).unwrap();
    // The key of another certificate.
    let other = KeyPair::generate().unwrap();
    std::fs::write(folder.path().join("key.pem"), other.serialize_pem()).unwrap();
    let status = reload(&world).await;
    assert!(status["error"].as_str().unwrap().contains("[public_tls]"), "{status}");
    std::fs::write(folder.path().join("key.pem"), good).unwrap();
    for (refused, (key, value)) in [
        ("trusted_proxies", "[\"10.0.0.0/99\"]"),
        ("proxy_protocol", "[\"x\"]"),
        ("cors.allowed_origins", "[\"*\"]"),
        ("limits.user_per_minute", "\"many\""),
        ("limits.unknown", "1"),
        ("routes.disabled", "[\"no.such.Service/Method\"]"),
        ("routes.class", "{\"tollgate.project.v1.ApiService/GetApi\" = \"whatever\"}"),
    ]
    .into_iter()
    .enumerate()
    {
        world.change(&[(key, value), ("limits.credential_per_minute", "1")]);
        let status = reload(&world).await;
        let name = key.rsplit('.').next().unwrap();
        assert!(status["error"].as_str().unwrap().contains(name), "{key}: {status}");
        assert_eq!(
            (&status["generation"], &status["refused"]),
            (&0.into(), &(refused + 2).into()),
            "{status}"
        );
    }
    assert_eq!(leaf(&world).await, first);
    for _ in 0..3 {
        assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::OK);
    }
    world.change(&[("limits.credential_per_minute", "1")]);
    assert_eq!(reload(&world).await["error"], serde_json::Value::Null);
    assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::OK);
    assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn files_are_looked_at_and_methods_are_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let world = world(folder.path(), &authority, Options::default().set("reload.check_ms", 20)).await;
    let first = leaf(&world).await;
    authority.certify(folder.path());
    let seen = async {
        while leaf(&world).await == first {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the new certificate is served");
    world.change(&[("routes.disabled", "[\"tollgate.auth.v1.AuthService/Login\"]"), ("reflection", "true")]);
    let off = async {
        while world.post("/api/v1/auth/login").json("{}").await.status == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), off).await.expect("the method is off");
    let answer = world.post("/api/v1/auth/login").json("{}").await;
    assert_eq!(
        (answer.status, answer.json()["reason"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("ROUTE_DISABLED"))
    );
    let answer = world.grpc("/tollgate.auth.v1.AuthService/Login", &[], &[b""]).await;
    assert_eq!(answer.grpc_status(), "14");
    assert_eq!(world.get("/api/v1/apis/a1").user().send("").await.status, StatusCode::OK);
    // The admin port says so too, and what counts only after a restart.
    let status = world.admin("GET", "/reload").await;
    assert!(status.contains("\"needsRestart\":[\"reflection\"]"), "{status}");
    let routes = world.admin("GET", "/routes").await;
    let routes: serde_json::Value = serde_json::from_str(routes.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let login = routes
        .as_array()
        .unwrap()
        .iter()
        .find(|route| route["method"] == "tollgate.auth.v1.AuthService/Login");
    let login = login.unwrap();
    assert_eq!(
        (&login["disabled"], &login["class"], &login["service"]),
        (&true.into(), &"credential".into(), &"auth-service".into())
    );
    assert_eq!(login["http"][0], "POST /api/v1/auth/login");
}

#[tokio::test]
async fn the_settings_are_shown_on_the_admin_port_only_and_without_secrets() {
    let options = Options::default().set("limits.shared.url", "\"redis://u:canary@127.0.0.1:1\"");
    let world = World::with(options, api).await;
    let config = world.admin("GET", "/config").await;
    assert!(
        config.contains("credential_per_minute = 20") && config.contains("redis://***@127.0.0.1:1"),
        "{config}"
    );
    assert!(!config.contains("canary"), "{config}");
    assert!(world.admin("GET", "/load").await.contains("\"project-service\":{\"inflight\":0"));
    for path in ["/config", "/routes", "/reload", "/load"] {
        assert_eq!(world.get(path).send("").await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

/// For tests that end an edge themselves.
pub(crate) async fn end(edge: Running) {
    tokio::time::timeout(Duration::from_secs(30), edge.shutdown()).await.expect("the edge ends");
}
