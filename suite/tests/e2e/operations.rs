//! The operator's side of gateways, over REST: who is connected, what arrived and what did not, try again.

use serde_json::{Value, json};
use suite::{
    client::{Client, Reply},
    gateway::{GatewayClient, GatewayLink},
};

use crate::support::{Account, GatewayAccount, PATIENCE, Process, admin, client, config_file, wait_for};

const JSON: &str = "[edge.telemetry]\nformat = \"json\"\n";

async fn get(account: &Account, path: &str) -> Value {
    account.client.get(path).await.unwrap().expect(200).unwrap()
}

async fn post(account: &Account, path: &str, body: &Value) -> Reply {
    account.client.post(path, body).await.unwrap()
}

fn reached(process: &Process, folder: &tempfile::TempDir) -> Client {
    client(&process.url, &suite::ca_file(&folder.path().join("data")))
}

/// Deploys an API, and the gateway refuses it: its id.
async fn refused(account: &Account, gateway: &GatewayAccount, link: &mut GatewayLink) -> String {
    let api = account.api("refused").await;
    account.deploy(&api, &gateway.id).await.unwrap();
    let event = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    link.ack(&event, "deploy", Some("GATEWAY_PROCESSING_ERROR")).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "FAILED").await;
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_everything_and_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), JSON);
    let mut process = Process::start(folder.path(), &config).await;
    let mut account = Account::new(&reached(&process, &folder)).await;
    let gateway = account.gateway().await;
    let of = |what: &str| format!("/api/v1/gateways/{}/{what}", gateway.id);

    // A literal path beats the variable one: this is no gateway named `connections`.
    assert_eq!(get(&account, "/api/v1/gateways/connections").await["count"], 0);
    assert_eq!(get(&account, "/api/v1/gateways/failed-deliveries").await["count"], 0);
    assert_eq!(get(&account, &format!("/api/v1/gateways/{}", gateway.id)).await["isActive"], false);
    let mut link = gateway.client.connect().await.unwrap();
    for path in ["/api/v1/gateways/connections", &of("connections")] {
        let list = get(&account, path).await;
        let connection = &list["list"][0];
        assert_eq!((&list["pagination"]["total"], &connection["gatewayId"]), (&json!(1), &json!(gateway.id)));
        assert_eq!(
            (&connection["transport"], &connection["health"]),
            (&json!("websocket"), &json!("connected"))
        );
        assert!(connection["remoteAddress"].as_str().unwrap().starts_with("127.0.0.1"), "{connection}");
    }

    let api = refused(&account, &gateway, &mut link).await;
    let state = get(&account, &of("deployments")).await["list"][0].clone();
    assert_eq!((&state["artifactId"], &state["desired"]), (&json!(api), &json!("DEPLOYED")));
    assert_eq!((&state["status"], &state["reason"]), (&json!("FAILED"), &json!("GATEWAY_PROCESSING_ERROR")));
    let failed = get(&account, &of("failed-deliveries")).await;
    let failure = &failed["list"][0];
    assert_eq!((&failed["pagination"]["total"], &failure["artifactId"]), (&json!(1), &json!(api)));
    assert_eq!((&failure["reason"], &failure["eventType"]), (&state["reason"], &json!("api.deployed")));

    // The operator has repaired something: the gateway gets it again, newer, and this time it works.
    let body = json!({"artifactId": api});
    let asked = post(&account, &of("resync"), &body).await.expect(202).unwrap();
    assert_eq!((&asked["events"], &asked["headRevision"]), (&json!(1), &json!("2")));
    let again = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    assert_eq!(again.text("deploymentId"), failure["deploymentId"]);
    link.ack(&again, "deploy", None).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    wait_for("it is shown", async || {
        (get(&account, &of("deployments")).await["list"][0]["status"] == "DEPLOYED").then_some(())
    })
    .await;
    assert_eq!(post(&account, &of("resync"), &json!({})).await.expect(202).unwrap()["events"], 0);
    assert_eq!(post(&account, &of("resync"), &json!({"full": true})).await.expect(202).unwrap()["events"], 1);
    let full = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    assert!(full.text("performedAt") > again.text("performedAt"));
    link.ack(&full, "deploy", None).await.unwrap();

    let event =
        json!({"type": "custom.cache.purge", "payload": {"prefix": "/v1", "depth": 3}, "eventId": "purge-1"});
    for _ in 0..2 {
        let sent = post(&account, &of("events"), &event).await.expect(202).unwrap();
        assert_eq!(sent, json!({"eventId": "purge-1", "connected": true}));
    }
    let purge = link.expect_event("custom.cache.purge", PATIENCE).await.unwrap();
    assert_eq!(purge.payload, json!({"prefix": "/v1", "depth": 3}));
    let wrong = json!({"type": "api.deleted", "payload": {"apiId": api}});
    let problem = post(&account, &of("events"), &wrong).await.expect(400).unwrap();
    assert_eq!(problem["errors"][0]["field"], "type");

    let counted = async |account: &Account| get(account, "/api/internal/v1/stats").await;
    let stats = counted(&account).await;
    assert_eq!(stats["gatewayConnections"]["totalActive"], 1);
    assert_eq!(stats["gatewayConnections"]["connections"][0]["status"], "connected");
    assert_eq!(stats["eventDelivery"]["failedDeliveries"], "1", "{stats}");
    assert_eq!(stats["eventDelivery"]["lastFailureReason"], "GATEWAY_PROCESSING_ERROR");
    metrics_are_there(&process).await;

    // What was counted and what failed survives a restart; connections do not.
    drop(link);
    assert_eq!(process.terminate().await, Some(0));
    process = Process::start(folder.path(), &config).await;
    account.client = reached(&process, &folder).with_token(account.client.token().unwrap());
    let after = counted(&account).await;
    assert_eq!(after["eventDelivery"], stats["eventDelivery"]);
    assert_eq!(after["gatewayConnections"]["totalActive"], 0);
    assert_eq!(get(&account, &of("failed-deliveries")).await, failed);
    let client = GatewayClient::new(&account.client, &gateway.token);
    let link = client.connect().await.unwrap();
    assert_eq!(counted(&account).await["gatewayConnections"]["totalActive"], 1);
    drop(link);
    assert_eq!(process.terminate().await, Some(0));
}

/// The metrics that docs/operations.md names are on the admin port.
async fn metrics_are_there(process: &Process) {
    let ports = process.admin_ports();
    let (_, port) = ports.iter().find(|(service, _)| service == "gateway-service").unwrap();
    let (status, text) = admin(*port, "/metrics").await;
    assert_eq!(status, 200);
    for metric in [
        "tollgate_gateway_connections 1",
        "tollgate_gateway_largest_lag_revisions ",
        "tollgate_gateway_drifted_artifacts 0",
        "tollgate_gateway_deliveries_total{outcome=\"sent\"}",
        "tollgate_gateway_acks_total{outcome=\"failed\"} 1",
        "tollgate_gateway_acks_total{outcome=\"success\"}",
        // Offline gateways converge after hours.
        "tollgate_gateway_convergence_seconds_bucket{le=\"86400\"}",
    ] {
        assert!(text.contains(metric), "{metric} is missing in {text}");
    }
}
