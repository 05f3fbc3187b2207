//! The story itself. Each chapter takes what it needs and hands on what the next one needs.

use anyhow::Context as _;
use proto::project::{Api, GetApiRequest, api_service_client::ApiServiceClient};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    PATIENCE,
    document::Document,
    printer::{Printer, brief},
};
use crate::{
    client::{Client, list_at, text_at},
    controller::operations,
    gateway::{Event, GatewayClient, GatewayLink},
    grpc,
};

/// The path of `GetApi` in gRPC.
const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";

/// The story of one account.
#[derive(Debug)]
pub(crate) struct Story {
    client: Client,
    document: Document,
    email: Option<String>,
    printer: Printer,
}

/// The ids that the chapters hand on.
#[derive(Debug)]
struct Places {
    organization: String,
    project: String,
}

impl Story {
    /// A story that begins without an account.
    pub(crate) fn new(client: Client, document: Document, email: Option<String>) -> Self {
        Self { client, document, email, printer: Printer::default() }
    }

    /// Tells all of it.
    pub(crate) async fn tell(mut self) -> anyhow::Result<()> {
        self.health().await?;
        let refresh_token = self.account().await?;
        let places = self.organization().await?;
        let api = self.import(&places).await?;
        let (gateway_id, gateway) = self.register_gateway(&places).await?;
        let mut link = self.connect(&gateway, &gateway_id).await?;
        self.deploy(&api, &gateway_id, &gateway, &mut link).await?;
        self.read_in_other_ways(&api).await?;
        self.undeploy(&api, &gateway_id, &mut link).await?;
        link.close().await;
        self.leave(&refresh_token).await?;
        self.printer.end(
            "\nThat was the whole story: an account, an organization, an API on a connected gateway, and back.",
        )
    }

    async fn health(&mut self) -> anyhow::Result<()> {
        let reply = self.client.get("/health").await?;
        let health = reply.expect(200)?;
        self.printer.step("is the suite healthy?", &brief(200, &health, &["status"]))
    }

    /// Sign-up and login; from then on the client has an access token. Returns the refresh token.
    async fn account(&mut self) -> anyhow::Result<String> {
        let email = self.email.clone().unwrap_or_else(|| format!("demo-{}@example.com", random_hex()));
        let password = format!("{}-{}", random_hex(), random_hex());
        let body = json!({"email": email, "password": password, "name": "Demo"});
        let user = self.client.post("/api/v1/auth/signup", &body).await?.expect(201)?;
        self.printer.step("sign up", &brief(201, &user, &["id", "email"]))?;

        let body = json!({"email": email, "password": password});
        let pair = self.client.post("/api/v1/auth/login", &body).await?.expect(200)?;
        self.client = self.client.with_token(text_at(&pair, "/accessToken")?);
        self.printer.step("log in", &brief(200, &pair, &["tokenType", "expiresIn"]))?;

        let profile = self.client.get("/api/v1/auth/profile").await?.expect(200)?;
        anyhow::ensure!(profile["email"] == *email, "the profile is not that of {email}: {profile}");
        self.printer.step("who am I?", &brief(200, &profile, &["email", "name"]))?;
        Ok(text_at(&pair, "/refreshToken")?.to_owned())
    }

    /// An organization, and the project that it comes with.
    async fn organization(&mut self) -> anyhow::Result<Places> {
        let body = json!({"handle": format!("demo-{}", random_hex()), "name": "Demo"});
        let organization = self.client.post("/api/v1/organizations", &body).await?.expect(201)?;
        let id = text_at(&organization, "/id")?.to_owned();
        self.printer.step("create an organization", &brief(201, &organization, &["id", "handle", "role"]))?;

        let projects = self.client.get(&format!("/api/v1/organizations/{id}/projects")).await?.expect(200)?;
        anyhow::ensure!(projects["count"] == 1, "one project was expected: {projects}");
        let project = &projects["list"][0];
        anyhow::ensure!(project["name"] == "Default", "the project is not \"Default\": {project}");
        self.printer.step("its first project", &brief(200, project, &["id", "name"]))?;
        Ok(Places { organization: id, project: text_at(project, "/id")?.to_owned() })
    }

    /// Imports the document and reads the API back; returns its id.
    async fn import(&mut self, places: &Places) -> anyhow::Result<String> {
        let path = format!("/api/v1/apis/import?projectId={}", places.project);
        let (text, media_type) = (self.document.text.clone(), self.document.media_type);
        let api = self.client.send(Method::POST, &path, media_type, text).await?.expect(201)?;
        let what = format!("import {}", self.document.source);
        self.printer.step(&what, &brief(201, &api, &["id", "name", "version", "context"]))?;

        let id = text_at(&api, "/id")?.to_owned();
        let read = self.client.get(&format!("/api/v1/apis/{id}")).await?.expect(200)?;
        let (found, wanted) = (list_at(&read, "/operations")?.len(), self.document.operations);
        anyhow::ensure!(found == wanted, "the document has {wanted} operations, the API {found}");
        self.printer.step("read it back over REST", &format!("200 {found} operations of {wanted}"))?;
        self.give_backend(read).await?;
        Ok(id)
    }

    /// An API of a document without servers has nowhere to send calls, and so cannot be deployed.
    async fn give_backend(&mut self, mut api: Value) -> anyhow::Result<()> {
        if !list_at(&api, "/backend-services")?.is_empty() {
            return Ok(());
        }
        let backend = json!({"name": "main", "isDefault": true,
            "endpoints": [{"url": "https://backend.example.com"}]});
        api["backend-services"] = json!([backend]);
        let path = format!("/api/v1/apis/{}", text_at(&api, "/id")?);
        let changed = self.client.put(&path, &api).await?.expect(200)?;
        let url = text_at(&changed, "/backend-services/0/endpoints/0/url")?.to_owned();
        self.printer.step("it names no server: give it one", &format!("200 {{url: {url}}}"))
    }

    /// Registers a gateway and takes a token for it.
    async fn register_gateway(&mut self, places: &Places) -> anyhow::Result<(String, GatewayClient)> {
        let body = json!({
            "organizationId": places.organization,
            "name": format!("demo-{}", random_hex()),
            "displayName": "Demo gateway",
            "vhost": "gateway.example.com",
        });
        let gateway = self.client.post("/api/v1/gateways", &body).await?.expect(201)?;
        let id = text_at(&gateway, "/id")?.to_owned();
        self.printer.step("register a gateway", &brief(201, &gateway, &["id", "name", "isActive"]))?;

        let token =
            self.client.post(&format!("/api/v1/gateways/{id}/tokens"), &json!({})).await?.expect(201)?;
        self.printer.step("take a token for it", &brief(201, &token, &["id", "createdAt"]))?;
        Ok((id, GatewayClient::new(&self.client, text_at(&token, "/token")?)))
    }

    async fn connect(&mut self, gateway: &GatewayClient, id: &str) -> anyhow::Result<GatewayLink> {
        let link = gateway.connect().await?;
        anyhow::ensure!(link.gateway_id == id, "the platform takes us for {}", link.gateway_id);
        gateway.send_manifest(id).await?;
        self.printer.step(
            "the gateway connects over wss",
            &format!("connection.ack {{connectionId: {}}}", link.connection_id),
        )?;
        Ok(link)
    }

    async fn deploy(
        &mut self,
        api: &str,
        gateway_id: &str,
        gateway: &GatewayClient,
        link: &mut GatewayLink,
    ) -> anyhow::Result<()> {
        let body = json!([{
            "gatewayId": gateway_id,
            "name": "demo",
            "vhost": "api.example.com",
            "displayOnDevportal": true,
        }]);
        let reply = self.client.post(&format!("/api/v1/apis/{api}/deploy-revision"), &body).await?;
        let answer = reply.expect(reply.status_of(&[200, 201]))?;
        let deployment = answer.get(0).context("the answer names no deployment")?.clone();
        self.printer.step("deploy the API to it", &brief(reply.status, &deployment, &["id", "status"]))?;

        let event = link.expect_event("api.deployed", PATIENCE).await?;
        check_event(&event, api, &deployment)?;
        self.printer.step("the gateway is told", &told(&event))?;

        let artifact = gateway.fetch_api(api).await?;
        let (found, wanted) = (operations(&artifact), self.document.operations);
        anyhow::ensure!(found == wanted, "the artifact has {found} operations, the document {wanted}");
        self.printer.step("it fetches the artifact", &format!("200 zip, YAML, {found} operations"))?;

        link.ack(&event, "deploy", None).await?;
        let state = self.wait_for_status(api, "DEPLOYED").await?;
        let shown = brief(200, &state, &["status", "deployedGatewayCount", "liveGatewayCount"]);
        self.printer.step("it acknowledges; the platform says", &shown)
    }

    /// The same read in gRPC-Web and in native gRPC.
    async fn read_in_other_ways(&mut self, api: &str) -> anyhow::Result<()> {
        let request = GetApiRequest { api_id: api.to_owned() };
        let read: Api = grpc::web_call(&self.client, GET_API, &request).await?;
        self.same_api(api, &read)?;
        self.printer.step(
            "read it over gRPC-Web",
            &format!("0 OK, {}, {} operations", read.name, read.operations.len()),
        )?;

        let mut client =
            ApiServiceClient::new(grpc::channel(&self.client)?).max_decoding_message_size(64 * 1024 * 1024);
        let read = client.get_api(grpc::authorized(&self.client, request)?).await?.into_inner();
        self.same_api(api, &read)?;
        self.printer.step(
            "read it over native gRPC",
            &format!("0 OK, {}, {} operations", read.name, read.operations.len()),
        )
    }

    fn same_api(&self, id: &str, read: &Api) -> anyhow::Result<()> {
        anyhow::ensure!(read.id == id, "asked for API {id}, got {}", read.id);
        let (found, wanted) = (read.operations.len(), self.document.operations);
        anyhow::ensure!(found == wanted, "the document has {wanted} operations, the API {found}");
        Ok(())
    }

    async fn undeploy(&mut self, api: &str, gateway_id: &str, link: &mut GatewayLink) -> anyhow::Result<()> {
        let body = json!([{"gatewayId": gateway_id}]);
        let reply = self.client.post(&format!("/api/v1/apis/{api}/undeploy-revision"), &body).await?;
        let answer = reply.expect(reply.status_of(&[200, 201]))?;
        let deployment = answer.get(0).context("the answer names no deployment")?.clone();
        self.printer.step("undeploy it", &brief(reply.status, &deployment, &["id", "status"]))?;

        let event = link.expect_event("api.undeployed", PATIENCE).await?;
        check_event(&event, api, &deployment)?;
        self.printer.step("the gateway is told", &told(&event))?;
        link.ack(&event, "undeploy", None).await?;
        let state = self.wait_for_status(api, "UNDEPLOYED").await?;
        self.printer.step("it acknowledges; the platform says", &brief(200, &state, &["status"]))
    }

    /// Waits until the API's only deployment has this status.
    async fn wait_for_status(&self, api: &str, status: &str) -> anyhow::Result<Value> {
        let path = format!("/api/v1/apis/{api}/deployments");
        let mut last = Value::Null;
        let wait = async {
            loop {
                let deployments = self.client.get(&path).await?.expect(200)?;
                last = deployments.pointer("/list/0").cloned().unwrap_or_default();
                if last["status"] == status {
                    return anyhow::Ok(last.clone());
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(state) => state,
            Err(_) => anyhow::bail!("the deployment is not {status} after {PATIENCE:?}: {last}"),
        }
    }

    async fn leave(&mut self, refresh_token: &str) -> anyhow::Result<()> {
        let body = json!({"refreshToken": refresh_token});
        let pair = self.client.post("/api/v1/auth/refresh", &body).await?.expect(200)?;
        self.client = self.client.with_token(text_at(&pair, "/accessToken")?);
        self.printer.step("exchange the refresh token", &brief(200, &pair, &["tokenType", "expiresIn"]))?;

        let reply = self.client.post("/api/v1/auth/logout", &json!({})).await?;
        reply.expect(reply.status_of(&[204, 200]))?;
        self.printer.step("log out", &reply.status.to_string())?;

        let body = json!({"refreshToken": text_at(&pair, "/refreshToken")?});
        let reply = self.client.post("/api/v1/auth/refresh", &body).await?;
        let problem = reply.expect(401)?;
        self.printer.step("the refresh token is dead", &brief(401, &problem, &["code", "detail"]))
    }
}

fn check_event(event: &Event, api: &str, deployment: &Value) -> anyhow::Result<()> {
    anyhow::ensure!(event.text("apiId") == api, "the event is about another API: {event:?}");
    anyhow::ensure!(
        event.text("deploymentId") == text_at(deployment, "/id")?,
        "the event is about another deployment: {event:?}"
    );
    Ok(())
}

fn told(event: &Event) -> String {
    format!(
        "{} {{deploymentId: {}, performedAt: {}}}",
        event.kind,
        event.text("deploymentId"),
        event.text("performedAt")
    )
}

fn random_hex() -> String {
    service_kit::opaque::random::<8>().map(|byte| format!("{byte:02x}")).concat()
}
