use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};
use suite::{
    client::{Client, text_at},
    controller::Controller,
    gateway::GatewayClient,
};

use super::wait_for;

/// A user with an organization and its first project.
pub(crate) struct Account {
    pub(crate) client: Client,
    pub(crate) email: String,
    pub(crate) user_id: String,
    pub(crate) refresh_token: String,
    pub(crate) organization: String,
    pub(crate) project: String,
}

/// A gateway with a token.
pub(crate) struct GatewayAccount {
    pub(crate) id: String,
    pub(crate) token_id: String,
    pub(crate) token: String,
    pub(crate) client: GatewayClient,
}

/// A name that nobody else has.
pub(crate) fn unique(prefix: &str) -> String {
    let random = service_kit::opaque::random::<8>();
    format!("{prefix}-{}", random.map(|byte| format!("{byte:02x}")).concat())
}

/// The password of every account.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// A new user: client with its token, e-mail address, id, refresh token.
pub(crate) async fn signed_up(anybody: &Client) -> (Client, String, String, String) {
    let email = format!("{}@example.com", unique("u"));
    let body = json!({"email": email, "password": PASSWORD, "name": "A User"});
    let user = anybody.post("/api/v1/auth/signup", &body).await.unwrap().expect(201).unwrap();
    let body = json!({"email": email, "password": PASSWORD});
    let pair = anybody.post("/api/v1/auth/login", &body).await.unwrap().expect(200).unwrap();
    let client = anybody.with_token(text_at(&pair, "/accessToken").unwrap());
    let refresh_token = text_at(&pair, "/refreshToken").unwrap().to_owned();
    (client, email, text_at(&user, "/id").unwrap().to_owned(), refresh_token)
}

impl Account {
    pub(crate) async fn new(anybody: &Client) -> Self {
        let (client, email, user_id, refresh_token) = signed_up(anybody).await;
        let body = json!({"handle": unique("o"), "name": "An Organization"});
        let made = client.post("/api/v1/organizations", &body).await.unwrap().expect(201).unwrap();
        let organization = text_at(&made, "/id").unwrap().to_owned();
        let path = format!("/api/v1/organizations/{organization}/projects");
        let projects = client.get(&path).await.unwrap().expect(200).unwrap();
        assert_eq!(projects["list"][0]["name"], "Default", "{projects}");
        let project = text_at(&projects, "/list/0/id").unwrap().to_owned();
        Self { client, email, user_id, refresh_token, organization, project }
    }

    /// An API with two operations.
    pub(crate) async fn api(&self, name: &str) -> String {
        let made = self.client.post("/api/v1/apis", &self.api_body(name)).await.unwrap();
        text_at(&made.expect(201).unwrap(), "/id").unwrap().to_owned()
    }

    /// What [`Self::api`] posts.
    pub(crate) fn api_body(&self, name: &str) -> Value {
        json!({
            "projectId": self.project,
            "name": name,
            "context": format!("/{name}"),
            "version": "1.0.0",
            "backend-services": [{"name": "main", "isDefault": true,
                "endpoints": [{"url": "https://backend.example.com"}]}],
            "operations": [
                {"name": "read", "request": {"method": "GET", "path": "/things/{id}"}},
                {"name": "write", "request": {"method": "POST", "path": "/things"}},
            ],
        })
    }

    /// Imports a document; the answer.
    pub(crate) async fn import(&self, media_type: &str, text: impl Into<Bytes>) -> suite::client::Reply {
        let path = format!("/api/v1/apis/import?projectId={}", self.project);
        self.client.send(Method::POST, &path, media_type, text).await.unwrap()
    }

    /// A registered gateway with a token.
    pub(crate) async fn gateway(&self) -> GatewayAccount {
        let body = json!({"organizationId": self.organization, "name": unique("g"), "displayName": "A Gateway",
            "vhost": "gateway.example.com"});
        let made = self.client.post("/api/v1/gateways", &body).await.unwrap().expect(201).unwrap();
        let id = text_at(&made, "/id").unwrap().to_owned();
        let path = format!("/api/v1/gateways/{id}/tokens");
        let token = self.client.post(&path, &json!({})).await.unwrap().expect(201).unwrap();
        let text = |name: &str| text_at(&token, name).unwrap().to_owned();
        let client = GatewayClient::new(&self.client, &text("/token"));
        GatewayAccount { id, token_id: text("/id"), token: text("/token"), client }
    }

    /// Asks for a deployment; its id.
    pub(crate) async fn deploy(&self, api: &str, gateway: &str) -> anyhow::Result<String> {
        let body = json!([{"gatewayId": gateway, "name": "test", "vhost": "api.example.com"}]);
        let reply = self.client.post(&format!("/api/v1/apis/{api}/deploy-revision"), &body).await?;
        Ok(text_at(&reply.expect(200)?, "/0/id")?.to_owned())
    }

    /// Asks for the end of a deployment; its id.
    pub(crate) async fn undeploy(&self, api: &str, gateway: &str) -> String {
        let body = json!([{"gatewayId": gateway}]);
        let reply = self.client.post(&format!("/api/v1/apis/{api}/undeploy-revision"), &body).await.unwrap();
        text_at(&reply.expect(200).unwrap(), "/0/id").unwrap().to_owned()
    }

    /// The deployments of an API.
    pub(crate) async fn deployments(&self, api: &str) -> Vec<Value> {
        let path = format!("/api/v1/apis/{api}/deployments?limit=100");
        let list = self.client.get(&path).await.unwrap().expect(200).unwrap();
        list["list"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the API has this status on this gateway.
    pub(crate) async fn wait_for_status(&self, api: &str, gateway: &str, status: &str) -> Value {
        let what = format!("API {api} {status} on gateway {gateway}");
        wait_for(&what, async || {
            let all = self.deployments(api).await;
            all.into_iter().find(|one| one["gatewayId"] == gateway && one["status"] == status)
        })
        .await
    }
}

impl GatewayAccount {
    /// A gateway that runs on its own.
    pub(crate) fn run(&self) -> Controller {
        let client = self.client.clone();
        Controller::spawn(move || client.clone())
    }
}
