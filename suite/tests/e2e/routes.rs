//! The internal routes over plain HTTP, exactly as a controller calls them.

use std::io::{Cursor, Read as _, Write as _};

use reqwest::Method;
use serde_json::{Value, json};
use suite::client::{Client, Reply};
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::support::{Account, GatewayAccount, PATIENCE, TestSuite};

const BASE: &str = "/api/internal/v1";
const AT: &str = "2026-08-22T10:00:00.123Z";

/// A gateway's HTTP client: the token and nothing else.
struct Http(Client);

impl Http {
    fn new(suite: &TestSuite, gateway: &GatewayAccount) -> Self {
        Self(suite.client.with_header("api-key", &gateway.token).unwrap())
    }

    async fn get(&self, path: &str) -> Reply {
        self.0.get(&format!("{BASE}{path}")).await.unwrap()
    }

    async fn accepting(&self, path: &str, accept: &str) -> Reply {
        let client = self.0.with_header("accept", accept).unwrap();
        client.get(&format!("{BASE}{path}")).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.0.post(&format!("{BASE}{path}"), body).await.unwrap()
    }

    async fn import(&self, zip: &[u8], total: usize) -> Reply {
        let (media_type, body) = multipart(zip, &total.to_string());
        self.send_import(media_type, body).await
    }

    async fn send_import(&self, media_type: &str, body: Vec<u8>) -> Reply {
        let path = format!("{BASE}/artifacts/import-gateway-artifacts");
        self.0.send(Method::POST, &path, media_type, body).await.unwrap()
    }
}

fn multipart(zip: &[u8], total: &str) -> (&'static str, Vec<u8>) {
    let head = b"--b\r\nContent-Disposition: form-data; name=\"artifacts\"; filename=\"artifacts.zip\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n";
    let total =
        format!("\r\n--b\r\nContent-Disposition: form-data; name=\"total\"\r\n\r\n{total}\r\n--b--\r\n");
    ("multipart/form-data; boundary=b", [head, zip, total.as_bytes()].concat())
}

fn zipped(json: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("artifacts.json", SimpleFileOptions::default()).unwrap();
    zip.write_all(json).unwrap();
    zip.finish().unwrap().into_inner()
}

/// What a controller writes for an API that was made on its gateway.
fn entry(account: &Account, dpid: &str, name: &str) -> Value {
    json!({
        "dpid": dpid,
        "configuration": {
            "apiVersion": "gateway.api-platform.wso2.com/v1alpha1",
            "kind": "RestApi",
            "metadata": {
                "name": format!("{name}-v1.0"),
                "labels": {"project-id": account.project},
                "annotations": {"gateway.api-platform.wso2.com/project-id": account.project}
            },
            "spec": {
                "displayName": name,
                "version": "v1.0",
                "context": format!("/{name}/$version"),
                "upstream": {"main": {"url": "https://weather.example.com/api"}},
                "policies": [{"name": "jwt-auth", "version": "v1", "params": {"issuers": ["i"]}}],
                "operations": [{"method": "GET", "path": "/{city}"}, {"method": "POST", "path": "/"}]
            }
        },
        "status": "deployed",
        "createdAt": "2026-08-20T10:00:00Z",
        "updatedAt": AT,
        "deployedAt": AT,
        "properties": {"deploymentRevision": 1}
    })
}

/// Step by step what a controller does on its first connect (without the link).
#[tokio::test(flavor = "multi_thread")]
async fn the_first_connect_of_a_controller() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let account = suite.account().await;
        let gateway = account.gateway().await;
        let http = Http::new(&suite, &gateway);
        suite.client.get("/internal/gateway/.well-known").await.unwrap().expect(404).unwrap();
        let manifest = json!({"version": "1.2.0", "functionalityType": "regular", "policies": null});
        let reply = http.post(&format!("/gateways/{}/manifest", gateway.id), &manifest).await;
        assert!(matches!(reply.status, 200 | 204), "{reply:?}");

        let secrets = http.get("/secrets?includeValues=true").await;
        assert_eq!(secrets.expect(200).unwrap(), json!({"list": [], "count": 0}));
        assert_eq!(http.get("/deployments").await.expect(200).unwrap(), json!({"deployments": []}));
        let gone = http.post("/artifacts/exists", &json!({"artifactIds": ["local"]})).await;
        assert_eq!(
            gone.expect(200).unwrap(),
            json!({"artifacts": [{"artifactId": "local", "exists": false}]})
        );

        let entries = json!([entry(&account, "0000-local-1", "weather")]);
        let answer = http.import(&zipped(entries.to_string().as_bytes()), 1).await.expect(200).unwrap();
        assert_eq!(
            (&answer["total"], &answer["success"], &answer["failed"]),
            (&json!(1), &json!(1), &json!(0))
        );
        let imported = &answer["artifacts"]["0000-local-1"];
        assert_eq!((&imported["status"], &imported["origin"]), (&json!("deployed"), &json!("gateway_api")));
        assert_eq!((&imported["deployedAt"], &imported["error"]), (&json!(AT), &Value::Null));
        let api = imported["id"].as_str().unwrap();

        assert_eq!(http.get("/subscription-plans").await.expect(200).unwrap(), json!([]));
        assert_eq!(http.get(&format!("/apis/{api}/subscriptions")).await.expect(200).unwrap(), json!([]));
        for kind in ["apis", "websub-apis", "webbroker-apis", "llm-providers", "llm-proxies"] {
            let keys = http.get(&format!("/{kind}/api-keys?issuer=platform")).await;
            assert_eq!(keys.expect(200).unwrap(), json!([]), "{kind}");
        }
        http.get("/secrets/db-password/value").await.expect(404).unwrap();

        // From here on it is one of the platform's APIs, and runs.
        let state = account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
        assert_eq!(state["id"], imported["deployedVersion"]);
        let list = http.get("/deployments").await.expect(200).unwrap();
        let listed = &list["deployments"][0];
        assert_eq!((&listed["artifactId"], &listed["deployedAt"]), (&json!(api), &json!(AT)));
        let read = account.client.get(&format!("/api/v1/apis/{api}")).await.unwrap().expect(200).unwrap();
        assert_eq!((&read["name"], &read["context"]), (&json!("weather"), &json!("/weather/v1.0")));
        // Five tries have one outcome.
        let again = http.import(&zipped(entries.to_string().as_bytes()), 1).await;
        assert_eq!(again.expect(200).unwrap(), answer);

        // A deploy goes out with what the gateway had.
        let mut link = gateway.client.connect().await.unwrap();
        account.deploy(api, &gateway.id).await.unwrap();
        let event = link.expect_event("api.deployed", PATIENCE).await.unwrap();
        assert!(event.text("performedAt") > AT);
        let artifact = gateway.client.fetch_api(api).await.unwrap();
        assert_eq!(artifact["spec"]["policies"][0]["name"].as_str(), Some("jwt-auth"));
        assert_eq!(artifact["metadata"]["name"].as_str(), Some("weather-v1.0"));
        link.ack(&event, "deploy", None).await.unwrap();
        account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_are_refused_precisely() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let http = Http::new(&suite, &gateway);
    let said = |reply: Reply| reply.expect(400).unwrap()["description"].as_str().unwrap().to_owned();
    let good = zipped(b"[]");
    assert!(said(http.send_import("application/zip", good.clone()).await).contains("form"));
    assert!(said(http.send_import("multipart/form-data", good.clone()).await).contains("form"));
    assert!(said(http.send_import("", Vec::new()).await).contains("form"));
    let (media_type, cut) = multipart(&good, "0");
    assert!(said(http.send_import(media_type, cut[..cut.len() - 20].to_vec()).await).contains("form"));
    assert!(said(http.import(b"no zip", 1).await).contains("artifacts"));
    assert!(said(http.import(&good, 3).await).contains("total"));
    assert!(said(http.import(&zipped(&vec![b' '; 70 * 1024 * 1024]), 1).await).contains("64 MiB"));
    assert!(said(http.import(&vec![0; 32 * 1024 * 1024 + 1], 1).await).contains("artifacts"));
    http.import(&vec![0; 34 * 1024 * 1024], 1).await.expect(413).unwrap();

    // One that is bad keeps none out, and says what is wrong.
    let mut foreign = entry(&account, "foreign", "foreign");
    let stranger = suite.account().await;
    let annotation = "gateway.api-platform.wso2.com/project-id";
    foreign["configuration"]["metadata"]["annotations"][annotation] = json!(stranger.project);
    let mut other = entry(&account, "other", "other");
    other["configuration"]["kind"] = json!("LlmProvider");
    account.api("taken").await;
    let mut taken = entry(&account, "taken", "taken");
    taken["configuration"]["spec"]["version"] = json!("1.0.0");
    taken["configuration"]["spec"]["context"] = json!("/taken");
    let entries = json!([foreign, other, taken, entry(&account, "good", "good")]);
    let answer = http.import(&zipped(entries.to_string().as_bytes()), 4).await.expect(200).unwrap();
    assert_eq!((&answer["success"], &answer["failed"]), (&json!(1), &json!(3)));
    let error = |dpid: &str| answer["artifacts"][dpid]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error("foreign").contains("project-id"), "{answer}");
    assert!(error("other").contains("configuration.kind"), "{answer}");
    for field in ["displayName", "version", "context"] {
        assert!(error("taken").contains(&format!("configuration.spec.{field} ")), "{answer}");
    }
    assert_eq!(error("good"), "");
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_come_in_the_form_that_is_asked_for() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let (gateway, other) = (account.gateway().await, account.gateway().await);
    let (http, elsewhere) = (Http::new(&suite, &gateway), Http::new(&suite, &other));
    let api = account.api("forms").await;
    let deployment = account.deploy(&api, &gateway.id).await.unwrap();
    let path = format!("/apis/{api}");
    let yaml = http.accepting(&path, "application/yaml").await;
    assert_eq!((yaml.status, yaml.header("content-type")), (200, "application/yaml"));
    for accept in ["application/zip", "*/*"] {
        let zip = http.accepting(&path, accept).await;
        assert_eq!((zip.status, zip.header("content-type")), (200, "application/zip"));
        let mut text = String::new();
        let mut archive = ZipArchive::new(Cursor::new(zip.body)).unwrap();
        archive.by_index(0).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, yaml.text());
    }
    let refused = http.accepting(&path, "application/json").await.expect(406).unwrap();
    assert!(refused["description"].as_str().unwrap().contains("application/zip"), "{refused}");
    let body = json!({"deploymentIds": [deployment]}).to_string();
    for (accept, status) in [("application/x-tar+gzip", 200), ("*/*", 200), ("application/json", 406)] {
        let client = http.0.with_header("accept", accept).unwrap();
        let path = format!("{BASE}/deployments/fetch-batch");
        let reply = client.send(Method::POST, &path, "application/json", body.clone()).await.unwrap();
        assert_eq!(reply.status, status, "{accept}");
    }
    assert_eq!(elsewhere.get(&format!("/apis/{api}/subscriptions")).await.expect(403).unwrap()["code"], 403);
    let unknown = "/apis/0198f0c5-0000-7000-8000-000000000000/subscriptions";
    assert_eq!(http.get(unknown).await.expect(404).unwrap()["code"], 404);
    let since = |time: &str| format!("/deployments?since={time}");
    let later = http.get(&since("2086-01-01T00:00:00Z")).await.expect(200).unwrap();
    assert_eq!(later, json!({"deployments": []}));
    let all = http.get(&since("2016-01-01T00:00:00Z")).await.expect(200).unwrap();
    assert_eq!(all["deployments"].as_array().map(Vec::len), Some(1));

    // Kinds that the platform does not have, and keys that are missing or bad.
    for path in
        ["/llm-providers/x", "/llm-proxies/x", "/mcp-proxies/x", "/websub-apis/x", "/webbroker-apis/x"]
    {
        let body = http.get(path).await.expect(404).unwrap();
        assert_eq!((&body["code"], &body["message"]), (&json!(404), &json!("Not Found")), "{path}");
        assert!(body["description"].is_string(), "{path}");
    }
    let missing = suite.client.get(&format!("{BASE}/deployments")).await.unwrap().expect(401).unwrap();
    let bad = suite.client.with_header("api-key", "x").unwrap();
    let bad = bad.get(&format!("{BASE}/deployments")).await.unwrap().expect(401).unwrap();
    assert_eq!((&missing["code"], &bad["code"]), (&json!(401), &json!(401)));
    assert_ne!(missing["description"], bad["description"]);
    suite.suite.shutdown().await;
}

/// An API that a gateway would refuse is refused before it is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_gateways_refuse_is_not_deployed() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let mut body = account.api_body("health");
    body["context"] = json!("/_gateway-health");
    let api = account.client.post("/api/v1/apis", &body).await.unwrap().expect(201).unwrap();
    let path = format!("/api/v1/apis/{}/deploy-revision", api["id"].as_str().unwrap());
    let reply = account.client.post(&path, &json!([{"gatewayId": gateway.id}])).await.unwrap();
    let problem = reply.expect(409).unwrap();
    assert_eq!(
        (&problem["reason"], &problem["errors"][0]["field"]),
        (&json!("NOT_DEPLOYABLE"), &json!("context"))
    );
    suite.suite.shutdown().await;
}
