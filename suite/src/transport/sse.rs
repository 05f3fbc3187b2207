//! Server-Sent Events, answered over HTTPS: for networks that let nothing else through.

use anyhow::Context as _;
use async_trait::async_trait;
use proto::gateway::{PlatformFrame, ReportRequest};
use reqwest::Method;
use tokio::time::timeout;

use super::{Answer, DIAL_PATIENCE, Frame, Greeting, Link, LinkError, Welcome, first, later, welcome};
use crate::gateway::GatewayClient;

/// Where the stream is.
const EVENTS_PATH: &str = "/api/internal/v1/gateways/events";
/// Where the answers go.
const REPORTS_PATH: &str = "/api/internal/v1/gateways/reports";

/// A stream of events, after the platform has acknowledged it.
#[derive(Debug)]
pub(super) struct SseLink {
    welcome: Welcome,
    gateway: GatewayClient,
    stream: Stream,
}

/// The lines of a stream, as they come.
#[derive(Debug)]
struct Stream {
    response: reqwest::Response,
    unread: Vec<u8>,
    /// The name and the data of the event that has begun.
    name: String,
    data: Vec<u8>,
}

impl SseLink {
    pub(super) async fn open(gateway: &GatewayClient, greeting: Greeting) -> Result<Self, LinkError> {
        let mut query = vec![
            ("instanceId", greeting.instance_id),
            ("version", greeting.version),
            ("stateHash", greeting.state_hash),
        ];
        query.extend(greeting.capabilities.into_iter().map(|capability| ("capabilities", capability)));
        if greeting.applied_revision > 0 {
            query.push(("appliedRevision", greeting.applied_revision.to_string()));
        }
        query.retain(|(_, value)| !value.is_empty());
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = format!("{EVENTS_PATH}?{}", query.join("&"));
        let dial = gateway.stream(&path, "text/event-stream");
        let response = timeout(DIAL_PATIENCE, dial).await.context("the dial took longer than 10 s")??;
        let status = response.status().as_u16();
        if status != 200 {
            let body = response.text().await.unwrap_or_default();
            return Err(LinkError::Refused { status, body });
        }
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        if !media_type.starts_with("text/event-stream") {
            return Err(anyhow::anyhow!("a stream of {media_type:?}").into());
        }
        let mut stream = Stream { response, unread: Vec::new(), name: String::new(), data: Vec::new() };
        let welcome = first(async { welcome(stream.next().await?) }).await?;
        Ok(Self { welcome, gateway: gateway.clone(), stream })
    }
}

impl Stream {
    /// The next frame; nothing when the stream has ended.
    async fn next(&mut self) -> anyhow::Result<Option<PlatformFrame>> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                if let Some(frame) = self.line(&line)? {
                    return Ok(Some(frame));
                }
            }
            match self.response.chunk().await.context("the link was lost")? {
                Some(chunk) => self.unread.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Takes a line; an empty one ends an event. Its name is that of the frame's only member, its data that member.
    fn line(&mut self, line: &[u8]) -> anyhow::Result<Option<PlatformFrame>> {
        if let Some(name) = line.strip_prefix(b"event:") {
            self.name = String::from_utf8_lossy(name.strip_prefix(b" ").unwrap_or(name)).into_owned();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
        if !line.is_empty() || self.data.is_empty() {
            // Comments and ids of events say nothing that the frame does not.
            return Ok(None);
        }
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        let data = String::from_utf8(data).context("an event that is not text")?;
        anyhow::ensure!(name != "error", "the stream failed: {data}");
        let frame = format!("{{{name:?}:{data}}}");
        serde_json::from_str(&frame).map(Some).with_context(|| format!("not a frame: {frame}"))
    }
}

#[async_trait]
impl Link for SseLink {
    fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            match self.stream.next().await? {
                Some(frame) => {
                    if let Some(frame) = later(frame)? {
                        return Ok(frame);
                    }
                }
                None => return Ok(Frame::Closed(None)),
            }
        }
    }

    async fn send(&mut self, answer: Answer) -> anyhow::Result<()> {
        let mut report =
            ReportRequest { connection_id: self.welcome.connection_id.clone(), ..ReportRequest::default() };
        match answer {
            Answer::Deployment(ack) => report.deployment_acks.push(ack),
            Answer::Event(ack) => report.event_acks.push(ack),
            Answer::Heartbeat(heartbeat) => report.heartbeat = Some(heartbeat),
        }
        let body = serde_json::to_value(&report)?;
        let reply = self.gateway.call(Method::POST, REPORTS_PATH, Some(&body)).await?;
        reply.expect(200).map(drop)
    }

    async fn close(self: Box<Self>) {
        // The end of the request is the only goodbye that there is.
    }
}
