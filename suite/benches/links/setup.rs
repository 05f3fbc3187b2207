//! An account, an API and a thousand gateways; and the ways in which events come to be.

use std::time::{Duration, Instant};

use proto::gateway::{AppendEventsRequest, NewEvent, delivery_service_client::DeliveryServiceClient};
use serde_json::{Value, json};
use service_kit::{
    Clock, Ids,
    client::{Upstream, UpstreamConfig},
    tls::DevCa,
};
use suite::client::{Client, text_at};

use crate::{PATIENCE, fleet::Fleet, sockets::Sockets};

const PASSWORD: &str = "correct horse battery staple";

/// The most events of one call.
const BATCH: usize = 500;

pub(crate) struct Setup {
    pub(crate) tokens: Vec<String>,
    gateways: Vec<String>,
    api: String,
    /// An API that only these events know.
    artifact: String,
    client: Client,
    log: DeliveryServiceClient<Upstream>,
    metrics: String,
    ids: Ids,
}

/// How long a deploy to all took, from its call.
pub(crate) struct Deploy {
    pub(crate) answered: Duration,
    pub(crate) arrived: Duration,
    pub(crate) acknowledged: Duration,
    pub(crate) deployed: Duration,
}

impl Setup {
    pub(crate) async fn register(fleet: &Fleet, count: usize) -> Self {
        let post = async |client: &Client, path: &str, body: Value, status: u16| {
            client.post(path, &body).await.unwrap().expect(status).unwrap()
        };
        let account = json!({"email": "bench@example.com", "password": PASSWORD, "name": "Bench"});
        post(&fleet.client, "/api/v1/auth/signup", account, 201).await;
        let login = json!({"email": "bench@example.com", "password": PASSWORD});
        let login = post(&fleet.client, "/api/v1/auth/login", login, 200).await;
        let client = fleet.client.with_token(text_at(&login, "/accessToken").unwrap());
        let body = json!({"name": "Bench", "handle": "bench"});
        let organization = post(&client, "/api/v1/organizations", body, 201).await;
        let organization = text_at(&organization, "/id").unwrap();
        let projects = client.get(&format!("/api/v1/organizations/{organization}/projects")).await.unwrap();
        let project = text_at(&projects.expect(200).unwrap(), "/list/0/id").unwrap().to_owned();
        let api = json!({
            "projectId": project, "name": "Bench", "version": "1.0", "context": "/bench",
            "backend-services": [{"name": "main", "isDefault": true, "endpoints": [{"url": "https://example.com"}]}],
            "operations": [{"name": "get", "request": {"method": "GET", "path": "/"}}],
        });
        let api = text_at(&post(&client, "/api/v1/apis", api, 201).await, "/id").unwrap().to_owned();
        let (mut gateways, mut tokens) = (Vec::new(), Vec::new());
        for at in 0..count {
            let body = json!({
                "organizationId": organization, "name": format!("bench-{at}"), "displayName": "Bench",
            });
            let gateway = post(&client, "/api/v1/gateways", body, 201).await;
            let id = text_at(&gateway, "/id").unwrap().to_owned();
            let token = post(&client, &format!("/api/v1/gateways/{id}/tokens"), json!({}), 201).await;
            tokens.push(text_at(&token, "/token").unwrap().to_owned());
            gateways.push(id);
        }
        let identity =
            DevCa::load_or_create(&fleet.tls_folder()).unwrap().identity("project-service").unwrap();
        let config = UpstreamConfig { address: fleet.gateway_address.clone(), connections: 1 };
        let log = DeliveryServiceClient::new(Upstream::new(&identity, "gateway-service", &config).unwrap());
        let ids = Ids::new(Clock::system());
        let metrics = fleet.gateway_metrics();
        Self { tokens, gateways, api, artifact: ids.next(), client, log, metrics, ids }
    }

    /// Commits an event for each of these gateways.
    pub(crate) async fn append(&self, targets: &[usize]) {
        for some in targets.chunks(BATCH) {
            let events = some.iter().map(|at| self.event(&self.gateways[*at])).collect();
            self.log.clone().append_events(AppendEventsRequest { events }).await.unwrap();
        }
    }

    fn event(&self, gateway: &str) -> NewEvent {
        let deployment = self.ids.next();
        NewEvent {
            id: self.ids.next(),
            gateway_id: gateway.to_owned(),
            r#type: "api.deployed".to_owned(),
            payload_json: json!({
                "apiId": self.artifact, "deploymentId": deployment, "revisionId": "1", "vhost": "", "environment": "production",
            })
            .to_string(),
            artifact_id: self.artifact.clone(),
            deployment_id: deployment,
            user_id: String::new(),
        }
    }

    /// Deploys the API to all gateways in one call.
    pub(crate) async fn deploy_to_all(&self, sockets: &mut Sockets, count: usize) -> Deploy {
        let targets: Vec<Value> = self.gateways.iter().map(|id| json!({"gatewayId": id})).collect();
        let before = self.acknowledged().await;
        let began = Instant::now();
        let path = format!("/api/v1/apis/{}/deploy-revision", self.api);
        let reply = self.client.post(&path, &Value::Array(targets)).await.unwrap();
        let answered = began.elapsed();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let arrived = sockets.wait(count).await.duration_since(began);
        let goal = before + count as u64;
        while self.acknowledged().await < goal {
            assert!(began.elapsed() < PATIENCE, "every acknowledgement is recorded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let acknowledged = began.elapsed();
        let path = format!("/api/v1/apis/{}/deployments?limit=1", self.api);
        loop {
            let list = self.client.get(&path).await.unwrap().expect(200).unwrap();
            if list.pointer("/list/0/deployedGatewayCount").and_then(Value::as_u64) == Some(count as u64) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "DEPLOYED everywhere: {list}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Deploy { answered, arrived, acknowledged, deployed: began.elapsed() }
    }

    /// How many acknowledgements gateway-service has recorded.
    async fn acknowledged(&self) -> u64 {
        let text = reqwest::get(&self.metrics).await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| {
            line.starts_with("tollgate_gateway_acks_total") && line.contains("outcome=\"success\"")
        });
        let value = line.and_then(|line| line.rsplit_once(' ')).map_or("0", |(_, value)| value);
        value.parse::<f64>().unwrap() as u64
    }
}
