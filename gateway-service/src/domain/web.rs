//! What the web is told at once: hints on the bus that something is to be shown anew. They leave through the
//! outbox, so only for what was committed; while the bus is away they are dropped, for whoever shows
//! something asks again by itself.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service_kit::{
    Result,
    bus::{Bus, Message},
    outbox::{Entry, Sink},
};

/// The outbox topic.
pub(crate) const TOPIC: &str = "web";

/// How often a batch of events is tried before it is dropped.
const TRIES: u32 = 3;

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

/// An event as the outbox holds it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    subject: String,
    payload: Value,
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
    // `Value` is JSON already: nothing in it can fail to be written.
    (id, serde_json::to_vec(&Stored { subject, payload }).unwrap_or_default())
}

/// Puts events on the bus, and drops those that the bus does not take.
#[derive(Debug)]
pub(crate) struct WebSink {
    bus: Arc<dyn Bus>,
    failures: AtomicU32,
}

impl WebSink {
    /// A sink to this bus.
    pub(crate) fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, failures: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Sink for WebSink {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        let messages = entries.iter().filter_map(message).collect();
        let Err(error) = self.bus.publish_all(messages).await else {
            self.failures.store(0, Ordering::SeqCst);
            return Ok(());
        };
        if self.failures.fetch_add(1, Ordering::SeqCst) + 1 < TRIES {
            return Err(service_kit::Error::unavailable("the bus is away", error));
        }
        // From now on nothing is tried twice, until the bus is back.
        let count = u64::try_from(entries.len()).unwrap_or(0);
        metrics::counter!("tollgate_web_events_dropped_total").increment(count);
        tracing::warn!(events = count, %error, "events for the web dropped: the bus is away");
        Ok(())
    }
}

fn message(entry: &Entry) -> Option<Message> {
    let Stored { subject, payload } = serde_json::from_slice(&entry.payload).ok()?;
    Some(Message { subject, payload: Bytes::from(payload.to_string()) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use service_kit::{
        bus::{MemoryBus, Message, Received, RedisBus},
        outbox::{Entry, Sink as _},
        shutdown::Tasks,
    };

    use super::{Deployment, TRIES, WebSink, deployment_state};

    fn entry() -> Entry {
        let one = Deployment {
            gateway_id: "g".into(),
            artifact_id: "a".into(),
            deployment_id: "d".into(),
            revision: 7,
            state: "failed",
            reason: "BAD".into(),
        };
        let (id, payload) = deployment_state("o", &one, 5);
        Entry { position: 1, id, payload }
    }

    #[tokio::test]
    async fn an_event_reaches_the_bus_under_its_organization() {
        let bus = MemoryBus::shared();
        let mut heard = bus.subscribe("org.o.").await.unwrap();
        WebSink::new(bus).deliver(&[entry()]).await.unwrap();
        let Received::Message(Message { subject, payload }) = heard.next().await else {
            panic!("no message")
        };
        assert_eq!(subject, "org.o.deployment.state");
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((&payload["id"], &payload["reason"]), (&"g:7:failed".into(), &"BAD".into()));
    }

    #[tokio::test]
    async fn while_the_bus_is_away_events_are_dropped_after_a_few_tries() {
        let bus = RedisBus::start("redis+unix:///nowhere/redis.sock", &Tasks::new()).unwrap();
        let sink = WebSink::new(Arc::new(bus));
        for _ in 1..TRIES {
            sink.deliver(&[entry()]).await.unwrap_err();
        }
        for _ in 0..5 {
            sink.deliver(&[entry()]).await.unwrap();
        }
    }
}
