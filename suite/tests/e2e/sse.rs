//! A gateway in a network that lets neither WebSocket nor gRPC through: Server-Sent Events and reports.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Account, PATIENCE, TestSuite};

const EVENTS: &str = "/api/internal/v1/gateways/events";
const REPORTS: &str = "/api/internal/v1/gateways/reports";

/// Within this time a stream is closed once its token is gone.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// An open stream.
struct Stream {
    response: reqwest::Response,
    text: String,
    connection: String,
}

impl Stream {
    async fn open(account: &Account, token: &str, query: &str, alpn: &[&str]) -> Self {
        let tls = account.client.trust().client_config(alpn);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        let url = account.client.base().join(&format!("{EVENTS}{query}")).unwrap();
        let request = http.get(url).header("api-key", token).header("accept", "text/event-stream");
        let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self { response, text: String::new(), connection: String::new() };
        let (name, data) = stream.next().await.unwrap();
        assert_eq!(name, "connected");
        data["connectionId"].as_str().unwrap().clone_into(&mut stream.connection);
        stream
    }

    /// The next event with its data; `None` at the end. Signs of life are passed over.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let Some((event, rest)) = self.text.split_once("\n\n") else {
                let chunk =
                    timeout(PATIENCE, self.response.chunk()).await.expect("a piece in time").unwrap()?;
                self.text += std::str::from_utf8(&chunk).unwrap();
                continue;
            };
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (name, data) = (field("event: "), field("data: "));
            self.text = rest.to_owned();
            match (name, data) {
                (Some(name), Some(data)) if name != "heartbeat" => {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
                _ => {}
            }
        }
    }

    /// The next thing to do: the event and its payload.
    async fn event(&mut self, kind: &str) -> (Value, Value) {
        let (name, event) = self.next().await.unwrap();
        assert_eq!((name.as_str(), &event["type"]), ("event", &kind.into()));
        let payload = serde_json::from_str(event["payloadJson"].as_str().unwrap()).unwrap();
        (event, payload)
    }
}

fn done(payload: &Value) -> Value {
    json!({"deploymentId": payload["deploymentId"], "artifactId": payload["apiId"], "resourceType": "api",
        "action": "deploy", "status": "success", "performedAt": payload["performedAt"]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_take_a_stream_and_report() {
    for alpn in ["h2", "http/1.1"] {
        let suite = TestSuite::start().await;
        let account = suite.account().await;
        let gateway = account.gateway().await;
        let mut stream = Stream::open(&account, &gateway.token, "", &[alpn]).await;
        let api = account.api("sse").await;
        let deployment = account.deploy(&api, &gateway.id).await.unwrap();
        let (_, payload) = stream.event("api.deployed").await;
        assert_eq!(payload["deploymentId"], deployment.as_str());
        let report =
            async |body: Value| gateway.client.call(Method::POST, REPORTS, Some(&body)).await.unwrap();
        let body = json!({"connectionId": stream.connection, "deploymentAcks": [done(&payload)]});
        let answer = report(body).await.expect(200).unwrap();
        assert_eq!(answer["headRevision"], "1");
        account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
        // A sign of life alone, and reports that are none.
        report(json!({"connectionId": stream.connection, "heartbeat": {"revision": "1"}}))
            .await
            .expect(200)
            .unwrap();
        let bad = json!({"connectionId": stream.connection, "deploymentAcks": [{"deploymentId": "x"}]});
        let refused = report(bad).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        let unknown = "01890000-0000-7000-8000-000000000000";
        assert_eq!(report(json!({"connectionId": unknown})).await.status, 409);
        suite.suite.shutdown().await;
        // The suite restarts, as gateways see it.
        let (name, last) = stream.next().await.unwrap();
        assert!(matches!(name.as_str(), "close" | "error"), "{name} {last}");
        assert!(last["code"] == 1012 || last["code"] == 503, "{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_resumes_goes_on_where_it_was() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let api = account.api("resumes").await;
    account.deploy(&api, &gateway.id).await.unwrap();
    let query = "?instanceId=i-1&version=2.0.0&capabilities=ack&capabilities=resume";
    let mut stream = Stream::open(&account, &gateway.token, query, &["h2"]).await;
    let (name, snapshot) = stream.next().await.unwrap();
    assert_eq!((name.as_str(), &snapshot["last"]), ("snapshot", &true.into()));
    let revision = snapshot["revision"].as_str().unwrap().to_owned();
    let ack = json!({"revision": revision, "nonce": snapshot["nonce"]});
    let body = json!({"connectionId": stream.connection, "eventAcks": [ack]});
    gateway.client.call(Method::POST, REPORTS, Some(&body)).await.unwrap().expect(200).unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    drop(stream);

    let other = account.api("later").await;
    let deployment = account.deploy(&other, &gateway.id).await.unwrap();
    let query = format!("{query}&appliedRevision={revision}");
    let mut stream = Stream::open(&account, &gateway.token, &query, &["h2"]).await;
    let (event, payload) = stream.event("api.deployed").await;
    assert_eq!(payload["deploymentId"], deployment.as_str(), "only what is new");
    let ack = json!({"revision": event["revision"], "nonce": event["correlationId"]});
    let body = json!({"connectionId": stream.connection, "eventAcks": [ack]});
    gateway.client.call(Method::POST, REPORTS, Some(&body)).await.unwrap().expect(200).unwrap();
    account.wait_for_status(&other, &gateway.id, "DEPLOYED").await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_the_stream() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let mut stream = Stream::open(&account, &gateway.token, "", &["h2"]).await;
    let path = format!("/api/v1/gateways/{}/tokens/{}", gateway.id, gateway.token_id);
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    let (name, close) = timeout(CLOSE_PATIENCE, stream.next()).await.expect("within 5 s").unwrap();
    assert_eq!((name.as_str(), &close["code"]), ("close", &4401.into()));
    assert!(stream.next().await.is_none());
    let refused = gateway.client.stream(EVENTS, "text/event-stream").await.unwrap();
    assert_eq!(refused.status(), 401);
    suite.suite.shutdown().await;
}
