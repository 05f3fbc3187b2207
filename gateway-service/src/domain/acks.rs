//! Acknowledgements: what gateways say became of deployments.

use std::sync::Arc;

use prost::Message as _;
use proto::{
    project::{DeploymentReport, DeploymentStatus},
    time::Timestamp,
};
use service_kit::{Clock, Result, id::is_id, outbox::Nudge};

use crate::{
    events::{self, Action, EventType},
    store::EventStore,
};

/// The reason of a deployment whose gateway was deleted.
const GATEWAY_DELETED: &str = "GATEWAY_DELETED";

/// The outbox topic of [`report`]s.
pub(crate) const REPORTS: &str = "deployment-reports";

/// The state of an event in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Never sent.
    Pending,
    /// Sent, not acknowledged.
    Delivered,
    /// Done.
    Acked,
    /// Refused by the gateway.
    Failed,
    /// Not acknowledged, and a newer event of the artifact was, as done or as failed.
    Superseded,
}

impl State {
    /// The name in the store.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Acked => "acked",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// The state of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Acked, Self::Failed, Self::Superseded]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

/// A `deployment.ack` as it came in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    pub(crate) deployment_id: String,
    pub(crate) resource: String,
    pub(crate) action: String,
    pub(crate) status: String,
    pub(crate) performed_at: String,
    pub(crate) error_code: String,
}

/// An acknowledgement that can be matched with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) deployment_id: String,
    pub(crate) event: &'static EventType,
    pub(crate) action: Action,
    /// The reason when the gateway failed.
    pub(crate) failure: Option<String>,
    /// Unix milliseconds; `None` when the gateway did not say.
    pub(crate) performed_at: Option<i64>,
}

/// What the log knows of an event that may be the one acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) revision: i64,
    pub(crate) state: State,
    /// Of the newest sending.
    pub(crate) performed_at: i64,
    pub(crate) created_at: i64,
}

/// What an acknowledgement does to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The event changes its state.
    Change(Candidate),
    /// It is known already; with the revision that a gateway says again, maybe of a later sending, that it
    /// has performed.
    Known(Option<i64>),
    /// It answers no event of this gateway.
    Unknown,
    /// It names a sending that never was.
    Ahead,
}

/// Records acknowledgements.
#[derive(Debug, Clone)]
pub(crate) struct Acks {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) reports: Nudge,
    pub(crate) clock: Clock,
}

impl Acks {
    /// Records an acknowledgement of a gateway. What cannot be understood is logged and changes nothing:
    /// only a database that does not answer is an error.
    pub(crate) async fn record(&self, gateway_id: &str, received: &Received) -> Result<()> {
        let Some(ack) = Ack::read(received) else {
            tracing::warn!(gateway = gateway_id, ?received, "acknowledgement not understood");
            return Ok(());
        };
        let now = self.clock.now_ms();
        let outcome = if ack.failure.is_some() { "failed" } else { "success" };
        let deployment = &ack.deployment_id;
        match self.store.acknowledge(gateway_id, &ack, now).await? {
            Verdict::Change(event) => {
                self.reports.now();
                let seconds = f64::from(i32::try_from(now - event.created_at).unwrap_or(i32::MAX)) / 1_000.0;
                metrics::histogram!("tollgate_gateway_convergence_seconds").record(seconds);
                metrics::counter!("tollgate_gateway_acks_total", "outcome" => outcome).increment(1);
                let revision = event.revision;
                match &ack.failure {
                    None => {
                        tracing::info!(gateway = gateway_id, deployment, revision, "deployment acknowledged")
                    }
                    Some(reason) => {
                        tracing::warn!(
                            gateway = gateway_id,
                            deployment,
                            revision,
                            reason,
                            "deployment failed"
                        );
                    }
                }
            }
            Verdict::Known(_) => tracing::debug!(gateway = gateway_id, deployment, "acknowledged before"),
            Verdict::Unknown => {
                tracing::warn!(gateway = gateway_id, deployment, "acknowledgement of an unknown deployment");
            }
            Verdict::Ahead => {
                tracing::warn!(gateway = gateway_id, deployment, "acknowledgement of what was never sent");
            }
        }
        Ok(())
    }
}

impl Ack {
    fn read(received: &Received) -> Option<Self> {
        let event = events::answered_by(&received.resource, &received.action)?;
        let action = event.answer.as_ref()?.action;
        let failure = match received.status.as_str() {
            "success" => None,
            "failed" => Some(reason_of(&received.error_code)),
            _ => return None,
        };
        let performed_at = match received.performed_at.as_str() {
            "" => None,
            text => Some(Timestamp::parse_rfc3339(text)?.unix_ms()),
        };
        let deployment_id = received.deployment_id.clone();
        is_id(&deployment_id).then_some(Self { deployment_id, event, action, failure, performed_at })
    }

    /// The event that is acknowledged, out of those of the deployment and type, oldest first.
    pub(crate) fn judge(&self, candidates: Vec<Candidate>) -> Verdict {
        if candidates.is_empty() {
            return Verdict::Unknown;
        }
        let mut known = None;
        for event in self.meant(candidates) {
            match (event.state, &self.failure) {
                (State::Delivered | State::Superseded, _) | (State::Failed, None) => {
                    return Verdict::Change(event);
                }
                (State::Acked, None) => known = Some(Some(event.revision)),
                _ => known = known.or(Some(None)),
            }
        }
        known.map_or(Verdict::Ahead, Verdict::Known)
    }

    /// Those that were sent and may be meant: the one whose newest sending is named, else the oldest that
    /// may have had such a sending before, and any when none is named.
    fn meant(&self, mut sent: Vec<Candidate>) -> Vec<Candidate> {
        sent.retain(|event| {
            event.state != State::Pending && self.performed_at.is_none_or(|at| at <= event.performed_at)
        });
        if let Some(at) = self.performed_at {
            let named = sent.iter().position(|event| event.performed_at == at).unwrap_or(0);
            sent = sent.into_iter().skip(named).take(1).collect();
        }
        sent
    }

    /// The state that the event gets.
    pub(crate) fn state(&self) -> State {
        if self.failure.is_some() { State::Failed } else { State::Acked }
    }

    /// The report for project-service.
    pub(crate) fn report(&self, gateway_id: &str, now: i64) -> Vec<u8> {
        let status = match (&self.failure, self.action) {
            (Some(_), _) => DeploymentStatus::Failed,
            (None, Action::Deploy) => DeploymentStatus::Deployed,
            (None, Action::Undeploy) => DeploymentStatus::Undeployed,
        };
        let reason = self.failure.clone().unwrap_or_default();
        report(gateway_id, &self.deployment_id, self.action.name(), status, reason, now)
    }
}

/// The report of the first sending of an event; `None` for types that no gateway acknowledges.
pub(crate) fn delivered_report(
    gateway_id: &str,
    event_type: &str,
    deployment_id: &str,
    now: i64,
) -> Option<Vec<u8>> {
    let answer = events::find(event_type)?.answer.as_ref()?;
    let status = DeploymentStatus::Delivered;
    Some(report(gateway_id, deployment_id, answer.action.name(), status, String::new(), now))
}

/// The report of a deployment whose gateway is deleted.
pub(crate) fn deleted_report(gateway_id: &str, deployment_id: &str, now: i64) -> Vec<u8> {
    report(gateway_id, deployment_id, "delete", DeploymentStatus::Failed, GATEWAY_DELETED.to_owned(), now)
}

fn report(
    gateway_id: &str,
    deployment_id: &str,
    action: &str,
    status: DeploymentStatus,
    reason: String,
    now: i64,
) -> Vec<u8> {
    let report = DeploymentReport {
        deployment_id: deployment_id.to_owned(),
        gateway_id: gateway_id.to_owned(),
        status: status.into(),
        reason,
        reported_at: Some(Timestamp::from_unix_ms(now)),
        action: action.to_owned(),
    };
    report.encode_to_vec()
}

/// A reason that is safe to keep and to show.
fn reason_of(code: &str) -> String {
    let code: String = code.chars().filter(|c| !c.is_control()).take(128).collect();
    if code.is_empty() { "GATEWAY_PROCESSING_ERROR".to_owned() } else { code }
}

#[cfg(test)]
mod tests {
    use super::{Ack, Candidate, Received, State, Verdict};

    fn received(status: &str, performed_at: &str) -> Received {
        Received {
            deployment_id: "0198f0c5-0000-7000-8000-000000000000".into(),
            resource: "api".into(),
            action: "deploy".into(),
            status: status.into(),
            performed_at: performed_at.into(),
            error_code: String::new(),
        }
    }

    fn candidate(revision: i64, state: State, performed_at: i64) -> Candidate {
        Candidate { revision, state, performed_at, created_at: 0 }
    }

    fn ack(status: &str, performed_at: Option<i64>) -> Ack {
        Ack { performed_at, ..Ack::read(&received(status, "")).unwrap() }
    }

    #[test]
    fn only_what_makes_sense_is_read() {
        assert!(Ack::read(&received("success", "2026-08-22T10:00:00.123Z")).is_some());
        assert_eq!(
            Ack::read(&received("failed", "")).unwrap().failure.as_deref(),
            Some("GATEWAY_PROCESSING_ERROR")
        );
        assert!(Ack::read(&received("maybe", "")).is_none());
        assert!(Ack::read(&received("success", "yesterday")).is_none());
        assert!(Ack::read(&Received { deployment_id: "\0".into(), ..received("success", "") }).is_none());
        assert!(Ack::read(&Received { action: "explode".into(), ..received("success", "") }).is_none());
    }

    #[test]
    fn an_acknowledgement_finds_its_sending() {
        let delivered = |at| candidate(1, State::Delivered, at);
        assert_eq!(ack("success", Some(10)).judge(vec![]), Verdict::Unknown);
        assert_eq!(ack("success", Some(10)).judge(vec![delivered(10)]), Verdict::Change(delivered(10)));
        // Of an earlier sending of the same event: it counts.
        assert_eq!(ack("success", Some(9)).judge(vec![delivered(10)]), Verdict::Change(delivered(10)));
        assert_eq!(ack("success", Some(11)).judge(vec![delivered(10)]), Verdict::Ahead);
        assert_eq!(ack("success", None).judge(vec![candidate(1, State::Pending, 10)]), Verdict::Ahead);
        // The same deployment was undeployed twice: the second acknowledgement is the second event's.
        let two = vec![delivered(10), candidate(2, State::Delivered, 20)];
        assert_eq!(ack("success", Some(20)).judge(two), Verdict::Change(candidate(2, State::Delivered, 20)));
        // The first failed and says so again: that is no answer to the second try.
        let retried = || vec![candidate(1, State::Failed, 10), delivered(20)];
        assert_eq!(ack("failed", Some(10)).judge(retried()), Verdict::Known(None));
        assert_eq!(ack("failed", Some(9)).judge(retried()), Verdict::Known(None));
        assert_eq!(ack("success", None).judge(retried()), Verdict::Change(candidate(1, State::Failed, 10)));
    }

    #[test]
    fn a_late_success_counts_and_a_late_failure_does_not() {
        let failed = candidate(1, State::Failed, 10);
        assert_eq!(ack("success", Some(10)).judge(vec![failed.clone()]), Verdict::Change(failed.clone()));
        assert_eq!(ack("failed", Some(10)).judge(vec![failed]), Verdict::Known(None));
        let acked = || vec![candidate(1, State::Acked, 10)];
        assert_eq!(ack("failed", Some(10)).judge(acked()), Verdict::Known(None));
        assert_eq!(ack("success", Some(10)).judge(acked()), Verdict::Known(Some(1)));
    }
}
