//! The log of each gateway: what it is told, in the order in which it happened.

use std::sync::Arc;

use bytes::Bytes;
use service_kit::{
    Clock, Error, Result,
    bus::{Bus, Message},
    field::Checks,
    id::is_id,
};

use crate::{events, store::EventStore};

/// The most events of one append.
const MAX_BATCH: usize = 500;

/// The prefix of the bus subject that says of a gateway: its log has grown.
pub(crate) const SUBJECT: &str = "gateway.events.";

/// An event to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewEvent {
    pub(crate) id: String,
    pub(crate) gateway_id: String,
    pub(crate) event_type: String,
    /// A JSON object.
    pub(crate) payload_json: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
}

/// An event of the log that a gateway has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEvent {
    /// The position in the gateway's log.
    pub(crate) revision: i64,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
}

/// An event that is about to be sent: the log knows of it already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sending {
    pub(crate) event: LogEvent,
    /// Unix milliseconds; later than that of any earlier sending about the artifact.
    pub(crate) performed_at: i64,
    /// Unique for each sending.
    pub(crate) correlation_id: String,
}

/// What an append did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Events whose gateway does not exist (any more).
    pub(crate) unknown: Vec<String>,
    /// Gateways whose log has grown.
    pub(crate) grown: Vec<String>,
}

/// Appends to the logs.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
}

impl Log {
    /// Appends events in order, all or none. Returns the ids of those whose gateway does not exist.
    pub(crate) async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<String>> {
        let events = checked(events)?;
        let appended = self.store.append(&events, self.clock.now_ms()).await?;
        if !appended.unknown.is_empty() {
            tracing::warn!(events = ?appended.unknown, "events of unknown gateways dropped");
        }
        for gateway in appended.grown {
            let hint = Message { subject: format!("{SUBJECT}{gateway}"), payload: Bytes::new() };
            if let Err(error) = self.bus.publish(hint).await {
                tracing::warn!(gateway, %error, "hint not published: the next look at the log finds it");
            }
        }
        Ok(appended.unknown)
    }
}

fn checked(events: Vec<NewEvent>) -> Result<Vec<NewEvent>> {
    let mut checks = Checks::new();
    checks.that(events.len() <= MAX_BATCH, "events", "must hold at most 500 events");
    checks.done()?;
    let mut normal = Vec::with_capacity(events.len());
    for (at, mut event) in events.into_iter().enumerate() {
        let field = |name: &str| format!("events[{at}].{name}");
        checks.length(&field("id"), &event.id, 1, 64).printable(&field("id"), &event.id, false);
        checks.length(&field("gatewayId"), &event.gateway_id, 1, 64);
        for (name, value) in [("artifactId", &event.artifact_id), ("deploymentId", &event.deployment_id)] {
            checks.length(&field(name), value, 0, 64).printable(&field(name), value, false);
        }
        match events::find(&event.event_type) {
            None => {
                let name: String = event.event_type.chars().take(64).collect();
                checks.that(false, &field("type"), &format!("is not a known event type: {name:?}"));
            }
            Some(known) if known.answer.is_some() => {
                checks.that(is_id(&event.deployment_id), &field("deploymentId"), "is required");
            }
            Some(_) => {}
        }
        match normalized(&event.payload_json) {
            Some(payload) => event.payload_json = payload,
            None => drop(checks.that(false, &field("payloadJson"), "must be a JSON object of at most 1 MiB")),
        }
        normal.push(event);
    }
    checks.done()?;
    Ok(normal)
}

/// The payload in the form that is stored: as it came, without white space around it and without
/// `performedAt`.
fn normalized(payload: &str) -> Option<String> {
    if payload.len() > events::MAX_PAYLOAD {
        return None;
    }
    let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(payload).ok()?;
    match object.remove("performedAt") {
        None => Some(payload.trim().to_owned()),
        Some(_) => serde_json::to_string(&object).ok(),
    }
}

impl Sending {
    /// The payload as it is sent: events that gateways acknowledge say when they are performed.
    pub(crate) fn payload(&self) -> Result<String> {
        if events::find(&self.event.event_type).is_none_or(|known| known.answer.is_none()) {
            return Ok(self.event.payload_json.clone());
        }
        let time = proto::time::Timestamp::from_unix_ms(self.performed_at)
            .to_rfc3339()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("performedAt is out of range")))?;
        let stored = &self.event.payload_json;
        let open = stored.strip_suffix('}').unwrap_or(stored).trim_end();
        let comma = if open.ends_with('{') { "" } else { "," };
        Ok(format!("{open}{comma}\"performedAt\":\"{time}\"}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{LogEvent, NewEvent, Sending, checked, normalized};

    fn event() -> NewEvent {
        NewEvent {
            id: "e1".into(),
            gateway_id: "g1".into(),
            event_type: "api.deployed".into(),
            payload_json: " {\"apiId\": \"a\", \"performedAt\": 1} ".into(),
            artifact_id: "a".into(),
            deployment_id: "0198f0c5-0000-7000-8000-000000000000".into(),
        }
    }

    #[test]
    fn payloads_are_stored_without_performed_at_and_sent_with_it() {
        let stored = checked(vec![event()]).unwrap().remove(0);
        assert_eq!(stored.payload_json, r#"{"apiId":"a"}"#);
        let sending = |event_type: &str, payload: &str| Sending {
            event: LogEvent {
                revision: 1,
                event_type: event_type.into(),
                payload_json: payload.into(),
                artifact_id: String::new(),
                deployment_id: String::new(),
            },
            performed_at: 1_766_000_000_007,
            correlation_id: String::new(),
        };
        assert_eq!(
            sending("api.deployed", &stored.payload_json).payload().unwrap(),
            r#"{"apiId":"a","performedAt":"2025-12-17T19:33:20.007Z"}"#
        );
        assert_eq!(
            sending("api.deployed", "{ }").payload().unwrap(),
            r#"{"performedAt":"2025-12-17T19:33:20.007Z"}"#
        );
        assert_eq!(sending("api.deleted", "{}").payload().unwrap(), "{}");
    }

    #[test]
    fn what_is_wrong_with_an_event_is_named() {
        let mut bad = event();
        bad.event_type = "api.renamed".into();
        bad.payload_json = "[]".into();
        let error = checked(vec![event(), bad]).unwrap_err();
        let fields: Vec<&str> = error.violations().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["events[1].type", "events[1].payloadJson"]);
        assert!(error.message().contains("api.renamed"));
        assert!(checked(vec![event(); 501]).is_err());
        assert!(normalized(&format!("{{\"a\":\"{}\"}}", "x".repeat(1024 * 1024))).is_none());
    }
}
