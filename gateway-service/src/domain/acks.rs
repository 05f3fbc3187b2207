//! Acknowledgements: what gateways say became of deployments.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::{
    project::{DeploymentReport, DeploymentStatus},
    time::Timestamp,
};
use service_kit::{Clock, Result, id::is_id, outbox::Nudge};

use crate::{
    domain::{
        failures::Failure,
        figures,
        journal::Journal,
        retries::{MISMATCH, PROCESSING_ERROR},
        web::Deployment,
    },
    events::{self, Action, EventType},
};

/// The reason of a deployment whose gateway was deleted.
const GATEWAY_DELETED: &str = "GATEWAY_DELETED";

/// The outbox topic of [`report`]s.
pub(crate) const REPORTS: &str = "deployment-reports";

/// The state of an event in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Never sent.
    #[default]
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

/// An acknowledgement, and who says it on which connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AckFrom {
    pub(crate) gateway_id: String,
    pub(crate) connection_id: String,
    pub(crate) ack: Ack,
}

/// What the log knows of an event that may be the one acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) revision: i64,
    pub(crate) state: State,
    /// Of the newest sending.
    pub(crate) performed_at: i64,
    pub(crate) created_at: i64,
    pub(crate) event_key: String,
    pub(crate) artifact_id: String,
    /// That it is about; the gateway may have been told another.
    pub(crate) deployment_id: String,
    /// When an older event of the key was sent last, again maybe; 0 when there is none, or none was sent after what is
    /// answered.
    pub(crate) older_sent_at: i64,
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
    /// The gateway may have performed an older event since: only the answer to the next sending counts.
    Overtaken,
    /// Its connection is not registered (any more): another one speaks for the gateway.
    Fenced,
}

/// What an artifact is on a gateway, as the gateway says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// What runs; empty when nothing does.
    pub(crate) deployment_id: String,
    /// That was applied; 0 for none.
    pub(crate) revision: i64,
    /// That was refused since; 0 for none.
    pub(crate) rejected_revision: i64,
    pub(crate) reason: String,
}

/// Records acknowledgements.
#[derive(Debug, Clone)]
pub(crate) struct Acks {
    pub(crate) journal: Journal,
    pub(crate) reports: Nudge,
    pub(crate) clock: Clock,
}

impl Acks {
    /// Records an acknowledgement that came on a connection of a gateway. What cannot be understood is logged
    /// and changes nothing: only a database that does not answer is an error. Says whether the connection may
    /// still speak for the gateway.
    pub(crate) async fn record(
        &self,
        gateway_id: &str,
        connection_id: &str,
        received: &Received,
    ) -> Result<bool> {
        let Some(ack) = Ack::read(received) else {
            tracing::warn!(gateway = gateway_id, ?received, "acknowledgement not understood");
            return Ok(true);
        };
        let now = self.clock.now_ms();
        let deployment = &ack.deployment_id;
        let answer = AckFrom {
            gateway_id: gateway_id.to_owned(),
            connection_id: connection_id.to_owned(),
            ack: ack.clone(),
        };
        match self.journal.acknowledge(answer).await? {
            Verdict::Change(event) => {
                self.reports.now();
                figures::count_settled(ack.failure.is_some(), event.created_at, now);
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
            Verdict::Overtaken => {
                tracing::info!(gateway = gateway_id, deployment, "acknowledgement of an overtaken sending");
            }
            Verdict::Fenced => {
                metrics::counter!("tollgate_gateway_acks_total", "outcome" => "fenced").increment(1);
                let connection = connection_id;
                tracing::warn!(gateway = gateway_id, connection, deployment, "acknowledgement fenced off");
                return Ok(false);
            }
        }
        Ok(true)
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
                    return match self.is_overtaken(&event) {
                        true => Verdict::Overtaken,
                        false => Verdict::Change(event),
                    };
                }
                (State::Acked, None) => known = Some(Some(event.revision)),
                _ => known = known.or(Some(None)),
            }
        }
        known.map_or(Verdict::Ahead, Verdict::Known)
    }

    /// Whether an older event was sent after the sending that this answers, on another connection maybe: the
    /// gateway may perform that one last.
    fn is_overtaken(&self, event: &Candidate) -> bool {
        event.older_sent_at > self.performed_at.unwrap_or(event.performed_at)
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
    fn state(&self) -> State {
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

impl Reported {
    /// Takes an answer about the event of this revision.
    pub(crate) fn take(&mut self, ack: &Ack, revision: i64) {
        match &ack.failure {
            None if revision >= self.revision => {
                self.revision = revision;
                self.deployment_id = match ack.action {
                    Action::Deploy => ack.deployment_id.clone(),
                    Action::Undeploy => String::new(),
                };
                if revision >= self.rejected_revision {
                    self.rejected_revision = 0;
                    self.reason.clear();
                }
            }
            Some(reason) if revision >= self.revision.max(self.rejected_revision) => {
                self.rejected_revision = revision;
                self.reason.clone_from(reason);
            }
            _ => {}
        }
    }
}

/// What answers do to the log, collected one after the other.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// By gateway and revision: the event's new state.
    pub(crate) settled: BTreeMap<(String, i64), Settled>,
    /// The same in the order of the answers, with every step of those that changed twice.
    pub(crate) settled_in_order: Vec<Settled>,
    /// By gateway and revision: that was performed once more then.
    pub(crate) again: BTreeMap<(String, i64), i64>,
    pub(crate) failures: Vec<Failure>,
}

/// An event that an answer has given a new state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) gateway_id: String,
    pub(crate) revision: i64,
    pub(crate) artifact_id: String,
    pub(crate) state: State,
    pub(crate) error_code: String,
    /// Of the sending that was answered.
    pub(crate) performed_at: i64,
    pub(crate) ack: Ack,
    event_key: String,
}

impl Changes {
    /// Takes an answer, out of candidates as they were before the first one.
    pub(crate) fn take(&mut self, answer: &AckFrom, mut candidates: Vec<Candidate>) -> Verdict {
        for candidate in &mut candidates {
            let place = (answer.gateway_id.clone(), candidate.revision);
            if let Some(settled) = self.settled.get(&place) {
                candidate.state = settled.state;
            }
        }
        let verdict = answer.ack.judge(candidates);
        match (&verdict, answer.ack.performed_at) {
            (Verdict::Change(event), _) => self.settle(answer, event),
            (Verdict::Known(Some(revision)), Some(at)) => {
                let known = self.again.entry((answer.gateway_id.clone(), *revision)).or_insert(at);
                *known = at.max(*known);
            }
            _ => {}
        }
        verdict
    }

    /// What is done now: gateway, revision, key.
    pub(crate) fn done(&self) -> impl Iterator<Item = (String, i64, String)> {
        self.settled
            .iter()
            .map(|((gateway, revision), event)| (gateway.clone(), *revision, event.event_key.clone()))
    }

    /// Removals that name another deployment than the gateway has: gateway, revision.
    pub(crate) fn mismatches(&self) -> impl Iterator<Item = (String, i64)> {
        let refused = self.settled.iter().filter(|(_, event)| event.error_code == MISMATCH);
        refused.map(|(place, _)| place.clone())
    }

    fn settle(&mut self, answer: &AckFrom, event: &Candidate) {
        let gateway_id = &answer.gateway_id;
        let ack = Ack { deployment_id: event.deployment_id.clone(), ..answer.ack.clone() };
        let settled = Settled {
            gateway_id: gateway_id.clone(),
            revision: event.revision,
            artifact_id: event.artifact_id.clone(),
            state: ack.state(),
            error_code: ack.failure.clone().unwrap_or_default(),
            performed_at: ack.performed_at.unwrap_or(event.performed_at),
            ack: ack.clone(),
            event_key: event.event_key.clone(),
        };
        if let Some(reason) = &ack.failure {
            self.failures.push(Failure {
                gateway_id: gateway_id.clone(),
                instance_id: String::new(),
                revision: event.revision,
                event_type: ack.event.name.to_owned(),
                artifact_id: event.artifact_id.clone(),
                deployment_id: ack.deployment_id.clone(),
                reason: reason.clone(),
                detail: String::new(),
            });
        }
        self.settled.insert((gateway_id.clone(), event.revision), settled.clone());
        self.settled_in_order.push(settled);
    }
}

impl Settled {
    /// What the web is told.
    pub(crate) fn shown(&self) -> Deployment {
        Deployment {
            gateway_id: self.gateway_id.clone(),
            artifact_id: self.artifact_id.clone(),
            deployment_id: self.ack.deployment_id.clone(),
            revision: self.revision,
            state: self.state.name(),
            reason: self.error_code.clone(),
        }
    }

    /// The report for project-service, with its id.
    pub(crate) fn report(&self, now: i64) -> (String, Vec<u8>) {
        let Self { gateway_id, revision, state, .. } = self;
        (format!("{gateway_id}:{revision}:{}", state.name()), self.ack.report(gateway_id, now))
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
    if code.is_empty() { PROCESSING_ERROR.to_owned() } else { code }
}

#[cfg(test)]
mod tests;
