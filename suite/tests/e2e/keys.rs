//! Idempotency keys through the edge: done once, answered again.

use std::path::Path;

use proto::Contract;
use reqwest::Method;
use serde_json::{Value, json};
use suite::client::{Client, Reply, text_at};

use crate::support::{Account, Process, TestSuite, client, config_file, signed_up, unique};

const KEY: &str = "Idempotency-Key";

/// Posts with a key.
async fn post(client: &Client, key: &str, path: &str, body: &Value) -> Reply {
    client.with_header(KEY, key).unwrap().post(path, body).await.unwrap()
}

/// Posts the same twice; the second answer must be the first once more, marked as such.
async fn twice(client: &Client, path: &str, body: &Value, status: u16) -> Value {
    let key = unique("key");
    let first = post(client, &key, path, body).await;
    let answer = first.expect(status).unwrap();
    assert_eq!(first.header("idempotency-replayed"), "");
    let again = post(client, &format!("\"{key}\""), path, body).await;
    assert_eq!((again.expect(status).unwrap(), &again.body), (answer.clone(), &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.headers.get("location"), first.headers.get("location"));
    answer
}

fn problem(reply: &Reply, status: u16, reason: &str) -> Value {
    let problem = reply.expect(status).unwrap();
    assert_eq!((&problem["reason"], &problem["status"]), (&json!(reason), &json!(status)), "{problem}");
    problem
}

/// Fails when a file below a folder holds one of these texts.
fn in_no_file(folder: &Path, secrets: &[&str]) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += in_no_file(&path, secrets);
            continue;
        }
        // A journal may just have gone.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{}", path.display());
        files += 1;
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_with_a_key_is_created_once() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let account = suite.account().await;
        let path = format!("/api/v1/organizations/{}/projects", account.organization);
        let body = json!({"name": "Once"});
        let first = post(&account.client, "k-1", &path, &body).await;
        let project = first.expect(201).unwrap();
        let again = post(&account.client, "k-1", &path, &body).await;
        assert_eq!(
            (again.expect(201).unwrap(), again.header("idempotency-replayed")),
            (project.clone(), "true")
        );
        assert_eq!(again.header("location"), format!("/api/v1/projects/{}", project["id"].as_str().unwrap()));
        let list = account.client.get(&path).await.unwrap().expect(200).unwrap();
        assert_eq!(list["count"], 2, "the default one and this: {list}");
        // Without the key it is another request, which is refused by itself.
        problem(&account.client.post(&path, &body).await.unwrap(), 409, "NAME_TAKEN");

        let other = post(&account.client, "k-1", &path, &json!({"name": "Another"})).await;
        let refused = problem(&other, 422, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(refused["errors"][0]["field"], KEY, "{refused}");
        for bad in ["two words", "\"open", "a,b", &"k".repeat(256)] {
            let refused =
                problem(&post(&account.client, bad, &path, &body).await, 400, "INVALID_IDEMPOTENCY_KEY");
            assert_eq!(refused["errors"][0]["field"], KEY, "{bad}");
        }
        let several = account.client.with_header(KEY, "a").unwrap();
        problem(&post(&several, "b", &path, &body).await, 400, "INVALID_IDEMPOTENCY_KEY");
        // A refusal gives the key back: the request can be put right.
        problem(&post(&account.client, "k-2", &path, &json!({"name": ""})).await, 400, "INVALID_FIELD");
        post(&account.client, "k-2", &path, &json!({"name": "Right"})).await.expect(201).unwrap();
        // Somebody else's key of the same name is another.
        let stranger = suite.account().await;
        let theirs = format!("/api/v1/organizations/{}/projects", stranger.organization);
        let theirs = post(&stranger.client, "k-1", &theirs, &body).await;
        assert_eq!(theirs.header("idempotency-replayed"), "");
        assert_ne!(theirs.expect(201).unwrap()["id"], project["id"]);
        problem(&post(&stranger.client, "k-1", &path, &body).await, 422, "IDEMPOTENCY_KEY_REUSED");
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_are_shown_once_are_shown_again_to_who_has_the_key_and_lie_nowhere() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let token = twice(&account.client, "/api/v1/auth/tokens", &json!({"name": "once"}), 201).await;
    let path = format!("/api/v1/organizations/{}/service-accounts", account.organization);
    let program = twice(&account.client, &path, &json!({"name": "program", "role": "viewer"}), 201).await;
    let path = format!("/api/v1/service-accounts/{}/keys", text_at(&program, "/id").unwrap());
    let key = twice(&account.client, &path, &json!({"name": "key"}), 201).await;
    let body = json!({"organizationId": account.organization, "name": unique("g"), "displayName": "G",
        "vhost": "gateway.example.com"});
    let gateway = twice(&account.client, "/api/v1/gateways", &body, 201).await;
    let path = format!("/api/v1/gateways/{}/tokens", text_at(&gateway, "/id").unwrap());
    let rotated = twice(&account.client, &path, &json!({}), 201).await;
    // One token was made, not two: there is room for one more, and no other.
    twice(&account.client, &path, &json!({}), 201).await;
    problem(&post(&account.client, "third", &path, &json!({})).await, 409, "TOKEN_LIMIT");
    let tokens = account.client.get("/api/v1/auth/tokens").await.unwrap().expect(200).unwrap();
    assert_eq!(tokens["count"], 1, "{tokens}");

    let secrets: Vec<&str> = [&token, &key, &rotated].map(|made| text_at(made, "/token").unwrap()).into();
    // The last part is the secret itself.
    let halves = secrets.iter().map(|secret| secret.rsplit('_').next().unwrap());
    let looked_for: Vec<&str> = secrets.iter().copied().chain(halves).collect();
    let data = suite.folder.path().join("data");
    assert!(in_no_file(&data, &looked_for) > 3);
    suite.suite.shutdown().await;
    assert!(in_no_file(&data, &looked_for) > 3, "also in what was in the write-ahead log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_caused_with_a_key_is_caused_once() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let (api, gateway) = (account.api("keyed").await, account.gateway().await);
    // A map in the request has no order, so the same request may come in other bytes.
    let mut body = account.api_body("mapped");
    let params: serde_json::Map<String, Value> = (0..20).map(|n| (format!("p{n}"), json!("v"))).collect();
    body["operations"][0]["request"]["requestPolicies"] = json!([{"name": "set-headers", "params": params}]);
    let key = unique("key");
    let first = post(&account.client, &key, "/api/v1/apis", &body).await.expect(201).unwrap();
    for _ in 0..5 {
        let again = post(&account.client, &key, "/api/v1/apis", &body).await;
        assert_eq!(
            (again.expect(201).unwrap(), again.header("idempotency-replayed")),
            (first.clone(), "true")
        );
    }
    let deploy = format!("/api/v1/apis/{api}/deploy-revision");
    let asked = json!([{"gatewayId": gateway.id, "name": "test", "vhost": "api.example.com"}]);
    let deployed = twice(&account.client, &deploy, &asked, 200).await;
    let all = account.deployments(&api).await;
    assert_eq!((all.len(), &all[0]["id"]), (1, &deployed[0]["id"]), "{all:?}");
    let revisions = account.client.get(&format!("/api/v1/apis/{api}/revisions")).await.unwrap();
    assert_eq!(revisions.expect(200).unwrap()["count"], 1);

    let events = format!("/api/v1/gateways/{}/events", gateway.id);
    let payload = json!({"a": 1, "b": {"c": 2, "d": [3]}, "e": "f", "g": null, "h": true, "i": 0.5});
    let event = json!({"type": "custom.once", "payload": payload});
    let sent = twice(&account.client, &events, &event, 202).await;
    let other = account.client.post(&events, &event).await.unwrap().expect(202).unwrap();
    assert_ne!(sent["eventId"], other["eventId"]);
    // Keys of one service are not those of another.
    post(&account.client, "shared", "/api/v1/auth/tokens", &json!({"name": "a"})).await.expect(201).unwrap();
    post(&account.client, "shared", &events, &event).await.expect(202).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_that_takes_a_key_looks_at_it() {
    let suite = TestSuite::start().await;
    let (client, ..) = signed_up(&suite.client).await;
    let bad = client.with_header(KEY, "two words").unwrap();
    let mut wrong = Vec::new();
    let mut keyed = 0;
    for method in Contract::get().methods().filter(|method| method.takes_key) {
        // Over Connect, where no path or body stands before the service.
        let reply = bad.send(Method::POST, &method.path, "application/json", "{}").await.unwrap();
        keyed += 1;
        if reply.status != 400 || !reply.text().contains("INVALID_IDEMPOTENCY_KEY") {
            wrong.push(format!("{}: {} {}", method.path, reply.status, reply.text()));
        }
    }
    assert!(wrong.is_empty() && keyed > 10, "{wrong:#?}");
    // Where none is taken, none is looked at.
    bad.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    bad.put("/api/v1/auth/profile", &json!({"name": "New"})).await.unwrap().expect(200).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "");
    let process = Process::start(folder.path(), &config).await;
    let ca = suite::ca_file(&folder.path().join("data"));
    let account = Account::new(&client(&process.url, &ca)).await;
    let body = json!({"organizationId": account.organization, "name": "Once"});
    let first = post(&account.client, "k", "/api/v1/projects", &body).await.expect(201).unwrap();
    process.kill().await;
    let process = Process::start(folder.path(), &config).await;
    let back = client(&process.url, &ca).with_token(account.client.token().unwrap());
    let again = post(&back, "k", "/api/v1/projects", &body).await;
    assert_eq!((again.expect(201).unwrap(), again.header("idempotency-replayed")), (first, "true"));
    assert_eq!(process.terminate().await, Some(0));
}
