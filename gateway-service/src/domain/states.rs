//! What a gateway is to run, what it says that it runs, and when the difference is drift.

use crate::{domain::acks::State, events::Action};

/// An artifact on a gateway: what is wanted, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArtifactState {
    pub(crate) artifact_id: String,
    /// The deployment that is wanted, or that is to be gone.
    pub(crate) deployment_id: String,
    /// What the gateway is to do with it.
    pub(crate) desired: Action,
    /// The revision of the log that says so.
    pub(crate) revision: i64,
    /// Unix milliseconds.
    pub(crate) desired_at: i64,
    /// The state of that revision.
    pub(crate) state: State,
    /// Why it failed; empty otherwise.
    pub(crate) reason: String,
    pub(crate) drifted: bool,
    /// What each instance says, by instance.
    pub(crate) reported: Vec<Reported>,
}

/// What an instance of a gateway says of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) instance_id: String,
    /// The deployment that it runs; empty when it runs none.
    pub(crate) deployment_id: String,
    pub(crate) revision: i64,
    /// 0 when it refused none since.
    pub(crate) rejected_revision: i64,
    pub(crate) reason: String,
    /// Unix milliseconds.
    pub(crate) reported_at: i64,
}

/// What counts as drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DriftRule {
    /// What has not been as it should be since before this, in Unix milliseconds, has drifted.
    pub(crate) since: i64,
}

impl DriftRule {
    /// The rule now.
    pub(crate) fn at(now: i64, drift_ms: u64) -> Self {
        Self { since: now.saturating_sub(i64::try_from(drift_ms).unwrap_or(i64::MAX)) }
    }
}

impl ArtifactState {
    /// What is wanted, on the wire.
    pub(crate) fn desired_name(&self) -> &'static str {
        match self.desired {
            Action::Deploy => "DEPLOYED",
            Action::Undeploy => "UNDEPLOYED",
        }
    }

    /// How far the gateway as a whole has got, on the wire.
    pub(crate) fn status(&self) -> &'static str {
        match (self.state, self.desired) {
            (State::Failed, _) => "FAILED",
            (State::Acked, Action::Deploy) => "DEPLOYED",
            (State::Acked, Action::Undeploy) => "UNDEPLOYED",
            (State::Pending, Action::Deploy) => "PENDING",
            (State::Delivered | State::Superseded, Action::Deploy) => "DELIVERED",
            (State::Pending | State::Delivered | State::Superseded, Action::Undeploy) => "UNDEPLOYING",
        }
    }
}
