//! The stream of native gRPC.

use anyhow::Context as _;
use async_trait::async_trait;
use proto::gateway::{
    GatewayFrame, Hello, PlatformFrame, gateway_frame::Frame as From, gateway_link_client::GatewayLinkClient,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Request, Status, Streaming};

use super::{ACK_PATIENCE, Answer, DIAL_PATIENCE, Frame, Greeting, Link, LinkError, Welcome, later, welcome};
use crate::{gateway::GatewayClient, grpc};

/// A part of a snapshot: a hundred events of the largest size.
const MAX_MESSAGE: usize = 128 * 1024 * 1024;

/// A stream, after the platform has acknowledged it.
#[derive(Debug)]
pub(super) struct GrpcLink {
    welcome: Welcome,
    to_platform: mpsc::Sender<GatewayFrame>,
    from_platform: Streaming<PlatformFrame>,
}

impl GrpcLink {
    pub(super) async fn open(gateway: &GatewayClient, greeting: Greeting) -> Result<Self, LinkError> {
        let (to_platform, receiver) = mpsc::channel(16);
        let hello = Hello {
            instance_id: greeting.instance_id,
            version: greeting.version,
            capabilities: greeting.capabilities,
            applied_revision: greeting.applied_revision,
            state_hash: greeting.state_hash,
            ..Hello::default()
        };
        let hello = GatewayFrame { frame: Some(From::Hello(hello)) };
        to_platform.send(hello).await.context("the receiver is here")?;
        let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        });
        let mut request = Request::new(frames);
        let token = gateway.token().parse().context("the token is not a header's value")?;
        request.metadata_mut().insert("api-key", token);
        let mut client =
            GatewayLinkClient::new(grpc::channel(gateway.client())?).max_decoding_message_size(MAX_MESSAGE);
        let dial = async { client.connect(request).await.map_err(refused) };
        let dialled = timeout(DIAL_PATIENCE, dial).await.context("the dial took longer than 10 s")??;
        let mut from_platform = dialled.into_inner();
        let connected = timeout(ACK_PATIENCE, from_platform.message()).await;
        let connected = connected.context("no acknowledgement of the link in 5 s")?.map_err(refused)?;
        Ok(Self { welcome: welcome(connected)?, to_platform, from_platform })
    }
}

/// What a controller would make of the status if it were one of HTTP.
fn refused(status: Status) -> LinkError {
    let code = match status.code() {
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::InvalidArgument | Code::FailedPrecondition => 422,
        Code::ResourceExhausted => 429,
        _ => return anyhow::Error::from(status).into(),
    };
    LinkError::Refused { status: code, body: status.message().to_owned() }
}

#[async_trait]
impl Link for GrpcLink {
    fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            match self.from_platform.message().await {
                Ok(Some(frame)) => {
                    if let Some(frame) = later(frame)? {
                        return Ok(frame);
                    }
                }
                Ok(None) => return Ok(Frame::Closed(None)),
                Err(status) => return Err(status).context("the link was lost"),
            }
        }
    }

    async fn send(&mut self, answer: Answer) -> anyhow::Result<()> {
        let frame = match answer {
            Answer::Deployment(ack) => From::DeploymentAck(ack),
            Answer::Event(ack) => From::EventAck(ack),
            Answer::Heartbeat(heartbeat) => From::Heartbeat(heartbeat),
        };
        let frame = GatewayFrame { frame: Some(frame) };
        self.to_platform.send(frame).await.map_err(|_| anyhow::anyhow!("the link was lost"))
    }

    async fn close(self: Box<Self>) {
        // The end of our side of the stream says goodbye; what comes until the platform's end is not read.
        drop(self.to_platform);
        let mut rest = self.from_platform;
        let _ = timeout(ACK_PATIENCE, async { while let Ok(Some(_)) = rest.message().await {} }).await;
    }
}
