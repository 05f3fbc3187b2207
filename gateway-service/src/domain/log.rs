//! The log of each gateway: what it is told, in the order in which it happened.

use std::{collections::BTreeMap, sync::Arc};

use service_kit::{
    Clock, Error, Result,
    bus::{Bus, Message},
    field::Checks,
    id::is_id,
};

use super::acks::State;
use crate::{
    events::{self, Effect},
    link::Hub,
    store::EventStore,
};

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
    /// What it is about: events of one key are performed in order. Empty for what stands for itself.
    pub(crate) event_key: String,
    /// Who caused it.
    pub(crate) user_id: String,
}

/// An event of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogEvent {
    /// The position in the gateway's log.
    pub(crate) revision: i64,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) event_key: String,
    pub(crate) user_id: String,
}

/// What to send to a gateway next, to those of its connections that share what they know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) gateway_id: String,
    pub(crate) pick: Pick,
}

/// Which events of a log are to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// The next after a revision that are not acknowledged and still needed: at most so many, and none after those
    /// whose payloads have so many bytes together.
    After { revision: i64, most: usize, bytes: usize },
    /// These, should nobody have acknowledged them, and what of their keys was sent later.
    Again(Vec<i64>),
}

/// What is to be sent: the log knows of it already.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) events: Vec<Stamped>,
    /// Up to here nothing else is to be sent; 0 when there was nothing.
    pub(crate) last: i64,
    /// Whether there may be more after it; also when there was too much for all gateways to come first.
    pub(crate) more: bool,
}

/// An event of the log with the time of its newest sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamped {
    pub(crate) event: LogEvent,
    /// Unix milliseconds; later than that of any earlier sending about the artifact.
    pub(crate) performed_at: i64,
}

/// An event that is about to be sent.
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
    /// Gateways whose log has grown, up to which revision.
    pub(crate) grown: BTreeMap<String, i64>,
    /// Events whose gateway has no connection to any instance: gateway, revision, type.
    pub(crate) waiting: Vec<(String, i64, String)>,
    /// For each delivery that was asked for what is to be sent.
    pub(crate) taken: Vec<Taken>,
}

/// What a request for repetition asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requeue<'a> {
    pub(crate) gateway_id: &'a str,
    /// Only this artifact.
    pub(crate) artifact_id: Option<&'a str>,
    /// Also what was acknowledged, unless it is a removal.
    pub(crate) full: bool,
}

/// What decides whether an event is still needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) revision: i64,
    pub(crate) event_type: String,
}

/// The revisions that are needless among events of one key, newest first.
pub(crate) fn needless<'a>(newest_first: impl IntoIterator<Item = &'a Brief>) -> Vec<i64> {
    let (mut needed, mut needless) = (Vec::<&Brief>::new(), Vec::new());
    for brief in newest_first {
        let supersedes = |newer: &&Brief| events::makes_needless(&newer.event_type, &brief.event_type);
        if needed.iter().any(supersedes) {
            needless.push(brief.revision);
        } else {
            needed.push(brief);
        }
    }
    needless
}

/// The next `performedAt` after `last`: strictly later, whatever the clock says.
pub(crate) fn next_performed(last: Option<i64>, now: i64) -> i64 {
    last.map_or(now, |last| now.max(last + 1))
}

/// Whether an operator's request for repetition brings an event back that no newer one makes needless.
pub(crate) fn comes_again(state: State, event_type: &str, full: bool) -> bool {
    matches!(state, State::Pending | State::Delivered | State::Failed)
        || (full && !Effect::of(event_type).takes_away())
}

/// Appends to the logs.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) hub: Hub,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
}

impl Log {
    /// Appends events in order, all or none. Returns the ids of those whose gateway does not exist.
    pub(crate) async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<String>> {
        let events = checked(events)?;
        let claim = self.hub.claim(events.iter().map(|event| event.gateway_id.as_str()));
        let mut appended = self.store.append(&events, &claim.deliveries(), self.clock.now_ms()).await?;
        claim.give(std::mem::take(&mut appended.taken));
        if !appended.unknown.is_empty() {
            tracing::warn!(events = ?appended.unknown, "events of unknown gateways dropped");
        }
        for (gateway, revision, event) in &appended.waiting {
            metrics::counter!("tollgate_gateway_deliveries_total", "outcome" => "offline").increment(1);
            tracing::warn!(gateway, revision, event, "gateway not connected: the event waits in its log");
        }
        self.announce(&appended.grown).await;
        Ok(appended.unknown)
    }

    /// Tells every instance that these logs have grown, and up to where.
    async fn announce(&self, grown: &BTreeMap<String, i64>) {
        let hint = |(gateway, head): (&String, &i64)| Message {
            subject: format!("{SUBJECT}{gateway}"),
            payload: head.to_string().into(),
        };
        if let Err(error) = self.bus.publish_all(grown.iter().map(hint).collect()).await {
            tracing::warn!(%error, "hints not published: the next look at the logs finds what is new");
        }
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
        let Some(known) = events::find(&event.event_type) else {
            let name: String = event.event_type.chars().take(64).collect();
            checks.that(false, &field("type"), &format!("is not a known event type: {name:?}"));
            continue;
        };
        if known.answer.is_some() {
            checks.that(is_id(&event.deployment_id), &field("deploymentId"), "is required");
        }
        if !known.says_user {
            event.user_id.clear();
        }
        match known.check(&event.payload_json) {
            Ok(payload) => {
                event.payload_json = payload.payload_json;
                if event.event_key.is_empty() {
                    event.event_key = payload.key;
                }
            }
            Err(errors) => {
                for (path, rule) in errors.within(&field("payloadJson")) {
                    checks.that(false, &path, rule);
                }
            }
        }
        normal.push(event);
    }
    checks.done()?;
    Ok(normal)
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
    use super::{LogEvent, NewEvent, Sending, checked};

    fn event() -> NewEvent {
        NewEvent {
            id: "e1".into(),
            gateway_id: "g1".into(),
            event_type: "api.deployed".into(),
            payload_json: " {\"apiId\": \"a\", \"deploymentId\": \"d\", \"performedAt\": 1} ".into(),
            artifact_id: "a".into(),
            deployment_id: "0198f0c5-0000-7000-8000-000000000000".into(),
            event_key: String::new(),
            user_id: String::new(),
        }
    }

    #[test]
    fn payloads_are_stored_without_performed_at_and_sent_with_it() {
        let stored = checked(vec![event()]).unwrap().remove(0);
        assert_eq!(stored.payload_json, r#"{"apiId":"a","deploymentId":"d"}"#);
        let sending = |event_type: &str, payload: &str| Sending {
            event: LogEvent {
                revision: 1,
                event_type: event_type.into(),
                payload_json: payload.into(),
                artifact_id: String::new(),
                deployment_id: String::new(),
                event_key: String::new(),
                user_id: String::new(),
            },
            performed_at: 1_766_000_000_007,
            correlation_id: String::new(),
        };
        assert_eq!(
            sending("api.deployed", &stored.payload_json).payload().unwrap(),
            r#"{"apiId":"a","deploymentId":"d","performedAt":"2025-12-17T19:33:20.007Z"}"#
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
        let broken = NewEvent { payload_json: "{}".into(), deployment_id: String::new(), ..event() };
        let error = checked(vec![event(), bad, broken]).unwrap_err();
        let fields: Vec<&str> = error.violations().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "events[1].type",
                "events[2].deploymentId",
                "events[2].payloadJson.apiId",
                "events[2].payloadJson.deploymentId"
            ]
        );
        assert!(error.message().contains("api.renamed"));
        assert!(checked(vec![event(); 501]).is_err());
    }
}
