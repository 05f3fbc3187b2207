//! `GatewayLink`: the gRPC skin of the link.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use proto::gateway::{GatewayFrame, PlatformFrame, gateway_link_server::GatewayLink};
use tonic::{Request, Response, Status, Streaming};

use super::authenticate_gateway;
use crate::{domain::tokens::Tokens, link::Hub};

/// The link's face.
#[derive(Debug)]
pub(crate) struct LinkApi {
    pub(crate) tokens: Tokens,
    pub(crate) hub: Hub,
}

#[async_trait]
impl GatewayLink for LinkApi {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<PlatformFrame, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<GatewayFrame>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let outbound = self.hub.open(bearer, request.into_inner())?;
        Ok(Response::new(Box::pin(outbound.map(|frame| frame.map_err(Status::from)))))
    }
}
