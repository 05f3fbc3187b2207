//! Deliveries that failed: kept for those who look later.

use super::instances::{Author, Refusal};

/// Why: the gateway had no connection when the event was appended. It waits in the log.
pub(crate) const NOT_CONNECTED: &str = "NOT_CONNECTED";

/// Why: the gateway has not acknowledged the event in time. It is sent again.
pub(crate) const UNACKNOWLEDGED: &str = "UNACKNOWLEDGED";

/// The type of the failure of a whole snapshot.
const SNAPSHOT: &str = "snapshot";

/// A delivery that failed. One event fails at most once for one reason of each of these three kinds: it waits,
/// nobody acknowledges it, it is refused (by an instance). A snapshot of one revision fails at most once for each
/// instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) gateway_id: String,
    /// Empty when the gateway did not say, or when none was connected.
    pub(crate) instance_id: String,
    pub(crate) revision: i64,
    pub(crate) event_type: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    /// [`NOT_CONNECTED`], [`UNACKNOWLEDGED`], or what the gateway said when it refused.
    pub(crate) reason: String,
    /// More about it, from the gateway.
    pub(crate) detail: String,
}

impl Failure {
    /// An instance has refused a snapshot of this revision.
    pub(crate) fn of_snapshot(author: Author<'_>, revision: i64, refusal: &Refusal) -> Self {
        Self {
            gateway_id: author.gateway_id.to_owned(),
            instance_id: author.instance_id.to_owned(),
            revision,
            event_type: SNAPSHOT.to_owned(),
            artifact_id: String::new(),
            deployment_id: String::new(),
            reason: refusal.reason.clone(),
            detail: refusal.detail.clone(),
        }
    }

    /// The id: the same failure has the same.
    pub(crate) fn id(&self) -> String {
        let kind = match self.reason.as_str() {
            _ if self.event_type == SNAPSHOT => SNAPSHOT,
            NOT_CONNECTED => "waits",
            UNACKNOWLEDGED => "late",
            _ => "refused",
        };
        let Self { gateway_id, revision, instance_id, .. } = self;
        format!("{gateway_id}:{revision}:{kind}:{instance_id}")
    }
}
