//! What a reconciliation is to do about one gateway.

use std::collections::HashMap;

use service_kit::id::derived;

use crate::{
    domain::acks::State,
    events::{self, API_DELETED, API_DEPLOYED},
};

/// A reconciliation that removes more than this many artifacts, and more than half of all, is refused.
const REMOVALS: usize = 10;

/// The newest of a gateway's log about one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) artifact_id: String,
    pub(crate) revision: i64,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) deployment_id: String,
    pub(crate) state: State,
}

/// What project-service wants of a gateway about one artifact, and the event that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    /// Whether the event comes by itself.
    pub(crate) on_its_way: bool,
}

/// An event that the log lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) event_id: String,
    /// The id when the log has that event already, and others after it; nothing when it is not to come again.
    pub(crate) again_id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    /// The newest revision about the artifact when the log was read; 0 for none. It must still be that.
    pub(crate) seen: i64,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What project-service says otherwise.
    pub(super) changes: Vec<Repair>,
    /// Removals of what project-service does not know.
    pub(super) unknown: Vec<Repair>,
    /// How many artifacts the log has deployed.
    pub(super) deployed: usize,
    /// How many of them the changes remove.
    removed: usize,
    /// How many of them project-service does not know.
    forgotten: usize,
}

impl Plan {
    /// Compares the newest of a gateway's log with what is wanted.
    pub(super) fn of(gateway_id: &str, told: &[Told], wanted: &[Wanted]) -> Self {
        let mut known: HashMap<&str, &Told> =
            told.iter().map(|one| (one.artifact_id.as_str(), one)).collect();
        let deployed = told.iter().filter(|one| one.event_type == API_DEPLOYED).count();
        let mut plan = Self { deployed, ..Self::default() };
        for one in wanted {
            let told = known.remove(one.artifact_id.as_str());
            if !one.on_its_way && one.is_event() {
                plan.removed +=
                    usize::from(told.is_some_and(Told::is_deployed) && one.event_type != API_DEPLOYED);
                plan.changes.extend(one.missing(told));
            }
        }
        // In the order of the log, as they were deployed.
        for one in told.iter().filter(|one| known.contains_key(one.artifact_id.as_str())) {
            if one.event_type != API_DELETED {
                plan.forgotten += usize::from(one.is_deployed());
                plan.unknown.push(one.removal(gateway_id));
            }
        }
        plan
    }

    /// How many artifacts that run are to be removed.
    pub(super) fn removals(&self) -> usize {
        self.removed + self.forgotten
    }

    /// Whether this looks like the end of everything rather than like a repair.
    pub(super) fn is_wipe(&self) -> bool {
        self.removals() > REMOVALS && self.removals() * 2 > self.deployed
    }
}

impl Wanted {
    /// Whether it names an event that can be in a log.
    fn is_event(&self) -> bool {
        let named = !self.event_id.is_empty() && events::find(&self.event_type).is_some();
        if !named {
            let (artifact, event) = (&self.artifact_id, &self.event_type);
            tracing::error!(artifact, event, "what is wanted comes without an event");
        }
        named
    }

    /// The event, unless the newest of the log says the same.
    fn missing(&self, told: Option<&Told>) -> Option<Repair> {
        let same = told
            .filter(|told| told.event_type == self.event_type && told.deployment_id == self.deployment_id);
        // What the gateway refused may have been asked for once more: another event that says the same.
        if same.is_some_and(|told| told.state != State::Failed || told.event_id == self.event_id) {
            return None;
        }
        let seen = told.map_or(0, |told| told.revision);
        Some(Repair {
            event_id: self.event_id.clone(),
            again_id: same.is_none().then(|| again(&self.event_id, seen)),
            event_type: self.event_type.clone(),
            payload_json: self.payload_json.clone(),
            artifact_id: self.artifact_id.clone(),
            deployment_id: self.deployment_id.clone(),
            seen,
        })
    }
}

impl Told {
    fn is_deployed(&self) -> bool {
        self.event_type == API_DEPLOYED
    }

    /// The event that project-service sends when an API is deleted: its deployments end with it.
    fn removal(&self, gateway_id: &str) -> Repair {
        let event_id = derived(&[API_DELETED, &self.artifact_id, gateway_id]);
        Repair {
            again_id: Some(again(&event_id, self.revision)),
            event_id,
            event_type: API_DELETED.to_owned(),
            payload_json: serde_json::json!({ "apiId": self.artifact_id }).to_string(),
            artifact_id: self.artifact_id.clone(),
            deployment_id: String::new(),
            seen: self.revision,
        }
    }
}

/// The id of an event that is appended once more, after a revision: the same for whoever does it.
fn again(event_id: &str, revision: i64) -> String {
    derived(&[event_id, &revision.to_string()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Plan, Told, Wanted};
    use crate::domain::acks::State;

    fn told(artifact: &str, event_type: &str, deployment: &str) -> Told {
        Told {
            artifact_id: artifact.into(),
            revision: 7,
            event_id: format!("e-{deployment}-{event_type}"),
            event_type: event_type.into(),
            deployment_id: deployment.into(),
            state: State::Acked,
        }
    }

    fn wanted(artifact: &str, event_type: &str, deployment: &str) -> Wanted {
        Wanted {
            artifact_id: artifact.into(),
            deployment_id: deployment.into(),
            event_id: format!("e-{deployment}-{event_type}"),
            event_type: event_type.into(),
            payload_json: "{}".into(),
            on_its_way: false,
        }
    }

    #[test]
    fn what_the_log_lacks_or_says_otherwise_is_appended() {
        let log = [told("same", "api.deployed", "1"), told("old", "api.deployed", "2")];
        let want = [
            wanted("same", "api.deployed", "1"),
            wanted("old", "api.deployed", "3"),
            wanted("new", "api.deployed", "4"),
            Wanted { on_its_way: true, ..wanted("coming", "api.deployed", "5") },
            wanted("nonsense", "api.renamed", "6"),
        ];
        let plan = Plan::of("g", &log, &want);
        let seen: Vec<_> = plan.changes.iter().map(|one| (one.event_id.as_str(), one.seen)).collect();
        assert_eq!(seen, [("e-3-api.deployed", 7), ("e-4-api.deployed", 0)]);
        assert!(plan.unknown.is_empty() && !plan.is_wipe());
    }

    #[test]
    fn what_nobody_knows_is_deleted_once() {
        let log = [
            told("gone", "api.deployed", "1"),
            told("idle", "api.undeployed", "2"),
            told("deleted", "api.deleted", ""),
        ];
        let plan = Plan::of("g", &log, &[]);
        let about: Vec<_> = plan.unknown.iter().map(|one| one.artifact_id.as_str()).collect();
        assert_eq!(about, ["gone", "idle"]);
        assert_eq!(plan.unknown[0].payload_json, r#"{"apiId":"gone"}"#);
        assert_eq!((plan.removals(), plan.deployed), (1, 1));
    }

    #[test]
    fn a_second_request_for_what_failed_is_another_event() {
        let failed =
            |id: &str| Told { state: State::Failed, event_id: id.into(), ..told("a", "api.undeployed", "1") };
        let want = [wanted("a", "api.undeployed", "1")];
        let missing = Plan::of("g", &[failed("the first")], &want).changes.remove(0);
        assert_eq!(missing.again_id, None, "unless the log has it");
        assert_eq!(Plan::of("g", &[failed(&want[0].event_id)], &want), Plan::default());
        let copy = Told { event_id: "a copy".into(), ..told("a", "api.undeployed", "1") };
        assert_eq!(Plan::of("g", &[copy], &want), Plan::default());
    }

    proptest! {
        #[test]
        fn a_wipe_is_more_than_ten_and_more_than_half(kept in 0..30_usize, removed in 0..30_usize, undeployed in 0..30_usize) {
            let mut log = Vec::new();
            let mut want = Vec::new();
            for at in 0..kept + removed + undeployed {
                log.push(told(&at.to_string(), "api.deployed", "d"));
                if at < kept {
                    want.push(wanted(&at.to_string(), "api.deployed", "d"));
                } else if at < kept + undeployed {
                    want.push(wanted(&at.to_string(), "api.undeployed", "d"));
                }
            }
            let plan = Plan::of("g", &log, &want);
            let gone = removed + undeployed;
            prop_assert_eq!(plan.removals(), gone);
            prop_assert_eq!(plan.is_wipe(), gone > 10 && gone > kept);
        }
    }
}
