//! `GatewayLink`: the gRPC skin of the link.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _, stream};
use proto::gateway::{
    GatewayFrame, Hello, PlatformFrame, ReportRequest, ReportResponse, SubscribeRequest,
    gateway_frame::Frame, gateway_link_server::GatewayLink, platform_frame,
};
use service_kit::{ClientInfo, client_info::TRANSPORT};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::authenticate_gateway;
use crate::{
    domain::tokens::Tokens,
    link::{Hub, Reports},
};

/// The link's face.
#[derive(Debug)]
pub(crate) struct LinkApi {
    pub(crate) tokens: Tokens,
    pub(crate) hub: Hub,
    pub(crate) reports: Reports,
}

#[async_trait]
impl GatewayLink for LinkApi {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<PlatformFrame, Status>> + Send>>;
    type SubscribeStream = Self::ConnectStream;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let remote_address = ClientInfo::of(&request).address_text();
        let asked = request.into_inner();
        let hello = Hello {
            instance_id: asked.instance_id,
            version: asked.version,
            remote_address,
            capabilities: asked.capabilities,
            applied_revision: asked.applied_revision,
            state_hash: asked.state_hash,
            transport: "sse".to_owned(),
        };
        let (sender, receiver) = Reports::queue();
        let hello = GatewayFrame { frame: Some(Frame::Hello(hello)) };
        let inbound = stream::iter([hello])
            .chain(ReceiverStream::new(receiver).map(|frame| *frame))
            .map(Ok::<_, Status>);
        let (reports, gateway_id) = (self.reports.clone(), bearer.gateway_id.clone());
        // The door goes with the stream.
        let mut door = None;
        let outbound = self.hub.open(bearer, inbound)?.map(move |frame| {
            if let Ok(PlatformFrame { frame: Some(platform_frame::Frame::Connected(connected)) }) = &frame {
                door.get_or_insert_with(|| {
                    reports.open(&gateway_id, &connected.connection_id, sender.clone())
                });
            }
            frame.map_err(Status::from)
        });
        Ok(Response::new(Box::pin(outbound)))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let head_revision = self.reports.take(&bearer, request.into_inner()).await?;
        Ok(Response::new(ReportResponse { head_revision }))
    }

    async fn connect(
        &self,
        request: Request<Streaming<GatewayFrame>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let (remote, transport) = (ClientInfo::of(&request).address_text(), transport(request.metadata()));
        let frames = request.into_inner().map(move |frame| {
            frame.map(|mut frame| {
                // Only the edge knows where a gateway is and how it came: what the gateway says does not count.
                if let Some(Frame::Hello(hello)) = &mut frame.frame {
                    hello.remote_address.clone_from(&remote);
                    hello.transport.clone_from(&transport);
                }
                frame
            })
        });
        let outbound = self.hub.open(bearer, frames)?;
        Ok(Response::new(Box::pin(outbound.map(|frame| frame.map_err(Status::from)))))
    }
}

/// How a gateway came to the edge: only the edge calls, and it lets no such header in.
fn transport(metadata: &MetadataMap) -> String {
    let told = metadata.get(TRANSPORT.as_str()).and_then(|value| value.to_str().ok());
    told.unwrap_or("grpc").to_owned()
}
