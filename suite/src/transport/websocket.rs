//! WebSocket with JSON frames: the link of the wire contract.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, http::HeaderValue},
};

use super::{Answer, DIAL_PATIENCE, Event, Frame, Link, LinkError, Welcome, first};
use crate::{
    client::text_at,
    gateway::{CONNECT_PATH, GatewayClient},
};

/// The largest frame that controllers take.
const MAX_FRAME: usize = 1024 * 1024;

/// A gateway's WebSocket, after the platform has acknowledged it.
#[derive(Debug)]
pub struct GatewayLink {
    /// The gateway's id, as the platform says it.
    pub gateway_id: String,
    /// The connection's id.
    pub connection_id: String,
    welcome: Welcome,
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl GatewayLink {
    /// Opens the link and waits for its acknowledgement.
    pub async fn open(gateway: &GatewayClient) -> Result<Self, LinkError> {
        let base = gateway.client().base();
        let (host, port) =
            (base.host_str().unwrap_or_default(), base.port_or_known_default().unwrap_or_default());
        let url = format!("wss://{host}:{port}{CONNECT_PATH}");
        let mut request = url.into_client_request().map_err(anyhow::Error::from)?;
        let token = HeaderValue::from_str(gateway.token()).context("the token is not a header's value")?;
        request.headers_mut().insert("api-key", token);
        let dial = async {
            let trust = gateway.client().trust();
            let stream = trust.connect(host, port, "http/1.1").await.context("cannot reach the platform")?;
            match tokio_tungstenite::client_async(request, stream).await {
                Ok((socket, _)) => Ok(socket),
                Err(tungstenite::Error::Http(response)) => {
                    let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                    let status = response.status().as_u16();
                    Err(LinkError::Refused { status, body: body.into_owned() })
                }
                Err(error) => Err(anyhow::Error::from(error).into()),
            }
        };
        let socket = timeout(DIAL_PATIENCE, dial).await.context("the upgrade took longer than 10 s")??;
        Ok(first(Self::acknowledged(socket)).await?)
    }

    async fn acknowledged(mut socket: WebSocketStream<TlsStream<TcpStream>>) -> anyhow::Result<Self> {
        let text = loop {
            match next(&mut socket).await? {
                Incoming::Text(text) => break text,
                Incoming::Ping => {}
                Incoming::Closed(close) => anyhow::bail!("the link ended before connection.ack: {close:?}"),
            }
        };
        let ack: Value = serde_json::from_str(&text)?;
        anyhow::ensure!(text_at(&ack, "/type")? == "connection.ack", "the first frame is not an ack: {ack}");
        let text = |name| text_at(&ack, name).map(str::to_owned);
        let welcome = Welcome {
            gateway_id: text("/gatewayId")?,
            connection_id: text("/connectionId")?,
            timestamp: text("/timestamp")?,
        };
        let (gateway_id, connection_id) = (welcome.gateway_id.clone(), welcome.connection_id.clone());
        Ok(Self { gateway_id, connection_id, welcome, socket })
    }

    /// What comes next; pings are answered meanwhile. Fails when the connection is lost.
    pub async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            match self.frame().await? {
                Frame::Alive => {}
                frame => return Ok(frame),
            }
        }
    }

    /// What comes next, pings included.
    async fn frame(&mut self) -> anyhow::Result<Frame> {
        let text = match next(&mut self.socket).await? {
            Incoming::Text(text) => text,
            Incoming::Ping => return Ok(Frame::Alive),
            Incoming::Closed(close) => return Ok(Frame::Closed(close)),
        };
        anyhow::ensure!(text.len() <= MAX_FRAME, "a frame of {} bytes", text.len());
        let frame: Value = serde_json::from_str(&text).context("a frame that is not JSON")?;
        let kind = text_at(&frame, "/type")?.to_owned();
        if kind == "connection.ack" {
            // A repeat is ignored.
            return Ok(Frame::Alive);
        }
        let member = |name: &str| frame.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Frame::Event(Event {
            kind,
            payload: frame.get("payload").cloned().unwrap_or_default(),
            correlation_id: text_at(&frame, "/correlationId")?.to_owned(),
            timestamp: text_at(&frame, "/timestamp")?.to_owned(),
            user_id: member("userId"),
            revision: 0,
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
        self.send(Answer::Deployment(event.answer(action, error))).await
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

#[async_trait]
impl Link for GatewayLink {
    fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    async fn next(&mut self) -> anyhow::Result<Frame> {
        self.frame().await
    }

    async fn send(&mut self, answer: Answer) -> anyhow::Result<()> {
        match answer {
            Answer::Deployment(ack) => {
                let mut payload = json!({
                    "deploymentId": ack.deployment_id,
                    "artifactId": ack.artifact_id,
                    "resourceType": ack.resource_type,
                    "action": ack.action,
                    "status": ack.status,
                    "performedAt": ack.performed_at,
                });
                if !ack.error_code.is_empty() {
                    payload["errorCode"] = ack.error_code.into();
                }
                self.send_text(json!({"type": "deployment.ack", "payload": payload}).to_string()).await
            }
            Answer::Event(_) => anyhow::bail!("WebSocket knows no acknowledgement but that of deployments"),
            // The answers to pings are sign enough.
            Answer::Heartbeat(_) => Ok(()),
        }
    }

    async fn close(self: Box<Self>) {
        GatewayLink::close(*self).await;
    }
}

enum Incoming {
    Text(String),
    Ping,
    Closed(Option<(u16, String)>),
}

async fn next(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> anyhow::Result<Incoming> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(Incoming::Text(text.to_string())),
            Some(Ok(Message::Ping(_))) => return Ok(Incoming::Ping),
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
