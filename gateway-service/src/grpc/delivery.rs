//! `DeliveryService`: what project-service calls.

use async_trait::async_trait;
use proto::gateway::{self as pb, delivery_service_server::DeliveryService};
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        gateways::Gateways,
        log::{Log, NewEvent},
    },
    link::Hub,
};

/// The log's face.
#[derive(Debug)]
pub(crate) struct DeliveryApi {
    pub(crate) gateways: Gateways,
    pub(crate) log: Log,
    pub(crate) hub: Hub,
}

#[async_trait]
impl DeliveryService for DeliveryApi {
    async fn resolve_gateways(
        &self,
        request: Request<pb::ResolveGatewaysRequest>,
    ) -> Result<Response<pb::ResolveGatewaysResponse>, Status> {
        let asked = request.into_inner();
        let gateways = self.gateways.resolve(&asked.organization_id, &asked.gateway_ids).await?;
        let ids: Vec<String> = gateways.iter().map(|gateway| gateway.id.clone()).collect();
        let connected = self.hub.connected(&ids).await?;
        let gateways = gateways
            .into_iter()
            .map(|gateway| pb::ResolvedGateway {
                connected: connected.contains(&gateway.id),
                id: gateway.id,
                name: gateway.name,
                vhost: gateway.details.vhost,
                functionality_type: gateway.functionality.name().to_owned(),
            })
            .collect();
        Ok(Response::new(pb::ResolveGatewaysResponse { gateways }))
    }

    async fn append_events(
        &self,
        request: Request<pb::AppendEventsRequest>,
    ) -> Result<Response<pb::AppendEventsResponse>, Status> {
        let events = request.into_inner().events.into_iter().map(new_event).collect();
        let unknown_gateway_event_ids = self.log.append(events).await?;
        Ok(Response::new(pb::AppendEventsResponse { unknown_gateway_event_ids }))
    }
}

fn new_event(event: pb::NewEvent) -> NewEvent {
    NewEvent {
        id: event.id,
        gateway_id: event.gateway_id,
        event_type: event.r#type,
        payload_json: event.payload_json,
        artifact_id: event.artifact_id,
        deployment_id: event.deployment_id,
        event_key: String::new(),
        user_id: event.user_id,
    }
}
