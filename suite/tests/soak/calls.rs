//! Calls that are as they should be, in every protocol.

use proto::project::{Api, GetApiRequest, api_service_client::ApiServiceClient};
use reqwest::Method;
use serde_json::json;
use suite::{client::text_at, grpc};
use tonic::transport::Channel;

use super::hands::{Answer, Hands, answer};
use crate::support::{PASSWORD, unique};

pub(crate) const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";

impl Hands {
    /// One of the answers that people look at.
    pub(crate) async fn read(&mut self, http: &reqwest::Client) -> anyhow::Result<String> {
        let path = match self.dice.below(5) {
            0 => "/api/v1/auth/profile".to_owned(),
            1 => format!("/api/v1/apis?projectId={}", self.world.project),
            2 => format!("/api/v1/organizations/{}/projects", self.world.organization),
            3 => "/api/v1/gateways/connections".to_owned(),
            _ => format!("/api/v1/apis/{}", self.api()),
        };
        let request = self.request(http, Method::GET, &path).header("accept-encoding", "gzip");
        answer(request).await?.expect(&[200])
    }

    async fn post(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<Answer> {
        answer(self.request(&self.h2, Method::POST, path).json(body)).await
    }

    /// Makes an API and deletes it.
    pub(crate) async fn write(&self) -> anyhow::Result<String> {
        let name = unique("soak");
        let body = json!({
            "projectId": self.world.project, "name": name, "context": format!("/{name}"), "version": "1.0.0",
            "backend-services":
                [{"name": "main", "isDefault": true, "endpoints": [{"url": "https://backend.example.com"}]}],
            "operations": [{"name": "read", "request": {"method": "GET", "path": "/things/{id}"}}],
        });
        let made = self.post("/api/v1/apis", &body).await?;
        made.expect(&[201])?;
        let path = format!("/api/v1/apis/{}", text_at(&made.json()?, "/id")?);
        answer(self.request(&self.h1, Method::DELETE, &path)).await?.expect(&[204])
    }

    /// Asks for a deployment, or for its end; there is none to end when a call before was cancelled.
    pub(crate) async fn deploy(&mut self) -> anyhow::Result<String> {
        let gateway = &self.world.gateways[self.dice.below(self.world.gateways.len())].0;
        let verb = ["deploy", "undeploy"][self.dice.below(2)];
        let path = format!("/api/v1/apis/{}/{verb}-revision", self.api());
        self.post(&path, &json!([{"gatewayId": gateway}])).await?.expect(&[200, 404, 409])
    }

    pub(crate) async fn batch(&self) -> anyhow::Result<String> {
        let api = format!("/api/v1/apis/{}", self.api());
        let requests = json!({"requests": [
            {"id": "me", "method": "GET", "path": "/api/v1/auth/profile"},
            {"id": "api", "method": "GET", "path": api},
            {"id": "again", "method": "GET", "path": "/api/v1/apis/{api.body.id}", "dependsOn": ["api"]},
            {"id": "missing", "method": "GET", "path": "/api/v1/apis/0198f0c5-0000-7000-8000-000000000000"},
            {"id": "after", "method": "GET", "path": "/nowhere", "dependsOn": ["missing"]},
        ]});
        let reply = self.post("/api/v1/batch", &requests).await?;
        reply.expect(&[200])?;
        let reply = reply.json()?;
        let statuses: Vec<u64> = (0..5)
            .filter_map(|at| reply.pointer(&format!("/responses/{at}/status")).and_then(|one| one.as_u64()))
            .collect();
        anyhow::ensure!(statuses == [200, 200, 200, 404, 424], "{statuses:?}");
        Ok("200".to_owned())
    }

    /// A new session, its second pair of tokens, and somebody who knows no password.
    pub(crate) async fn login(&self) -> anyhow::Result<String> {
        let body = json!({"email": self.world.visitor, "password": PASSWORD});
        let pair = self.post("/api/v1/auth/login", &body).await?;
        pair.expect(&[200])?;
        let body = json!({"refreshToken": text_at(&pair.json()?, "/refreshToken")?});
        self.post("/api/v1/auth/refresh", &body).await?.expect(&[200])?;
        let body = json!({"email": format!("{}@example.com", unique("x")), "password": "a guess of mine"});
        self.post("/api/v1/auth/login", &body).await?.expect(&[401])?;
        Ok("200, 200, 401".to_owned())
    }

    pub(crate) async fn grpc(&self, channel: Channel) -> anyhow::Result<String> {
        let mut client = ApiServiceClient::new(channel);
        let get = |id: &str| grpc::authorized(&self.client, GetApiRequest { api_id: id.to_owned() });
        let found = client.get_api(get(self.api())?).await?.into_inner();
        anyhow::ensure!(found.id == self.api(), "another API");
        match client.get_api(get("0198f0c5-0000-7000-8000-000000000000")?).await {
            Err(status) if status.code() == tonic::Code::NotFound => Ok("0, 5".to_owned()),
            other => anyhow::bail!("not NOT_FOUND: {other:?}"),
        }
    }

    pub(crate) async fn web(&self) -> anyhow::Result<String> {
        let message = GetApiRequest { api_id: self.api().to_owned() };
        let found: Api = grpc::web_call(&self.client, GET_API, &message).await?;
        anyhow::ensure!(found.id == self.api(), "another API");
        Ok("0".to_owned())
    }

    pub(crate) async fn connect(&mut self) -> anyhow::Result<String> {
        let http = [&self.h1, &self.h2][self.dice.below(2)];
        let request = self.request(http, Method::POST, GET_API).header("connect-protocol-version", "1");
        let reply = answer(request.json(&json!({"apiId": self.api()}))).await?;
        reply.expect(&[200])?;
        anyhow::ensure!(text_at(&reply.json()?, "/id")? == self.api(), "another API");
        Ok("200".to_owned())
    }

    pub(crate) async fn connect_get(&mut self) -> anyhow::Result<String> {
        let http = [&self.h1, &self.h2][self.dice.below(2)];
        let message = format!("%7B%22apiId%22:%22{}%22%7D", self.api());
        let path = format!("{GET_API}?connect=v1&encoding=json&message={message}");
        answer(self.request(http, Method::GET, &path)).await?.expect(&[200])
    }
}
