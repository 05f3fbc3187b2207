//! What gateways hand over: the answer, and what the log knows of it afterwards.

use std::io::{Cursor, Write as _};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use proto::{
    gateway::{ImportGatewayArtifactsRequest, ImportGatewayArtifactsResponse, ListGatewayDeploymentsRequest},
    google::api::HttpBody,
    project::DesiredDeployment,
    time::Timestamp,
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    gateway::{TestGateway, performed_at},
    harness::{World, fields, reason, until, with_key, worlds},
};

const AT: &str = "2026-08-22T10:00:00.123Z";

fn entry(dpid: &str) -> Value {
    json!({"dpid": dpid, "configuration": {"kind": "RestApi"}, "status": "deployed",
        "createdAt": AT, "updatedAt": AT, "deployedAt": AT})
}

fn zipped(json: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("artifacts.json", SimpleFileOptions::default()).unwrap();
    zip.write_all(json).unwrap();
    zip.finish().unwrap().into_inner()
}

fn form(zip: &[u8], total: &str) -> HttpBody {
    let head = b"--b\r\nContent-Disposition: form-data; name=\"artifacts\"; filename=\"artifacts.zip\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n";
    let total =
        format!("\r\n--b\r\nContent-Disposition: form-data; name=\"total\"\r\n\r\n{total}\r\n--b--\r\n");
    HttpBody {
        content_type: "multipart/form-data; boundary=b".into(),
        data: [head, zip, total.as_bytes()].concat(),
    }
}

async fn import(
    world: &World,
    token: &str,
    form: HttpBody,
) -> Result<ImportGatewayArtifactsResponse, Status> {
    let request = ImportGatewayArtifactsRequest { form: Some(form) };
    let mut client = world.internal().max_encoding_message_size(64 * 1024 * 1024);
    client.import_gateway_artifacts(with_key(token, request)).await.map(tonic::Response::into_inner)
}

async fn import_all(world: &World, token: &str, entries: &[Value]) -> ImportGatewayArtifactsResponse {
    let zip = zipped(json!(entries).to_string().as_bytes());
    import(world, token, form(&zip, &entries.len().to_string())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_hands_over_is_done_already() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut stopped = entry("stopped");
        stopped["status"] = json!("undeployed");
        let mut other = entry("other");
        other["configuration"]["kind"] = json!("Mcp");
        let entries = [entry("runs"), stopped, other];
        let answer = import_all(&world, &token.token, &entries).await;
        assert_eq!((answer.total, answer.success, answer.failed), (3, 2, 1));
        let (runs, stopped, other) =
            (&answer.artifacts["runs"], &answer.artifacts["stopped"], &answer.artifacts["other"]);
        let at = Timestamp::parse_rfc3339(AT);
        assert_eq!(
            (runs.status.as_str(), runs.origin.as_str(), runs.deployed_at),
            ("deployed", "gateway_api", at)
        );
        assert_eq!((stopped.status.as_str(), stopped.error.as_deref()), ("undeployed", None));
        assert_eq!((other.status.as_str(), other.id.as_str()), ("failed", ""));
        assert_eq!(other.error.as_deref(), Some("configuration.kind must be RestApi"));
        assert_eq!(import_all(&world, &token.token, &entries).await, answer, "again is the same");

        // The list has the time that the gateway has, so that it fetches nothing.
        *world.project.desired.lock().unwrap() = vec![DesiredDeployment {
            api_id: runs.id.clone(),
            deployment_id: runs.deployed_version.clone().unwrap(),
            deployed: true,
            ..DesiredDeployment::default()
        }];
        let request = with_key(&token.token, ListGatewayDeploymentsRequest { since: None });
        let list = world.internal().list_gateway_deployments(request).await.unwrap().into_inner();
        assert_eq!(list.deployments[0].deployed_at, at);

        // Nothing of it is sent; what comes later is newer.
        let mut link = TestGateway::connect(&world, &token.token).await;
        let next = world.deploy(&gateway.id, &runs.id);
        world.append(vec![next.clone()]).await;
        let event = link.event().await;
        assert!(event.payload_json.contains(&next.deployment_id), "{event:?}");
        assert!(performed_at(&event).as_str() > AT);
        link.ack(&event, None).await;
        until("it counts", async || world.project.reported(&next.deployment_id).len() == 2).await;
        // A repeat does not bring back what ran before.
        assert_eq!(import_all(&world, &token.token, &entries).await, answer);
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_finds_no_place_does_not_wait_with_its_body() {
    let world = worlds().await.swap_remove(0);
    let (_, token) = world.gateway("edge-1").await;
    let slow = world.project.importing.write().await;
    let zip = zipped(json!([entry("a")]).to_string().as_bytes());
    let mut imports: FuturesUnordered<_> =
        (0..3).map(|_| import(&world, &token.token, form(&zip, "1"))).collect();
    let refused = imports.next().await.unwrap().unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "IMPORTS_BUSY"));
    assert!(refused.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    drop(slow);
    while let Some(taken) = imports.next().await {
        assert_eq!(taken.unwrap().success, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_an_import_is_newer_whatever_the_gateways_clock_said() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let ahead = "2086-08-22T10:00:00.123Z";
        let mut entry = entry("ahead");
        entry["deployedAt"] = json!(ahead);
        let answer = import_all(&world, &token.token, &[entry]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![world.deploy(&gateway.id, &answer.artifacts["ahead"].id)]).await;
        assert!(performed_at(&link.event().await).as_str() > ahead);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_artifacts_are_asked_about_by_the_hundred() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let entries: Vec<Value> = (0..250).map(|n| entry(&format!("g-{n}"))).collect();
        let answer = import_all(&world, &token.token, &entries).await;
        assert_eq!((answer.total, answer.success, answer.artifacts.len()), (250, 250, 250));
        assert_eq!(*world.project.imports.lock().unwrap(), [100, 100, 50]);
        // Large ones go in smaller numbers: a question has its limit too.
        let mut large = entry("large");
        large["configuration"]["text"] = json!("x".repeat(1_000_000));
        let entries: Vec<Value> = (0..10)
            .map(|n| {
                large["dpid"] = json!(format!("l-{n}"));
                large.clone()
            })
            .collect();
        assert_eq!(import_all(&world, &token.token, &entries).await.success, 10);
        assert_eq!(world.project.imports.lock().unwrap()[3..], [7, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_refused_by_its_part() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let good = zipped(b"[]");
        let wrong_type = HttpBody { content_type: "application/zip".into(), data: good.clone() };
        let bomb = zipped(&vec![b' '; 70 * 1024 * 1024]);
        let cases = [
            (HttpBody::default(), "form"),
            (wrong_type, "form"),
            (form(b"no zip", "1"), "artifacts"),
            (form(&good, "1"), "total"),
            (form(&good, "many"), "total"),
            (form(&zipped(br#"[{"status":"deployed"}]"#), "1"), "artifacts[0].dpid"),
            (form(&bomb, "1"), "artifacts"),
            (form(&vec![b'x'; 32 * 1024 * 1024 + 1], "1"), "artifacts"),
        ];
        for (body, field) in cases {
            let status = import(&world, &token.token, body).await.unwrap_err();
            assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.to_owned()]));
        }
        let answer = import(&world, &token.token, form(&good, "0")).await.unwrap();
        assert_eq!((answer.total, answer.artifacts.len()), (0, 0));
        let status = import(&world, "x", form(&good, "0")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        world.project.set_down(true);
        let zip = zipped(json!([entry("a")]).to_string().as_bytes());
        let status = import(&world, &token.token, form(&zip, "1")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "a gateway tries again");
    }
}
