//! Events for gateways: what they say, and their way to gateway-service.
//!
//! Events are written to the outbox in the transaction that causes them, and delivered from there in
//! the order of commits. gateway-service knows an event's id again, so that one may come twice.

use std::sync::Arc;

use async_trait::async_trait;
use prost::Message as _;
use proto::gateway::{NewEvent, ResolvedGateway};
use serde_json::json;
use service_kit::{
    Result,
    id::derived,
    outbox::{Entry, Sink},
};

use super::Deployment;
use crate::store::deployments::DeploymentStore;

/// The outbox topic of events for gateways.
pub const TOPIC: &str = "gateway-events";
/// A gateway is to run a deployment.
pub const API_DEPLOYED: &str = "api.deployed";
/// A gateway is to have a deployment gone.
pub const API_UNDEPLOYED: &str = "api.undeployed";
/// An API that a gateway once had is gone.
pub const API_DELETED: &str = "api.deleted";
/// The reason of a deployment whose gateway is gone.
pub const GATEWAY_DELETED: &str = "GATEWAY_DELETED";

/// The environment that deployments are for.
const ENVIRONMENT: &str = "production";

/// What gateway-service is asked; a trait because tests must be able to make it fail.
#[async_trait]
pub trait Gateways: std::fmt::Debug + Send + Sync + 'static {
    /// The gateways of an organization among `ids`. UNAVAILABLE when nobody answers.
    async fn resolve(&self, organization_id: &str, ids: &[String]) -> Result<Vec<ResolvedGateway>>;
    /// Appends events to the logs of their gateways; the ids of those whose gateway is gone.
    async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<String>>;
}

/// An event as the outbox keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEvent {
    /// The event's id.
    pub id: String,
    /// An encoded [`NewEvent`].
    pub payload: Vec<u8>,
}

impl OutboxEvent {
    fn new(event: NewEvent) -> Self {
        Self { payload: event.encode_to_vec(), id: event.id }
    }

    /// What tells a deployment's gateway; see [`event_of`].
    pub fn of(deployment: &Deployment, default_vhost: &str) -> Self {
        Self::new(event_of(deployment, default_vhost))
    }

    /// The end of an API, for a gateway that once had it. It is not acknowledged. gateway-service derives
    /// the same id when it finds the API gone.
    pub fn deleted(api_id: &str, gateway_id: &str) -> Self {
        Self::new(NewEvent {
            id: derived(&[API_DELETED, api_id, gateway_id]),
            gateway_id: gateway_id.to_owned(),
            r#type: API_DELETED.to_owned(),
            payload_json: json!({ "apiId": api_id }).to_string(),
            artifact_id: api_id.to_owned(),
            deployment_id: String::new(),
            user_id: String::new(),
        })
    }
}

/// The event that tells a gateway what is wanted of a deployment; `default_vhost` is the gateway's own
/// host. The id follows from what is wanted and when that was asked for, so that the event that is found
/// missing later is the same as the one that was sent.
pub fn event_of(deployment: &Deployment, default_vhost: &str) -> NewEvent {
    let (kind, default) =
        if deployment.desired { (API_DEPLOYED, default_vhost) } else { (API_UNDEPLOYED, "") };
    let vhost = if deployment.vhost.is_empty() { default } else { &deployment.vhost };
    let payload = json!({
        "apiId": deployment.api_id,
        "deploymentId": deployment.id,
        "revisionId": deployment.revision_id,
        "vhost": vhost,
        "environment": ENVIRONMENT,
    });
    NewEvent {
        id: derived(&[kind, &deployment.id, &deployment.requested_at.to_string()]),
        gateway_id: deployment.gateway_id.clone(),
        r#type: kind.to_owned(),
        payload_json: payload.to_string(),
        artifact_id: deployment.api_id.clone(),
        deployment_id: deployment.id.clone(),
        user_id: String::new(),
    }
}

/// Brings events from the outbox to gateway-service.
#[derive(Debug)]
pub struct Delivery {
    gateways: Arc<dyn Gateways>,
    store: Arc<dyn DeploymentStore>,
}

impl Delivery {
    /// Delivers to `gateways`; what cannot be delivered any more is noted in `store`.
    pub fn new(gateways: Arc<dyn Gateways>, store: Arc<dyn DeploymentStore>) -> Self {
        Self { gateways, store }
    }
}

#[async_trait]
impl Sink for Delivery {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        let mut events = Vec::with_capacity(entries.len());
        for entry in entries {
            match NewEvent::decode(entry.payload.as_slice()) {
                Ok(event) => events.push(event),
                // It would stop all that come behind it, for good.
                Err(error) => tracing::error!(id = entry.id, %error, "an event in the outbox cannot be read"),
            }
        }
        let unknown = self.gateways.append(events.clone()).await?;
        let lost: Vec<String> = events
            .into_iter()
            .filter(|event| !event.deployment_id.is_empty() && unknown.contains(&event.id))
            .map(|event| event.deployment_id)
            .collect();
        if !lost.is_empty() {
            tracing::warn!(deployments = lost.len(), "deployments of gateways that are gone");
            self.store.give_up(&lost, GATEWAY_DELETED).await?;
        }
        Ok(())
    }
}
