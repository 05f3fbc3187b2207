//! Answers that the edge keeps, over the real services: what a colleague changes is seen, and so is what rights become.

use std::time::Duration;

use serde_json::{Value, json};
use suite::client::{Client, Reply, text_at};

use crate::support::{Account, PATIENCE, TestSuite};

/// Asks until an answer is as wanted.
async fn until(client: &Client, path: &str, wanted: impl Fn(&Reply) -> bool) -> Reply {
    let asking = async {
        loop {
            let reply = client.get(path).await.unwrap();
            if wanted(&reply) {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} is not as wanted"))
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status").starts_with("edge; hit")
}

/// A service account of the organization, and a client that is it.
async fn colleague(account: &Account) -> (String, Client) {
    let path = format!("/api/v1/organizations/{}/service-accounts", account.organization);
    let body = json!({"name": "colleague", "role": "developer"});
    let made = account.client.post(&path, &body).await.unwrap().expect(201).unwrap();
    let id = text_at(&made, "/id").unwrap().to_owned();
    let body = json!({"name": "key", "scopes": ["*:read"]});
    let keys = format!("/api/v1/service-accounts/{id}/keys");
    let key = account.client.post(&keys, &body).await.unwrap().expect(201).unwrap();
    let client = account.client.with_token(text_at(&key, "/token").unwrap());
    (id, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_changes_is_seen_and_rights_that_go_take_what_was_kept() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let (id, colleague) = colleague(&account).await;
    let api = account.api("kept").await;
    let total = |reply: &Reply| reply.json().unwrap()["pagination"]["total"].clone();
    // Lists whose paths name nothing: only a hint of project-service can tell that they changed.
    let (apis, gateways) = ("/api/v1/apis", "/api/v1/gateways");
    until(&colleague, apis, |reply| reply.status == 200 && total(reply) == 1 && is_hit(reply)).await;
    // Whether a gateway is connected is a matter of the moment: that is not kept.
    until(&colleague, gateways, |reply| reply.status == 200 && total(reply) == 0 && !is_hit(reply)).await;
    account.api("another").await;
    account.gateway().await;
    until(&colleague, apis, |reply| total(reply) == 2).await;
    assert_eq!(total(&colleague.get(gateways).await.unwrap()), 1);
    // Who writes sees it at once.
    assert_eq!(total(&account.client.get(apis).await.unwrap()), 2);
    let one = format!("{apis}/{api}");
    until(&colleague, &one, is_hit).await;
    let deleted = account.client.delete(&one).await.unwrap();
    deleted.expect(204).unwrap();
    account.client.get(&one).await.unwrap().expect(404).unwrap();
    colleague.get(&one).await.unwrap().expect(404).unwrap();
    until(&colleague, apis, is_hit).await;
    let gone = format!("/api/v1/service-accounts/{id}");
    account.client.delete(&gone).await.unwrap().expect(204).unwrap();
    until(&colleague, apis, |reply| reply.status == 401).await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_and_a_dashboard_are_answered_by_the_real_services() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    account.gateway().await;
    let dashboard = format!("/api/v1/organizations/{}/dashboard", account.organization);
    let whole = account.client.get(&dashboard).await.unwrap().expect(200).unwrap();
    assert_eq!(whole["partial"], false, "{whole}");
    assert_eq!(whole["organization"]["id"], account.organization);
    for (part, count) in [("projects", 1), ("gateways", 1), ("connections", 0), ("failedDeliveries", 0)] {
        assert_eq!(whole[part]["count"], count, "{part}: {whole}");
    }
    let mut api = account.api_body("of-a-batch");
    api["projectId"] = "{project.body.id}".into();
    let requests = json!({"requests": [
        {"id": "project", "method": "POST", "path": "/api/v1/projects",
            "body": {"organizationId": account.organization, "name": "Of a batch"}},
        {"id": "api", "method": "POST", "path": "/api/v1/projects/{project.body.id}/apis", "dependsOn": ["project"],
            "body": api},
        {"id": "read", "method": "GET", "path": "/api/v1/apis/{api.body.id}", "dependsOn": ["api"]},
    ]});
    let answers: Value = account.client.post("/api/v1/batch", &requests).await.unwrap().expect(200).unwrap();
    let answers = &answers["responses"];
    let statuses: Vec<&Value> = (0..3).map(|at| &answers[at]["status"]).collect();
    assert_eq!(statuses, [201, 201, 200], "{answers}");
    assert_eq!(answers[2]["body"]["projectId"], answers[0]["body"]["id"]);
    let stranger = suite.account().await;
    stranger.client.get(&dashboard).await.unwrap().expect(404).unwrap();
    suite.suite.shutdown().await;
}
