//! How a gateway reaches the platform: one trait, and an implementation for each way that there is.
//!
//! A transport carries frames; it knows no event type and no rule of the link. [`crate::controller`] runs over
//! each of them.

mod grpc;
mod sse;
mod websocket;

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use proto::{
    gateway::{DeploymentAck, PlatformFrame, platform_frame},
    time::Timestamp,
};
use serde_json::Value;

use crate::gateway::GatewayClient;

pub use websocket::GatewayLink;

/// How long the acknowledgement of a connection may take.
const ACK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a dial may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

/// A way to the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// WebSocket with JSON frames, as existing controllers speak it.
    WebSocket,
    /// The stream of native gRPC.
    Grpc,
    /// Server-Sent Events, answered over HTTPS.
    Sse,
}

/// What a gateway says of itself when it connects. WebSocket has no place for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The gateway instance.
    pub instance_id: String,
    /// The software's version.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// The newest revision that it has applied.
    pub applied_revision: u64,
    /// The hash of what it runs.
    pub state_hash: String,
}

/// What the platform says when the link stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// The gateway's id.
    pub gateway_id: String,
    /// The connection's id.
    pub connection_id: String,
    /// When, as it is on the wire.
    pub timestamp: String,
}

/// Why a gateway has no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The platform refused the connection.
    #[error("the platform refused the connection with {status}: {body}")]
    Refused {
        /// The HTTP status, or the one that goes with the gRPC status.
        status: u16,
        /// The body, or the message of the gRPC status.
        body: String,
    },
    /// No connection, or not one that keeps to the contract.
    #[error("{0:#}")]
    Broken(#[from] anyhow::Error),
}

/// Something the platform wants done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// The type, `api.deployed`.
    pub kind: String,
    /// The payload.
    pub payload: Value,
    /// Unique for each sending.
    pub correlation_id: String,
    /// When it was sent, as it is on the wire.
    pub timestamp: String,
    /// Who caused it, for the types that say so.
    pub user_id: Option<String>,
    /// The position in the gateway's log; WebSocket does not tell.
    pub revision: u64,
}

/// A part of the whole state.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The revision of the log that the state is of.
    pub revision: u64,
    /// The nonce of its acknowledgement.
    pub nonce: String,
    /// What is to run.
    pub events: Vec<Event>,
    /// Whether it is the last part.
    pub last: bool,
}

/// What came over the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Something to do.
    Event(Event),
    /// A part of the whole state.
    Snapshot(Part),
    /// A sign of life: a PING, or a heartbeat.
    Alive,
    /// The platform ended the link; code and reason as it gave them.
    Closed(Option<(u16, String)>),
}

/// What a gateway says on its link.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The outcome of a deployment event, in the contract's words.
    Deployment(DeploymentAck),
    /// The outcome of an event or a snapshot.
    Event(proto::gateway::EventAck),
    /// A sign of life: the newest revision that was applied, and the hash of what runs; of those that keep neither, up
    /// to which revision they are done with what came on the link.
    Heartbeat(proto::gateway::Heartbeat),
}

/// A link that the platform has acknowledged. Dropping it cuts it.
#[async_trait]
pub trait Link: Send {
    /// What the platform said first.
    fn welcome(&self) -> &Welcome;
    /// What comes next. Fails when the connection is lost or a frame breaks the contract. Nothing is lost when
    /// it is dropped half-way.
    async fn next(&mut self) -> anyhow::Result<Frame>;
    /// Says something to the platform.
    async fn send(&mut self, answer: Answer) -> anyhow::Result<()>;
    /// Ends the link like a gateway that shuts down.
    async fn close(self: Box<Self>);
}

impl Transport {
    /// The name that the platform gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Grpc => "grpc",
            Self::Sse => "sse",
        }
    }

    /// Opens a link and waits for its acknowledgement.
    pub async fn open(self, gateway: &GatewayClient, greeting: Greeting) -> Result<Box<dyn Link>, LinkError> {
        Ok(match self {
            Self::WebSocket => Box::new(GatewayLink::open(gateway).await?),
            Self::Grpc => Box::new(grpc::GrpcLink::open(gateway, greeting).await?),
            Self::Sse => Box::new(sse::SseLink::open(gateway, greeting).await?),
        })
    }
}

impl Event {
    /// A text of the payload; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        self.payload.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// The acknowledgement of a deployment event: `action` is `deploy` or `undeploy`; `error` why it failed.
    pub fn answer(&self, action: &str, error: Option<&str>) -> DeploymentAck {
        DeploymentAck {
            deployment_id: self.text("deploymentId").to_owned(),
            artifact_id: self.text("apiId").to_owned(),
            resource_type: "api".to_owned(),
            action: action.to_owned(),
            status: if error.is_some() { "failed" } else { "success" }.to_owned(),
            performed_at: self.text("performedAt").to_owned(),
            error_code: error.unwrap_or_default().to_owned(),
        }
    }
}

/// Waits until the first frame has come, which must be the acknowledgement.
async fn first<T>(frame: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(ACK_PATIENCE, frame).await.context("no acknowledgement of the link in 5 s")?
}

/// The first frame of a link of protobuf messages.
fn welcome(frame: Option<PlatformFrame>) -> anyhow::Result<Welcome> {
    match frame.and_then(|frame| frame.frame) {
        Some(platform_frame::Frame::Connected(connected)) => Ok(Welcome {
            gateway_id: connected.gateway_id,
            connection_id: connected.connection_id,
            timestamp: connected.timestamp.and_then(|time| time.to_rfc3339()).unwrap_or_default(),
        }),
        other => anyhow::bail!("the first frame does not acknowledge the link: {other:?}"),
    }
}

/// A later frame of a link of protobuf messages; nothing when it repeats the acknowledgement.
fn later(frame: PlatformFrame) -> anyhow::Result<Option<Frame>> {
    use platform_frame::Frame as To;
    Ok(match frame.frame.context("a frame without content")? {
        To::Connected(_) => None,
        To::Event(event) => Some(Frame::Event(carried(event)?)),
        To::Heartbeat(_) => Some(Frame::Alive),
        To::Close(close) => Some(Frame::Closed(Some((u16::try_from(close.code)?, close.reason)))),
        To::Snapshot(part) => Some(Frame::Snapshot(Part {
            revision: part.revision,
            nonce: part.nonce,
            events: part.events.into_iter().map(carried).collect::<anyhow::Result<_>>()?,
            last: part.last,
        })),
    })
}

fn carried(event: proto::gateway::Event) -> anyhow::Result<Event> {
    let payload = serde_json::from_str(&event.payload_json)
        .with_context(|| format!("{}: a payload that is not JSON", event.r#type))?;
    Ok(Event {
        kind: event.r#type,
        payload,
        correlation_id: event.correlation_id,
        timestamp: event.timestamp.as_ref().and_then(Timestamp::to_rfc3339).unwrap_or_default(),
        user_id: Some(event.user_id).filter(|user| !user.is_empty()),
        revision: event.revision,
    })
}
