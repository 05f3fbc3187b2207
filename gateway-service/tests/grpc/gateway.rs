//! A gateway on the gRPC link.

use proto::gateway::{
    Close, Connected, DeploymentAck, Event, GatewayFrame, Heartbeat, Hello, PlatformFrame,
    gateway_frame::Frame as From, gateway_link_client::GatewayLinkClient, platform_frame::Frame as To,
};
use serde_json::Value;
use service_kit::client::Upstream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::harness::{PATIENCE, World, with_key};

pub(crate) struct TestGateway {
    pub(crate) connected: Connected,
    frames: mpsc::Sender<GatewayFrame>,
    stream: Streaming<PlatformFrame>,
}

/// Opens a stream whose first frame is `first`.
pub(crate) async fn open(
    world: &World,
    token: &str,
    first: Option<From>,
) -> Result<(mpsc::Sender<GatewayFrame>, Streaming<PlatformFrame>), Status> {
    let (frames, receiver) = mpsc::channel(64);
    if let Some(first) = first {
        frames.send(GatewayFrame { frame: Some(first) }).await.unwrap();
    }
    let request: Request<ReceiverStream<GatewayFrame>> = with_key(token, ReceiverStream::new(receiver));
    let stream = GatewayLinkClient::new(world.upstream("edge-proxy")).connect(request).await?.into_inner();
    Ok((frames, stream))
}

pub(crate) fn hello() -> From {
    From::Hello(Hello { version: "1.2.0".into(), ..Hello::default() })
}

impl TestGateway {
    /// Connects; the first frame must say so.
    pub(crate) async fn connect(world: &World, token: &str) -> Self {
        let (frames, mut stream) = open(world, token, Some(hello())).await.unwrap();
        let first = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        let Some(To::Connected(connected)) = first.frame else { panic!("not first: {first:?}") };
        Self { connected, frames, stream }
    }

    /// Connects with a hello, if it is admitted.
    pub(crate) async fn try_connect(world: &World, token: &str, first: From) -> Result<Self, Status> {
        Self::try_connect_to(world.upstream("edge-proxy"), token, first).await
    }

    /// Connects by an upstream, if it is admitted.
    pub(crate) async fn try_connect_to(upstream: Upstream, token: &str, first: From) -> Result<Self, Status> {
        let (frames, receiver) = mpsc::channel(64);
        frames.send(GatewayFrame { frame: Some(first) }).await.unwrap();
        let request: Request<ReceiverStream<GatewayFrame>> = with_key(token, ReceiverStream::new(receiver));
        let mut stream = GatewayLinkClient::new(upstream).connect(request).await?.into_inner();
        match tokio::time::timeout(PATIENCE, stream.message()).await.expect("a frame in time")? {
            Some(PlatformFrame { frame: Some(To::Connected(connected)) }) => {
                Ok(Self { connected, frames, stream })
            }
            other => panic!("not first: {other:?}"),
        }
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn frame(&mut self) -> Option<To> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("a frame in time");
        next.unwrap_or(None).and_then(|frame| frame.frame)
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            match self.frame().await {
                Some(To::Event(event)) => return event,
                Some(To::Heartbeat(_)) => {}
                other => panic!("no event: {other:?}"),
            }
        }
    }

    pub(crate) async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        for _ in 0..count {
            events.push(self.event().await);
        }
        events
    }

    /// The frame that ends the stream, and its end.
    pub(crate) async fn closed(&mut self) -> Close {
        let close = loop {
            match self.frame().await {
                Some(To::Close(close)) => break close,
                Some(_) => {}
                None => panic!("the stream ended without a close"),
            }
        };
        assert_eq!(self.frame().await, None, "nothing follows a close");
        close
    }

    /// Appends one more event; fails if another one comes before it.
    pub(crate) async fn only(&mut self, world: &World, gateway_id: &str) {
        let marker = world.deploy(gateway_id, &world.ids.next());
        let deployment = marker.deployment_id.clone();
        world.append(vec![marker]).await;
        let event = self.event().await;
        assert_eq!(payload(&event)["deploymentId"], deployment.as_str(), "an event too many: {event:?}");
    }

    pub(crate) async fn send(&self, frame: From) {
        self.frames.send(GatewayFrame { frame: Some(frame) }).await.unwrap();
    }

    pub(crate) async fn heartbeat(&self) {
        self.done_with(0).await;
    }

    /// Says that it is done with everything up to a revision.
    pub(crate) async fn done_with(&self, revision: u64) {
        self.send(From::Heartbeat(Heartbeat { revision, ..Heartbeat::default() })).await;
    }

    /// Says that an event was performed, or why not.
    pub(crate) async fn ack(&self, event: &Event, failure: Option<&str>) {
        self.send(From::DeploymentAck(ack_of(event, failure))).await;
    }
}

pub(crate) fn ack_of(event: &Event, failure: Option<&str>) -> DeploymentAck {
    let payload = payload(event);
    let text = |name: &str| payload[name].as_str().unwrap().to_owned();
    DeploymentAck {
        deployment_id: text("deploymentId"),
        artifact_id: text("apiId"),
        resource_type: "api".into(),
        action: if event.r#type == "api.deployed" { "deploy" } else { "undeploy" }.into(),
        status: if failure.is_some() { "failed" } else { "success" }.into(),
        performed_at: text("performedAt"),
        error_code: failure.unwrap_or_default().into(),
    }
}

pub(crate) fn payload(event: &Event) -> Value {
    serde_json::from_str(&event.payload_json).unwrap()
}

/// `performedAt` of an event; its text form sorts like the time.
pub(crate) fn performed_at(event: &Event) -> String {
    let text = payload(event)["performedAt"].as_str().unwrap().to_owned();
    assert_eq!(text.len(), "2026-08-22T10:00:00.123Z".len(), "{text}");
    text
}
