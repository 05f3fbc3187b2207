//! What the web is told at once: hints on the bus that something is to be shown anew. They leave through the
//! outbox, so only for what was committed; while the bus is away they are dropped, for whoever shows
//! something asks again by itself.

use serde_json::{Value, json};
use service_kit::bus::announcement;

/// The outbox topic.
pub(crate) const TOPIC: &str = "web";

/// A connection that began or ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) connection_id: &'a str,
    pub(crate) organization_id: &'a str,
    pub(crate) gateway_id: &'a str,
    pub(crate) instance_id: &'a str,
    /// How many connections the gateway now has, over all instances of this service.
    pub(crate) live: i64,
    /// Unix milliseconds.
    pub(crate) at: i64,
}

/// What became of a deployment on a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deployment {
    pub(crate) gateway_id: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) revision: i64,
    /// The state of its event in the log.
    pub(crate) state: &'static str,
    /// Why it failed; empty when it did not.
    pub(crate) reason: String,
}

/// The id and the outbox entry of `org.<organizationId>.gateway.connected`.
pub(crate) fn connected(link: Link<'_>) -> (String, Vec<u8>) {
    link_event("connected", link)
}

/// The id and the outbox entry of `org.<organizationId>.gateway.disconnected`.
pub(crate) fn disconnected(link: Link<'_>) -> (String, Vec<u8>) {
    link_event("disconnected", link)
}

/// The id and the outbox entry of `org.<organizationId>.deployment.state`.
pub(crate) fn deployment_state(organization_id: &str, one: &Deployment, at: i64) -> (String, Vec<u8>) {
    let id = format!("{}:{}:{}", one.gateway_id, one.revision, one.state);
    let payload = json!({
        "id": id,
        "gatewayId": one.gateway_id,
        "artifactId": one.artifact_id,
        "deploymentId": one.deployment_id,
        "revision": one.revision,
        "state": one.state,
        "reason": one.reason,
        "at": at,
    });
    stored(id, format!("org.{organization_id}.deployment.state"), payload)
}

fn link_event(what: &str, link: Link<'_>) -> (String, Vec<u8>) {
    let id = format!("{}:{what}", link.connection_id);
    let payload = json!({
        "id": id,
        "gatewayId": link.gateway_id,
        "connectionId": link.connection_id,
        "instanceId": link.instance_id,
        "at": link.at,
        "liveConnections": link.live,
    });
    stored(id, format!("org.{}.gateway.{what}", link.organization_id), payload)
}

fn stored(id: String, subject: String, payload: Value) -> (String, Vec<u8>) {
    (id, announcement(subject, payload))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Deployment, deployment_state};

    #[test]
    fn an_event_is_about_its_organization() {
        let one = Deployment {
            gateway_id: "g".into(),
            artifact_id: "a".into(),
            deployment_id: "d".into(),
            revision: 7,
            state: "failed",
            reason: "BAD".into(),
        };
        let (id, entry) = deployment_state("o", &one, 5);
        let entry: Value = serde_json::from_slice(&entry).unwrap();
        assert_eq!((&*id, &entry["subject"]), ("g:7:failed", &json!("org.o.deployment.state")));
        assert_eq!(
            (&entry["payload"]["id"], &entry["payload"]["reason"]),
            (&json!("g:7:failed"), &json!("BAD"))
        );
    }
}
