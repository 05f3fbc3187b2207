//! The client of gateway-service: which gateways exist, and the logs that events go to.

use async_trait::async_trait;
use proto::gateway::{
    AppendEventsRequest, NewEvent, ResolveGatewaysRequest, ResolvedGateway,
    delivery_service_client::DeliveryServiceClient,
};
use service_kit::{Error, Kind, Result, client::Upstream};
use tonic::Status;

use crate::domain::deployments::events::Gateways;

/// gateway-service, asked over gRPC.
#[derive(Debug, Clone)]
pub(crate) struct RemoteGateways(DeliveryServiceClient<Upstream>);

impl RemoteGateways {
    /// The gateway-service behind `upstream`.
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self(DeliveryServiceClient::new(upstream))
    }
}

#[async_trait]
impl Gateways for RemoteGateways {
    async fn resolve(&self, organization_id: &str, ids: &[String]) -> Result<Vec<ResolvedGateway>> {
        let request =
            ResolveGatewaysRequest { organization_id: organization_id.to_owned(), gateway_ids: ids.to_vec() };
        let answer = self.0.clone().resolve_gateways(request).await.map_err(failed)?;
        Ok(answer.into_inner().gateways)
    }

    async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<String>> {
        let answer = self.0.clone().append_events(AppendEventsRequest { events }).await.map_err(failed)?;
        Ok(answer.into_inner().unknown_gateway_event_ids)
    }
}

/// Callers asked for a deployment, not for this call: whatever is wrong with it is not their fault, and
/// without an answer there is none.
fn failed(status: Status) -> Error {
    match Error::from(status) {
        error if error.kind() == Kind::ResourceExhausted => error,
        error => Error::unavailable("gateways cannot be reached right now", error),
    }
}
