//! One of everything that can belong to somebody, made through the API by its owner.

use serde_json::{Value, json};
use suite::client::text_at;

use crate::{
    requests::Ids,
    support::{Account, Provider, authenticator},
};

/// Ids of things that exist and belong to `account`.
pub(crate) async fn ids_of(account: &Account, provider: &Provider) -> Ids {
    let api = account.api("theirs").await;
    let gateway = account.gateway().await;
    let deployment = account.deploy(&api, &gateway.id).await.unwrap();
    let revision = account.deployments(&api).await[0]["revisionId"].as_str().unwrap().to_owned();
    let sessions = get(account, "/api/v1/auth/sessions").await;
    let (service_account, key, _) = service_account(account, "owned", "developer").await;
    Ids {
        organization: account.organization.clone(),
        project: account.project.clone(),
        user: account.user_id.clone(),
        api,
        revision,
        gateway: gateway.id,
        token: gateway.token_id,
        deployment,
        session: text(&sessions, "/list/0/id"),
        personal_token: personal_token(account, &[]).await.0,
        service_account,
        key,
        identity: provider.link(&account.client).await,
        user_code: decided_code(account).await,
        passkey: passkey(account).await,
    }
}

/// That all of it is still there for its owner.
pub(crate) async fn assert_all_there(account: &Account, ids: &Ids) {
    let deployments = get(account, &format!("/api/v1/apis/{}/deployments", ids.api)).await;
    assert_eq!(deployments["list"][0]["id"], ids.deployment);
    let tokens = get(account, &format!("/api/v1/gateways/{}/tokens", ids.gateway)).await;
    assert_eq!((&tokens["count"], &tokens["list"][0]["status"]), (&1.into(), &"active".into()));
    let keys = format!("/api/v1/service-accounts/{}/keys", ids.service_account);
    for (path, id) in [
        ("/api/v1/auth/sessions", &ids.session),
        ("/api/v1/auth/tokens", &ids.personal_token),
        ("/api/v1/auth/identities", &ids.identity),
        (&keys, &ids.key),
    ] {
        let list = get(account, path).await;
        let there = list["list"].as_array().unwrap().iter().any(|one| one["id"] == **id);
        assert!(there, "{path}: {list}");
    }
    let factors = get(account, "/api/v1/auth/second-factors").await;
    assert_eq!(factors["passkeys"][0]["id"], ids.passkey);
    let of = format!("/api/v1/organizations/{}/service-accounts", ids.organization);
    let list = get(account, &of).await;
    assert_eq!((&list["count"], &list["list"][0]["id"]), (&json!(1), &json!(ids.service_account)));
}

/// A personal token with these scopes, those of a default one when there are none; id and text.
pub(crate) async fn personal_token(account: &Account, scopes: &[&str]) -> (String, String) {
    let made = post(account, "/api/v1/auth/tokens", &json!({"name": "theirs", "scopes": scopes}), 201).await;
    (text(&made, "/id"), text(&made, "/token"))
}

/// A service account with a key that may do everything that the role may; both ids and the key's text.
pub(crate) async fn service_account(account: &Account, name: &str, role: &str) -> (String, String, String) {
    let path = format!("/api/v1/organizations/{}/service-accounts", account.organization);
    let id = text(&post(account, &path, &json!({"name": name, "role": role}), 201).await, "/id");
    let body = json!({"name": "key", "scopes": ["*"]});
    let key = post(account, &format!("/api/v1/service-accounts/{id}/keys"), &body, 201).await;
    (id, text(&key, "/id"), text(&key, "/token"))
}

/// The code of a device that the owner let in: one that nobody has decided about is everybody's to enter.
async fn decided_code(account: &Account) -> String {
    let asked = post(account, "/api/v1/auth/device", &json!({"clientId": "tollgate-cli"}), 200).await;
    let code = text(&asked, "/userCode");
    let path = format!("/api/v1/auth/device/{code}/decision");
    post(account, &path, &json!({"approve": true}), 204).await;
    code
}

async fn passkey(account: &Account) -> String {
    let path = "/api/v1/auth/second-factors/passkeys";
    let started = post(account, &format!("{path}/start"), &json!({}), 200).await;
    let ceremony = proto::auth::PasskeyCeremony {
        ceremony: text(&started, "/ceremony"),
        options: serde_json::from_value(started["options"].clone()).unwrap(),
    };
    let credential = authenticator(&account.client).create(&ceremony);
    let body = json!({"ceremony": ceremony.ceremony, "credential": credential, "name": "A phone"});
    text(&post(account, path, &body, 201).await, "/passkey/id")
}

async fn get(account: &Account, path: &str) -> Value {
    account.client.get(path).await.unwrap().expect(200).unwrap()
}

async fn post(account: &Account, path: &str, body: &Value, status: u16) -> Value {
    account.client.post(path, body).await.unwrap().expect(status).unwrap()
}

fn text(value: &Value, pointer: &str) -> String {
    text_at(value, pointer).unwrap().to_owned()
}
