//! What operators see: access lines, traces, metrics.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use proto::{auth::TokenPair, project::Api};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use service_kit::telemetry::{LogFormat, TelemetryConfig};
use tracing_subscriber::fmt::MakeWriter;

use super::harness::{Reply, World, ok};

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn access(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["target"] == "access").collect()
    }
}

#[tokio::test]
async fn an_access_line_names_the_route_and_no_secret() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(lines.clone());
    let subscriber = subscriber.with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).finish();
    let world = World::start(|call| match call.path.ends_with("GetApi") {
        true => ok(&Api { id: "a1".into(), ..Api::default() }),
        false => Reply::Stream(vec![b"a".to_vec()], tonic::Status::aborted("enough")),
    })
    .await;
    let _here = tracing::subscriber::set_default(subscriber);
    let answer = world.get("/api/v1/apis/canary-path").user().send("").await;
    world.get("/api/v1/apis/x?canary-query=1").user().send("").await;
    world.get("/canary-nowhere").send("").await;
    // What is not good is refused, what is travels on; neither is written down.
    let (pat, _) = service_kit::opaque::issue("pat");
    let (bad, _) = service_kit::opaque::issue("svc");
    world.signer.exchange(pat.expose_secret(), &world.token());
    let secrets = [
        format!("Bearer {}", pat.expose_secret()),
        format!("Bearer {}", bad.expose_secret()),
        "Bearer tgpat_canary-broken".to_owned(),
        "Basic canary-basic".to_owned(),
    ];
    for secret in &secrets {
        world.get("/api/v1/apis/a1").header("authorization", secret).send("").await;
    }
    let login = world.post("/api/v1/auth/refresh").header("cookie", "__Host-tollgate-refresh=canary-cookie");
    login.header("origin", "https://localhost").json(r#"{"refreshToken":"canary-body"}"#).await;
    world.grpc("/tollgate.gateway.v1.GatewayLink/Connect", &[("api-key", "canary-key")], &[b""]).await;

    let access = lines.access();
    assert_eq!(access.len(), 9, "{}", lines.text());
    let [found, refused, unknown, opaque, bad, _, _, _, stream] = &access[..] else { panic!() };
    assert_eq!((&opaque["status"], &bad["status"]), (&200.into(), &401.into()));
    assert_eq!(found["client"], "127.0.0.1");
    assert_eq!((&found["method"], &found["route"]), (&"GET".into(), &"/api/v1/apis/{api_id}".into()));
    assert_eq!((&found["status"], &found["grpc"]), (&200.into(), &0.into()));
    assert!(found["micros"].as_u64().unwrap() > 0);
    assert_eq!(found["id"], answer.header("x-request-id"));
    assert_eq!((&refused["route"], &refused["status"]), (&"/api/v1/apis/{api_id}".into(), &400.into()));
    assert_eq!((&unknown["route"], &unknown["status"]), (&"-".into(), &404.into()));
    // How a stream ended is in its trailers.
    assert_eq!((&stream["status"], &stream["grpc"]), (&200.into(), &10.into()));
    assert_eq!(stream["route"], "/tollgate.gateway.v1.GatewayLink/Connect");
    let text = lines.text();
    assert!(!text.contains("canary") && !text.contains("eyJ") && !text.contains("tgpat_"), "{text}");
    assert!(!text.contains("tgsvc_"), "{text}");
}

#[tokio::test]
async fn a_trace_goes_through() {
    let config = TelemetryConfig {
        log: "off,edge_proxy::layers::trace=info".into(),
        format: LogFormat::Json,
        otlp_endpoint: String::new(),
    };
    let _guard = service_kit::telemetry::init(&config, "edge-proxy").unwrap();
    let world = World::start(|_| ok(&TokenPair::default())).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    // Sampled or not, and what vendors add: all of it goes on.
    for flags in ["01", "00"] {
        let parent = format!("00-{trace}-00f067aa0ba902b7-{flags}");
        let ask = world.post("/api/v1/auth/login").header("traceparent", &parent);
        let answer = ask.header("tracestate", "vendor=t61rcWkgMzE,other=1").json("{}").await;
        assert_eq!(answer.status, 200);
        let call = world.calls().pop().unwrap();
        let upstream = call.header("traceparent").unwrap();
        assert!(upstream.contains(trace) && upstream != parent && upstream.ends_with(flags), "{upstream}");
        assert_eq!(call.header("tracestate"), Some("vendor=t61rcWkgMzE,other=1"));
    }
    // Of more members than a list may have (W3C Trace Context §3.3.1.1), the first ones.
    let members: Vec<String> = (0..40).map(|number| format!("v{number}={number}")).collect();
    let ask = world.post("/api/v1/auth/login").header("traceparent", &parent);
    assert_eq!(ask.header("tracestate", &members.join(",")).json("{}").await.status, 200);
    let call = world.calls().pop().unwrap();
    assert!(call.header("traceparent").unwrap().contains(trace));
    assert_eq!(call.header("tracestate"), Some(&*members[..32].join(",")));
    let answer = world.post("/api/v1/auth/login").header("traceparent", &parent).json("{").await;
    assert_eq!(answer.json()["traceId"], trace);
    // A broken parent is no parent.
    let answer = world.post("/api/v1/auth/login").header("traceparent", "00-nonsense").json("{").await;
    assert_eq!(answer.json()["traceId"].as_str().unwrap().len(), 32);
    let metrics = service_kit::telemetry::render_metrics();
    let expected = "http_server_request_duration_seconds_count{http_request_method=\"POST\",\
        url_scheme=\"https\",network_protocol_version=\"2\",http_response_status_code=\"400\",\
        http_route=\"/api/v1/auth/login\"}";
    assert!(metrics.contains(expected), "{metrics}");
    // A method of one's own makes no series of its own, and a path none at all.
    let brew = http::Method::from_bytes(b"BREW").unwrap();
    world.ask(brew, "/canary-path").send("").await;
    let metrics = service_kit::telemetry::render_metrics();
    assert!(metrics.contains("http_request_method=\"_OTHER\""), "{metrics}");
    assert!(!metrics.contains("BREW") && !metrics.contains("canary"), "{metrics}");
    for bound in [
        "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5", "10",
    ] {
        let bucket = |line: &str| {
            line.starts_with("http_server_request_duration_seconds_bucket")
                && line.contains(&format!("le=\"{bound}\""))
        };
        assert!(metrics.lines().any(bucket), "{bound}: {metrics}");
    }
    let called = "rpc_client_call_duration_seconds_count{";
    let login = "tollgate.auth.v1.AuthService/Login";
    assert!(metrics.lines().any(|line| line.starts_with(called) && line.contains(login)), "{metrics}");
    for name in [
        "http_server_active_requests",
        "http_server_request_body_size_bytes",
        "http_server_response_body_size_bytes",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}
