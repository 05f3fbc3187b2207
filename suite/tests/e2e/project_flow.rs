//! From sign-up to an API on a connected gateway, on both databases.

use std::collections::BTreeSet;

use proto::project::{Api, GetApiRequest, api_service_client::ApiServiceClient};
use serde_json::{Value, json};
use suite::{
    client::{list_at, text_at},
    grpc,
};

use crate::support::{Account, PATIENCE, TestSuite};

/// The document that comes with the binary: YAML, OpenAPI 3.1.
const PETSTORE: &str = include_str!("../../demo/petstore.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_story_on_sqlite() {
    tell(TestSuite::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_story_on_postgresql() {
    tell(TestSuite::on_postgres().await).await;
}

async fn tell(suite: TestSuite) {
    let account = suite.account().await;
    organizations(&account).await;
    let api = imported(&account).await;
    large_document(&account).await;
    read_over_grpc(&account, &api).await;
    deployed(&account, &api).await;
    suite.suite.shutdown().await;
}

async fn organizations(account: &Account) {
    let (client, organization) = (&account.client, &account.organization);
    let path = format!("/api/v1/organizations/{organization}");
    let read = client.get(&path).await.unwrap().expect(200).unwrap();
    assert_eq!(read["role"], "owner");
    // The last project stays.
    let last = client.delete(&format!("/api/v1/projects/{}", account.project)).await.unwrap();
    last.expect(409).unwrap();
    let body = json!({"name": "Second"});
    let second = client.post(&format!("{path}/projects"), &body).await.unwrap();
    assert!(second.header("location").starts_with("/api/v1/projects/"), "{}", second.header("location"));
    let second = second.expect(201).unwrap();
    client.post(&format!("{path}/projects"), &body).await.unwrap().expect(409).unwrap();
    let gone = format!("/api/v1/projects/{}", text_at(&second, "/id").unwrap());
    client.delete(&gone).await.unwrap().expect(204).unwrap();
    client.get(&gone).await.unwrap().expect(404).unwrap();
}

/// Imports the pet store; every operation is there when it is read back.
async fn imported(account: &Account) -> String {
    let made = account.import("application/yaml", PETSTORE).await;
    let location = made.header("location").to_owned();
    let made = made.expect(201).unwrap();
    let id = text_at(&made, "/id").unwrap().to_owned();
    assert_eq!(location, format!("/api/v1/apis/{id}"));

    let read = account.client.get(&location).await.unwrap().expect(200).unwrap();
    let document: serde_norway::Value = serde_norway::from_str(PETSTORE).unwrap();
    assert_eq!(routes_of_api(&read), routes_of_document(&document));
    assert_eq!((&read["version"], &read["type"]), (&json!("1.2.0"), &json!("HTTP")));
    assert_eq!(
        read["backend-services"][0]["endpoints"][0]["url"], "https://petstore.example.com/v1",
        "{}",
        read["backend-services"]
    );
    // The document itself comes back byte for byte.
    let definition = account.client.get(&format!("{location}/definition")).await.unwrap();
    definition_is(&definition, PETSTORE);

    // The same name, context and version again.
    account.import("application/yaml", PETSTORE).await.expect(409).unwrap();
    // A project that holds an API stays.
    let project = format!("/api/v1/projects/{}", account.project);
    account.client.delete(&project).await.unwrap().expect(409).unwrap();
    id
}

fn definition_is(reply: &suite::client::Reply, text: &str) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.text(), text);
    assert!(reply.header("content-type").contains("yaml"), "{}", reply.header("content-type"));
}

fn routes_of_api(api: &Value) -> BTreeSet<(String, String)> {
    let operations = list_at(api, "/operations").unwrap();
    let routes: BTreeSet<_> = operations
        .iter()
        .map(|operation| {
            let text = |at: &str| text_at(operation, at).unwrap().to_owned();
            (text("/request/method"), text("/request/path"))
        })
        .collect();
    assert_eq!(routes.len(), operations.len(), "an operation is there twice");
    routes
}

fn routes_of_document(document: &serde_norway::Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_mapping().unwrap();
    let methods = ["get", "put", "post", "delete", "patch", "head", "options"];
    paths
        .iter()
        .flat_map(|(path, item)| {
            let path = path.as_str().unwrap().to_owned();
            let keys = item.as_mapping().unwrap().keys().map(|key| key.as_str().unwrap().to_owned());
            keys.filter(|key| methods.contains(&key.as_str()))
                .map(move |key| (key.to_uppercase(), path.clone()))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// A document of several megabytes: all operations arrive.
async fn large_document(account: &Account) {
    let long = "a long description ".repeat(450);
    let paths: serde_json::Map<String, Value> = (0..400)
        .map(|at| {
            let operation = json!({"operationId": format!("get{at}"), "description": long, "responses": {}});
            (format!("/resource{at}/{{id}}"), json!({"get": operation, "delete": {"responses": {}}}))
        })
        .collect();
    let document = json!({"openapi": "3.0.3", "info": {"title": "Large", "version": "7.0"},
        "servers": [{"url": "https://large.example.com"}], "paths": paths});
    let text = document.to_string();
    assert!(text.len() > 3 * 1024 * 1024);
    let made = account.import("application/json", text).await.expect(201).unwrap();
    let path = format!("/api/v1/apis/{}", text_at(&made, "/id").unwrap());
    let read = account.client.get(&path).await.unwrap().expect(200).unwrap();
    assert_eq!(routes_of_api(&read).len(), 800);
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    account.client.get(&path).await.unwrap().expect(404).unwrap();
}

async fn read_over_grpc(account: &Account, api: &str) {
    let request = GetApiRequest { api_id: api.to_owned() };
    let path = "/tollgate.project.v1.ApiService/GetApi";
    let web: Api = grpc::web_call(&account.client, path, &request).await.unwrap();
    let mut native = ApiServiceClient::new(grpc::channel(&account.client).unwrap());
    let native = native.get_api(grpc::authorized(&account.client, request).unwrap()).await.unwrap();
    assert_eq!(web, native.into_inner());
    assert_eq!(web.id, api);
    let rest = account.client.get(&format!("/api/v1/apis/{api}")).await.unwrap().expect(200).unwrap();
    assert_eq!(web.operations.len(), list_at(&rest, "/operations").unwrap().len());

    let unknown = GetApiRequest { api_id: "0198f0c5-0000-7000-8000-000000000000".to_owned() };
    let refused = grpc::web_call::<_, Api>(&account.client, path, &unknown).await.unwrap_err().to_string();
    assert!(refused.contains("gRPC status 5"), "{refused}");
}

async fn deployed(account: &Account, api: &str) {
    let gateway = account.gateway().await;
    let running = gateway.run();
    running.wait("connected", PATIENCE, |state| state.connected).await.unwrap();
    wait_active(account, &gateway.id).await;

    let first = account.deploy(api, &gateway.id).await.unwrap();
    let state = account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
    assert_eq!((&state["id"], &state["deployedGatewayCount"]), (&json!(first), &json!(1)));
    let document: serde_norway::Value = serde_norway::from_str(PETSTORE).unwrap();
    let held = running.state().held[api].clone();
    assert_eq!((held.deployed, held.operations), (true, routes_of_document(&document).len()));

    // What is deployed cannot be deleted; its gateway either way can be asked for it again.
    let path = format!("/api/v1/apis/{api}");
    account.client.delete(&path).await.unwrap().expect(409).unwrap();
    let revisions = account.client.get(&format!("{path}/revisions")).await.unwrap().expect(200).unwrap();
    assert_eq!((&revisions["count"], &revisions["list"][0]["number"]), (&json!(1), &json!(1)));

    let second = account.deploy(api, &gateway.id).await.unwrap();
    assert_ne!(first, second);
    running
        .wait("the second deployment", PATIENCE, |state| {
            state.held.get(api).is_some_and(|held| held.deployment_id == second)
        })
        .await
        .unwrap();
    account.wait_for_status(api, &gateway.id, "DEPLOYED").await;

    assert_eq!(account.undeploy(api, &gateway.id).await, second);
    account.wait_for_status(api, &gateway.id, "UNDEPLOYED").await;
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    account.client.get(&path).await.unwrap().expect(404).unwrap();
    let state = running.stop().await;
    assert!(state.faults.is_empty() && state.stale == 0, "{state:?}");
}

async fn wait_active(account: &Account, gateway: &str) {
    crate::support::wait_for("the gateway is active", async || {
        let path = format!("/api/v1/gateways/{gateway}");
        let read = account.client.get(&path).await.unwrap().expect(200).unwrap();
        (read["isActive"] == true && read["version"] == "1.2.0").then_some(())
    })
    .await;
}
