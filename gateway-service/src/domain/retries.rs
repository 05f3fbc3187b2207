//! What a gateway refused and gets once more without anybody asking for it.
//!
//! What may go well the next time comes again, if an operator has set so, after a pause that grows. A removal that names another
//! deployment than the gateway has comes again at once and names that one: a gateway that refused a deployment runs
//! the one before, and it is the artifact that is to go.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value};
use service_kit::{
    Clock, Result,
    bus::{Bus, Message},
    id::derived,
    shutdown::Tasks,
};

use crate::{
    config::LinkConfig,
    domain::{
        acks::State,
        log::{NewEvent, SUBJECT},
    },
    events::{self, Action},
    link::Hub,
    store::RetryStore,
};

/// The gateway could not do it; most often it did not get the artifact.
pub(crate) const PROCESSING_ERROR: &str = "GATEWAY_PROCESSING_ERROR";
/// The gateway has another deployment than the one to be removed.
pub(crate) const MISMATCH: &str = "DEPLOYMENT_ID_MISMATCH";

/// The longest pause is so many times the first.
const MAX_FACTOR: i64 = 10;

/// How often it is looked for what is due, at the most and at the least.
const BEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How many gateways one question to the database names.
const CHUNK: usize = 500;

/// Looks for what is due.
#[derive(Debug)]
pub(crate) struct Retries {
    pub(crate) store: Arc<dyn RetryStore>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
    pub(crate) link: LinkConfig,
}

/// When what was refused comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryRule {
    /// Unix milliseconds.
    pub(crate) now: i64,
    /// The first pause, in milliseconds.
    pub(crate) first_pause: i64,
    /// How often something comes again before it is left to an operator.
    pub(crate) most: i64,
}

/// An event of one key, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) revision: i64,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) event_key: String,
    pub(crate) user_id: String,
    /// The deployment that it names instead of its own; empty when it names its own.
    pub(crate) named_id: String,
    pub(crate) state: State,
    pub(crate) reason: String,
}

impl Retries {
    /// Looks at the gateways of `hub` until the service drains.
    pub(crate) fn start(self, hub: Hub, tasks: &Tasks) {
        if self.link.refused_retries == 0 {
            return;
        }
        let stop = tasks.stopping();
        let beat = (self.link.redeliver() / 4).clamp(BEAT.0, BEAT.1);
        tasks.spawn("retries", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(beat) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                if let Err(error) = self.look(&hub.gateways()).await {
                    tracing::warn!(%error, "what was refused is not looked for, will try again");
                }
            }
        });
    }

    async fn look(&self, gateways: &[String]) -> Result<()> {
        let first_pause = i64::try_from(self.link.redeliver().as_millis()).unwrap_or(i64::MAX);
        for some in gateways.chunks(CHUNK) {
            let rule = RetryRule {
                now: self.clock.now_ms(),
                first_pause,
                most: i64::from(self.link.refused_retries),
            };
            for gateway in self.store.retry(some, rule).await? {
                tracing::info!(gateway, "what was refused is sent once more");
                let hint = Message { subject: format!("{SUBJECT}{gateway}"), payload: Bytes::new() };
                if let Err(error) = self.bus.publish(hint).await {
                    tracing::warn!(gateway, %error, "hint not published: the next look at the log finds it");
                }
            }
        }
        Ok(())
    }
}

impl RetryRule {
    /// Whether what was refused for the `times`-th time, the last time at `refused_at`, comes again now.
    pub(crate) fn is_due(&self, times: i64, refused_at: i64) -> bool {
        let factor = 1_i64 << (times - 1).clamp(0, 8);
        let pause = self.first_pause.saturating_mul(factor.min(MAX_FACTOR));
        times <= self.most && refused_at.saturating_add(pause) <= self.now
    }
}

impl Entry {
    /// The same event once more.
    pub(crate) fn again(&self, gateway_id: &str) -> NewEvent {
        self.copy(gateway_id, derived(&["again", &self.event_id]), &self.deployment_id)
    }

    /// The same event, naming this deployment.
    pub(crate) fn naming(&self, gateway_id: &str, deployment_id: &str) -> NewEvent {
        self.copy(gateway_id, derived(&["naming", deployment_id, &self.event_id]), deployment_id)
    }

    fn copy(&self, gateway_id: &str, id: String, named: &str) -> NewEvent {
        NewEvent {
            id,
            gateway_id: gateway_id.to_owned(),
            event_type: self.event_type.clone(),
            payload_json: if self.named() == named {
                self.payload_json.clone()
            } else {
                payload_naming(&self.payload_json, named)
            },
            artifact_id: self.artifact_id.clone(),
            deployment_id: self.deployment_id.clone(),
            event_key: self.event_key.clone(),
            user_id: self.user_id.clone(),
        }
    }

    /// The deployment that the gateway is told.
    fn named(&self) -> &str {
        if self.named_id.is_empty() { &self.deployment_id } else { &self.named_id }
    }

    fn removes(&self) -> bool {
        let answer = events::find(&self.event_type).and_then(|event| event.answer.as_ref());
        answer.is_some_and(|answer| answer.action == Action::Undeploy)
    }
}

/// A payload that names this deployment.
pub(crate) fn payload_naming(payload_json: &str, deployment_id: &str) -> String {
    let mut payload: Map<String, Value> = serde_json::from_str(payload_json).unwrap_or_default();
    payload.insert("deploymentId".to_owned(), deployment_id.into());
    Value::Object(payload).to_string()
}

/// The deployment that a removal is to name which a gateway refused because it has another one; nothing when
/// `history`, the events of its key from the newest on, does not end with one, or when all that may be there were
/// named. `reported` is what the gateway says that it runs.
///
/// What a gateway did last is what it has. But it may not have said so, or have taken it from the list of deployments:
/// then any that it was told of may be there.
pub(crate) fn named_next(history: &[Entry], reported: &str) -> Option<String> {
    let refused = history.first()?;
    if refused.state != State::Failed || refused.reason != MISMATCH || !refused.removes() {
        return None;
    }
    let own = history.iter().position(|entry| entry.named_id.is_empty()).unwrap_or(history.len() - 1);
    let named: HashSet<&str> = history[..=own].iter().map(Entry::named).collect();
    let done = history.iter().filter(|entry| entry.state == State::Acked).map(Entry::named);
    let candidates = done.chain([reported]).chain(history.iter().map(Entry::named));
    let mut unnamed = candidates.filter(|id| !id.is_empty() && !named.contains(id));
    unnamed.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{Entry, MISMATCH, RetryRule, State, named_next, payload_naming};

    fn entry(event_type: &str, deployment: &str, state: State) -> Entry {
        Entry {
            revision: 0,
            event_id: String::new(),
            event_type: event_type.into(),
            payload_json: format!(r#"{{"apiId":"a","deploymentId":"{deployment}"}}"#),
            artifact_id: "a".into(),
            deployment_id: deployment.into(),
            event_key: "a".into(),
            user_id: String::new(),
            named_id: String::new(),
            state,
            reason: if state == State::Failed { MISMATCH.into() } else { String::new() },
        }
    }

    #[test]
    fn a_removal_names_what_is_there_and_each_once() {
        let mut history = vec![
            entry("api.undeployed", "d3", State::Failed),
            entry("api.deployed", "d3", State::Failed),
            entry("api.deployed", "d2", State::Superseded),
            entry("api.deployed", "d1", State::Acked),
        ];
        let mut named = Vec::new();
        while let Some(next) = named_next(&history, "d0") {
            history.insert(0, Entry { named_id: next.clone(), ..history[0].clone() });
            named.push(next);
        }
        assert_eq!(named, ["d1", "d0", "d2"]);
        // Asked for once more by somebody, it begins anew.
        history.insert(0, entry("api.undeployed", "d3", State::Failed));
        assert_eq!(named_next(&history, "").as_deref(), Some("d1"));
        history[0].reason = "NO_DISK".into();
        assert_eq!(named_next(&history, ""), None);
        history[0] = entry("api.undeployed", "d3", State::Delivered);
        assert_eq!(named_next(&history, ""), None);
        history[0] = entry("api.deployed", "d4", State::Failed);
        assert_eq!(named_next(&history, ""), None, "what is deployed is named by itself");
        assert_eq!(named_next(&[], "d0"), None);
    }

    #[test]
    fn a_copy_names_what_it_is_about_again() {
        let refused = Entry { named_id: "d1".into(), ..entry("api.undeployed", "d3", State::Failed) };
        let named = Entry { payload_json: refused.naming("g", "d1").payload_json, ..refused };
        let again = named.again("g");
        assert_eq!(again.payload_json, r#"{"apiId":"a","deploymentId":"d3"}"#);
        assert_eq!(again.deployment_id, "d3");
        assert_eq!(
            payload_naming(r#"{"deploymentId":"x","vhost":"v"}"#, "y"),
            r#"{"deploymentId":"y","vhost":"v"}"#
        );
    }

    #[test]
    fn pauses_grow_and_end() {
        let pause =
            |times| (0..).find(|now| RetryRule { now: *now, first_pause: 1, most: 10 }.is_due(times, 0));
        assert_eq!([1, 2, 3, 4, 5, 10].map(pause), [1, 2, 4, 8, 10, 10].map(Some));
        assert!(!RetryRule { now: i64::MAX, first_pause: 1, most: 10 }.is_due(11, 0));
    }
}
