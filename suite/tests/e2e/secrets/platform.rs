//! What the platform keeps secret beside accounts: private keys of APIs, tokens of gateways.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::json;
use suite::{
    client::text_at,
    gateway::{GatewayClient, LinkError},
};

use super::Canaries;
use crate::support::{Account, unique, wait_for};

/// An API with a private key; its id.
pub(super) async fn private_key(account: &Account, canaries: &mut Canaries) -> String {
    let key = STANDARD.encode(unique("canary-private-key-of-an-api"));
    canaries.keep("a private key", &key);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
    let mut body = account.api_body("keyed");
    body["mtls"] = json!({"enabled": true, "clientKey": pem});
    let made = account.client.post("/api/v1/apis", &body).await.unwrap();
    canaries.none_in("an API", made.text().as_bytes());
    let id = text_at(&made.expect(201).unwrap(), "/id").unwrap().to_owned();
    body["mtls"]["clientKey"] = json!([pem]);
    canaries.refused(&account.client.post("/api/v1/apis", &body).await.unwrap());
    body["mtls"]["clientKey"] = json!(key);
    canaries.refused(&account.client.post("/api/v1/apis", &body).await.unwrap());
    canaries.refused(&account.import("application/yaml", format!("openapi: 3.1.0\n{pem}")).await);
    id
}

/// A gateway with a token: its socket, its HTTPS side, a deployment; and one with a wrong token.
pub(super) async fn link(account: &Account, api: &str, canaries: &mut Canaries) {
    let gateway = account.gateway().await;
    canaries.keep_token("a gateway's token", &gateway.token, '_');
    let controller = gateway.run();
    account.deploy(api, &gateway.id).await.unwrap();
    account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
    controller.stop().await;
    let mut wrong = gateway.token.clone();
    wrong.replace_range(wrong.len() - 8.., "zzzzzzzz");
    canaries.keep_token("a wrong gateway token", &wrong, '_');
    let nonsense = unique("canary-api-key");
    canaries.keep("what is no gateway token", &nonsense);
    for token in [wrong, nonsense] {
        let client = GatewayClient::new(&account.client, &token);
        let Err(LinkError::Refused { status, body }) = client.connect().await else { panic!("not refused") };
        assert_eq!(status, 401, "{body}");
        canaries.errors.push(("a gateway's socket".to_owned(), body));
        canaries.refused(&client.call(Method::GET, "/api/internal/v1/deployments", None).await.unwrap());
    }
    let path = format!("/api/v1/gateways/{}/tokens/{}", gateway.id, gateway.token_id);
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    wait_for("the revoked token is refused", async || gateway.client.deployments().await.err()).await;
}
