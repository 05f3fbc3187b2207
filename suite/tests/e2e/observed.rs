//! What operators see of a real process: one trace through every hop, in logs and in error bodies.

use reqwest::Method;
use serde_json::{Value, json};
use suite::client::{Client, Reply};

use crate::support::{Account, Process, admin, client, config_file, unique, wait_for};

const TELEMETRY: &str = "[edge.telemetry]\nlog = \"warn,service_kit=debug,access=info,service_kit::server=info,\
    edge_proxy=info\"\nformat = \"json\"\n";

/// A trace id that only this test has, and a `traceparent` with it.
fn trace() -> (String, String) {
    let id = service_kit::opaque::random::<16>().map(|byte| format!("{byte:02x}")).concat();
    let parent = format!("00-{id}-00f067aa0ba902b7-01");
    (id, parent)
}

/// Posts as the client's user, with one more header.
async fn post(client: &Client, path: &str, traceparent: &str, body: &Value) -> Reply {
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(client.trust().client_config(&["h2"]))
        .no_proxy()
        .build()
        .unwrap();
    let request = http
        .request(Method::POST, client.base().join(path).unwrap())
        .bearer_auth(client.token().unwrap())
        .header("traceparent", traceparent)
        .json(body);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { request: path.to_owned(), status, headers, body: response.bytes().await.unwrap() }
}

/// The calls that services answered in this trace, `auth-service tollgate.auth.v1.Sessions/Login`.
fn calls(process: &Process, trace: &str) -> Vec<String> {
    let lines = process.log_lines();
    let spans = lines.iter().map(|line| &line["span"]).filter(|span| span["trace_id"] == trace);
    let calls = spans.filter(|span| span["name"] == "rpc");
    let text = |span: &Value, name: &str| span[name].as_str().unwrap().to_owned();
    calls.map(|span| format!("{} {}", text(span, "service"), text(span, "rpc.method"))).collect()
}

/// Waits until the log knows this call in this trace.
async fn wait_for_call(process: &Process, trace: &str, wanted: &str) {
    wait_for(wanted, async || calls(process, trace).iter().any(|call| call.ends_with(wanted)).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_through_every_hop() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &config_file(folder.path(), TELEMETRY)).await;
    let account = Account::new(&client(&process.url, &suite::ca_file(&folder.path().join("data")))).await;
    let api = account.api("traced").await;

    // edge-proxy -> gateway-service -> project-service.
    let (id, parent) = trace();
    let body = json!({"organizationId": account.organization, "name": unique("g"), "displayName": "G"});
    let made = post(&account.client, "/api/v1/gateways", &parent, &body).await.expect(201).unwrap();
    wait_for_call(&process, &id, "gateway-service tollgate.gateway.v1.GatewayService/RegisterGateway").await;
    wait_for_call(&process, &id, "project-service tollgate.project.v1.AccessService/Check").await;
    let access = |id: &str| {
        let lines = process.log_lines();
        lines.into_iter().find(|line| line["target"] == "access" && line["trace_id"] == id)
    };
    let line = wait_for("the edge's line", async || access(&id)).await;
    assert_eq!((&line["route"], &line["status"]), (&json!("/api/v1/gateways"), &json!(201)), "{line}");

    // The error body names the trace that the log names.
    let (id, parent) = trace();
    let problem = post(&account.client, "/api/v1/gateways", &parent, &body).await.expect(409).unwrap();
    assert_eq!(problem["traceId"], id, "{problem}");
    wait_for_call(&process, &id, "/RegisterGateway").await;

    // edge-proxy -> project-service -> gateway-service.
    let (id, parent) = trace();
    let path = format!("/api/v1/apis/{api}/deploy-revision");
    let body = json!([{"gatewayId": made["id"], "name": "test", "vhost": "api.example.com"}]);
    post(&account.client, &path, &parent, &body).await.expect(200).unwrap();
    wait_for_call(&process, &id, "project-service tollgate.project.v1.DeploymentService/DeployRevision")
        .await;
    wait_for_call(&process, &id, "gateway-service tollgate.gateway.v1.DeliveryService/ResolveGateways").await;

    // A broken parent is no parent: there is a new trace, and it is in the log.
    let (id, parent) = trace();
    for broken in
        [parent.replace("00-", "ff-"), parent.replace(&id, &id.to_uppercase()), parent[..54].to_owned()]
    {
        let problem = post(&account.client, &path, &broken, &json!([{}])).await.expect(400).unwrap();
        let new = problem["traceId"].as_str().unwrap().to_owned();
        assert!(new.len() == 32 && !new.eq_ignore_ascii_case(&id), "{broken} became {new}");
        wait_for("the line of the new trace", async || access(&new)).await;
    }
    metrics_are_named_and_bounded(&process, &account, &api).await;
    assert_eq!(process.terminate().await, Some(0));
}

/// Each admin port shows the durations under their standard names, by route and never by path.
async fn metrics_are_named_and_bounded(process: &Process, account: &Account, api: &str) {
    account.client.get(&format!("/api/v1/apis/{api}")).await.unwrap().expect(200).unwrap();
    account.client.get("/nowhere/canary-path?canary=query").await.unwrap().expect(404).unwrap();
    for (service, port) in process.admin_ports() {
        let (status, text) = admin(port, "/metrics").await;
        assert_eq!(status, 200, "{service}");
        let edge = "http_server_request_duration_seconds_count{http_request_method=\"GET\",url_scheme=\"https\",\
            network_protocol_version=\"2\",http_response_status_code=\"200\",http_route=\"/api/v1/apis/{api_id}\"}";
        assert!(text.contains(edge), "{service}: {text}");
        let rpc =
            "rpc_server_call_duration_seconds_bucket{service=\"auth-service\",rpc_system_name=\"grpc\",";
        assert!(text.contains(rpc), "{service}: {text}");
        assert!(!text.contains("canary") && !text.contains(api), "{service}: {text}");
    }
}
