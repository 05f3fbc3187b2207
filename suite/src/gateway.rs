//! A model gateway: the socket and the HTTPS calls of a gateway, one at a time.
//!
//! It holds to the wire contract and decides nothing; [`crate::controller`] runs one on its own.

use std::{io::Read as _, time::Duration};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, http::HeaderValue},
};

use crate::client::{Client, Reply, text_at};

/// The path of the socket.
pub const CONNECT_PATH: &str = "/api/internal/v1/ws/gateways/connect";

/// How long the acknowledgement of a connection may take.
const ACK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a gateway has no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The platform answered the upgrade with an HTTP status.
    #[error("the platform refused the connection with {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// No connection, or not one that keeps to the contract.
    #[error("{0:#}")]
    Broken(#[from] anyhow::Error),
}

/// A gateway's link, after the platform has acknowledged it.
#[derive(Debug)]
pub struct GatewayLink {
    /// The gateway's id, as the platform says it.
    pub gateway_id: String,
    /// The connection's id.
    pub connection_id: String,
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

/// Something the platform wants done.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The type, `api.deployed`.
    pub kind: String,
    /// The payload.
    pub payload: Value,
    /// Unique for each sending.
    pub correlation_id: String,
}

/// What came over the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Something to do.
    Event(Event),
    /// The platform ended the link; code and reason as it gave them.
    Closed(Option<(u16, String)>),
}

impl Event {
    /// A text of the payload; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        self.payload.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The HTTPS side of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayClient {
    client: Client,
    token: String,
}

impl GatewayClient {
    /// A gateway with this token, at the platform that `client` calls.
    pub fn new(client: &Client, token: &str) -> Self {
        Self { client: client.clone(), token: token.to_owned() }
    }

    /// Opens the link and waits for its acknowledgement.
    pub async fn connect(&self) -> Result<GatewayLink, LinkError> {
        let base = self.client.base();
        let (host, port) =
            (base.host_str().unwrap_or_default(), base.port_or_known_default().unwrap_or_default());
        let url = format!("wss://{host}:{port}{CONNECT_PATH}");
        let mut request = url.into_client_request().map_err(anyhow::Error::from)?;
        let token = HeaderValue::from_str(&self.token).context("the token is not a header's value")?;
        request.headers_mut().insert("api-key", token);
        let stream =
            self.client.trust().connect(host, port, "http/1.1").await.context("cannot reach the platform")?;
        let socket = match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => socket,
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                return Err(LinkError::Refused {
                    status: response.status().as_u16(),
                    body: body.into_owned(),
                });
            }
            Err(error) => return Err(anyhow::Error::from(error).into()),
        };
        Ok(GatewayLink::acknowledged(socket).await?)
    }

    /// Fetches the artifact of an API: the YAML document out of the zip.
    pub async fn fetch_api(&self, api_id: &str) -> anyhow::Result<serde_norway::Value> {
        let reply = self.call(Method::GET, &format!("/api/internal/v1/apis/{api_id}"), None).await?;
        anyhow::ensure!(reply.status == 200, "{}: {} {}", reply.request, reply.status, reply.text());
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
        let reply = self.call(Method::POST, "/api/internal/v1/deployments/fetch-batch", Some(&body)).await?;
        anyhow::ensure!(reply.status == 200, "{}: {} {}", reply.request, reply.status, reply.text());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(reply.body.as_ref()));
        let mut found = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let deployment = path.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            found.push((deployment, serde_norway::from_str(&text)?));
        }
        Ok(found)
    }

    /// What the platform says the gateway is to run.
    pub async fn deployments(&self) -> anyhow::Result<Value> {
        self.call(Method::GET, "/api/internal/v1/deployments", None).await?.expect(200)
    }

    /// Tells the platform what this gateway can do, as controllers do on each connect.
    pub async fn send_manifest(&self, gateway_id: &str) -> anyhow::Result<()> {
        let path = format!("/api/internal/v1/gateways/{gateway_id}/manifest");
        let manifest = json!({"version": "1.2.0", "functionalityType": "regular", "policies": []});
        let reply = self.call(Method::POST, &path, Some(&manifest)).await?;
        anyhow::ensure!(
            matches!(reply.status, 200 | 204),
            "{}: {} {}",
            reply.request,
            reply.status,
            reply.text()
        );
        Ok(())
    }

    /// Calls the gateway-facing API with the gateway's token.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Reply> {
        self.client.send_with(method, path, ("api-key", &self.token), body).await
    }
}

impl GatewayLink {
    async fn acknowledged(mut socket: WebSocketStream<TlsStream<TcpStream>>) -> anyhow::Result<Self> {
        let first =
            timeout(ACK_PATIENCE, next_text(&mut socket)).await.context("no connection.ack in 5 s")??;
        let Incoming::Text(text) = first else { anyhow::bail!("the link ended before connection.ack") };
        let ack: Value = serde_json::from_str(&text)?;
        anyhow::ensure!(text_at(&ack, "/type")? == "connection.ack", "the first frame is not an ack: {ack}");
        Ok(Self {
            gateway_id: text_at(&ack, "/gatewayId")?.to_owned(),
            connection_id: text_at(&ack, "/connectionId")?.to_owned(),
            socket,
        })
    }

    /// What comes next; pings are answered meanwhile. Fails when the connection is lost.
    pub async fn next(&mut self) -> anyhow::Result<Frame> {
        let text = match next_text(&mut self.socket).await? {
            Incoming::Text(text) => text,
            Incoming::Closed(close) => return Ok(Frame::Closed(close)),
        };
        let frame: Value = serde_json::from_str(&text).context("a frame that is not JSON")?;
        Ok(Frame::Event(Event {
            kind: text_at(&frame, "/type")?.to_owned(),
            payload: frame.get("payload").cloned().unwrap_or_default(),
            correlation_id: text_at(&frame, "/correlationId")?.to_owned(),
        }))
    }

    /// The next event, which must be of this type and come within `patience`.
    pub async fn expect_event(&mut self, kind: &str, patience: Duration) -> anyhow::Result<Event> {
        let next = timeout(patience, self.next()).await;
        match next.with_context(|| format!("no {kind} within {patience:?}"))?? {
            Frame::Event(event) if event.kind == kind => Ok(event),
            other => anyhow::bail!("expected {kind}, got {other:?}"),
        }
    }

    /// Acknowledges a deployment event: `action` is `deploy` or `undeploy`; `error` why it failed.
    pub async fn ack(&mut self, event: &Event, action: &str, error: Option<&str>) -> anyhow::Result<()> {
        let mut payload = json!({
            "deploymentId": event.text("deploymentId"),
            "artifactId": event.text("apiId"),
            "resourceType": "api",
            "action": action,
            "status": if error.is_some() { "failed" } else { "success" },
            "performedAt": event.text("performedAt"),
        });
        if let Some(error) = error {
            payload["errorCode"] = error.into();
        }
        self.send_text(json!({"type": "deployment.ack", "payload": payload}).to_string()).await
    }

    /// Sends any text frame.
    pub async fn send_text(&mut self, text: String) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// Closes the link like a gateway that shuts down.
    pub async fn close(mut self) {
        // The link is over either way.
        let _ = self.socket.close(None).await;
    }
}

enum Incoming {
    Text(String),
    Closed(Option<(u16, String)>),
}

async fn next_text(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> anyhow::Result<Incoming> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(Incoming::Text(text.to_string())),
            Some(Ok(Message::Close(frame))) => {
                let close = frame.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
                return Ok(Incoming::Closed(close));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).context("the link was lost"),
            None => return Ok(Incoming::Closed(None)),
        }
    }
}
