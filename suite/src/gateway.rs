//! A model gateway: the HTTPS calls of a gateway, one at a time, each answer judged by the wire contract.
//!
//! It holds to the contract and decides nothing; [`crate::controller`] runs one on its own.

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::client::{Client, Reply, list_at, text_at};

pub use crate::transport::{Event, Frame, GatewayLink, LinkError};

/// The path of the socket.
pub const CONNECT_PATH: &str = "/api/internal/v1/ws/gateways/connect";
/// Where everything else of a gateway is.
const INTERNAL: &str = "/api/internal/v1";
/// Where a controller asks first which platform it has in front of it.
const PROBE_PATH: &str = "/internal/gateway/.well-known";
/// What a batch of artifacts is asked for as; anything else may be answered with 406.
const TAR_GZ: &str = "application/x-tar+gzip";
const ZIP: &str = "application/zip";
/// How long a call may take.
const CALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long the probe may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// The longest that a stream lives.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The HTTPS side of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayClient {
    client: Client,
    token: String,
}

/// An answer that is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{request}: {status} {body}")]
pub struct Refused {
    /// The request in short.
    pub request: String,
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl GatewayClient {
    /// A gateway with this token, at the platform that `client` calls.
    pub fn new(client: &Client, token: &str) -> Self {
        Self { client: client.clone(), token: token.to_owned() }
    }

    /// The client that it calls with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Opens the WebSocket and waits for its acknowledgement.
    pub async fn connect(&self) -> Result<GatewayLink, LinkError> {
        GatewayLink::open(self).await
    }

    /// Asks which platform this is, without a token.
    ///
    /// # Errors
    /// When it is one of those that want other paths, or there is no answer.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let request = self.client.bare(Method::GET, PROBE_PATH, &[])?.timeout(PROBE_PATIENCE);
        let reply = self.client.reply(format!("GET {PROBE_PATH}"), request).await?;
        if reply.status == 404 { Ok(()) } else { Err(refused(&reply).into()) }
    }

    /// Fetches the artifact of an API: the YAML document out of the zip.
    pub async fn fetch_api(&self, api_id: &str) -> anyhow::Result<serde_norway::Value> {
        let reply = self.ask(Method::GET, &format!("/apis/{api_id}"), ZIP, None).await?;
        expect_type(&reply, ZIP)?;
        let mut archive =
            zip::ZipArchive::new(std::io::Cursor::new(reply.body)).context("the artifact is not a zip")?;
        for index in 0..archive.len() {
            let mut file = archive.by_index(index)?;
            let name = file.name()?.into_owned();
            if name.ends_with(".yaml") || name.ends_with(".yml") {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return serde_norway::from_str(&text).context("the artifact is not YAML");
            }
        }
        anyhow::bail!("the zip holds no YAML")
    }

    /// Fetches the artifacts of deployments in one go: pairs of deployment id and YAML document.
    pub async fn fetch_batch(
        &self,
        deployment_ids: &[String],
    ) -> anyhow::Result<Vec<(String, serde_norway::Value)>> {
        let body = json!({"deploymentIds": deployment_ids});
        let reply = self.ask(Method::POST, "/deployments/fetch-batch", TAR_GZ, Some(&body)).await?;
        expect_type(&reply, TAR_GZ)?;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(reply.body.as_ref()));
        let mut found = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            anyhow::ensure!(name.starts_with("api-") && name.ends_with(".yaml"), "{name} in a batch");
            let deployment = path.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            found.push((deployment, serde_norway::from_str(&text)?));
        }
        Ok(found)
    }

    /// What the platform says the gateway is to run.
    pub async fn deployments(&self) -> anyhow::Result<Value> {
        self.get("/deployments").await
    }

    /// Which of these artifacts exist on the platform.
    pub async fn exist(&self, artifact_ids: &[String]) -> anyhow::Result<Vec<(String, bool)>> {
        let body = json!({"artifactIds": artifact_ids});
        let reply = self.ask(Method::POST, "/artifacts/exists", "application/json", Some(&body)).await?;
        let answer = reply.json()?;
        let entries = list_at(&answer, "/artifacts")?.iter().map(|entry| {
            let exists = entry.get("exists").and_then(Value::as_bool).context("`exists` is missing")?;
            Ok((text_at(entry, "/artifactId")?.to_owned(), exists))
        });
        entries.collect()
    }

    /// Tells the platform what this gateway can do, as controllers do on each connect.
    pub async fn send_manifest(&self, gateway_id: &str) -> anyhow::Result<()> {
        let path = format!("/gateways/{gateway_id}/manifest");
        let manifest = json!({"version": "1.2.0", "functionalityType": "regular", "policies": []});
        self.ask(Method::POST, &path, "application/json", Some(&manifest)).await.map(drop)
    }

    /// Hands over artifacts that were made on the gateway.
    pub async fn import(&self, artifacts: &[Value]) -> anyhow::Result<Value> {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        archive.start_file("artifacts.json", zip::write::SimpleFileOptions::default())?;
        archive.write_all(&serde_json::to_vec(artifacts)?)?;
        let part = Part::bytes(archive.finish()?.into_inner()).file_name("artifacts.zip");
        let form = Form::new().part("artifacts", part).text("total", artifacts.len().to_string());
        let path = format!("{INTERNAL}/artifacts/import-gateway-artifacts");
        let headers = [("api-key", self.token.as_str()), ("accept", "application/json")];
        let request = self.client.bare(Method::POST, &path, &headers)?.timeout(CALL_PATIENCE).multipart(form);
        let reply = self.client.reply(format!("POST {path}"), request).await?;
        if reply.status == 200 { reply.json() } else { Err(refused(&reply).into()) }
    }

    /// JSON below the internal path; the answer must be a success.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, "application/json", None).await?.json()
    }

    /// Opens a stream that lasts.
    pub async fn stream(&self, path: &str, accept: &str) -> anyhow::Result<reqwest::Response> {
        let headers = [("api-key", self.token.as_str()), ("accept", accept)];
        Ok(self.client.bare(Method::GET, path, &headers)?.timeout(DAY).send().await?)
    }

    /// Calls the gateway-facing API with the gateway's token.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Reply> {
        self.call_for(method, path, "application/json", body).await
    }

    /// The same, with the form that is wanted.
    pub async fn call_for(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let headers = [("api-key", self.token.as_str()), ("accept", accept)];
        let mut request = self.client.bare(method.clone(), path, &headers)?.timeout(CALL_PATIENCE);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        self.client.reply(format!("{method} {path}"), request).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let reply = self.call_for(method, &format!("{INTERNAL}{path}"), accept, body).await?;
        if matches!(reply.status, 200 | 204) { Ok(reply) } else { Err(refused(&reply).into()) }
    }
}

fn refused(reply: &Reply) -> Refused {
    Refused { request: reply.request.clone(), status: reply.status, body: reply.text() }
}

fn expect_type(reply: &Reply, wanted: &str) -> anyhow::Result<()> {
    let media_type = reply.header("content-type");
    anyhow::ensure!(media_type.starts_with(wanted), "{}: answered {media_type}", reply.request);
    Ok(())
}
