//! What a controller knows of itself: what it did, what it saw, and what broke the contract.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use tokio::time::Instant;

use super::store::Held;
use crate::transport::{Event, Welcome};

/// An event that was performed, in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Performed {
    /// `api.deployed`, `api.undeployed` or `api.deleted`.
    pub kind: String,
    /// The API's id.
    pub api_id: String,
    /// The deployment's id; empty when the API was deleted.
    pub deployment_id: String,
    /// The position in the gateway's log; 0 over WebSocket.
    pub revision: u64,
    /// When it was performed.
    pub at: Instant,
}

/// An event of a type that says nothing of deployments.
#[derive(Debug, Clone, PartialEq)]
pub struct Noted {
    /// The type.
    pub kind: String,
    /// The payload.
    pub payload: Value,
}

/// Everything that a controller knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// How often the platform acknowledged a connection.
    pub connects: usize,
    /// Whether there is a link now.
    pub connected: bool,
    /// What the platform said first on the newest link.
    pub welcome: Welcome,
    /// What the gateway's database holds, by API.
    pub held: BTreeMap<String, Held>,
    /// Every event that was performed.
    pub performed: Vec<Performed>,
    /// Every other event.
    pub noted: Vec<Noted>,
    /// How many events came.
    pub events: usize,
    /// Events that were not newer than what was held, and so not acknowledged.
    pub stale: usize,
    /// Events that could not be performed, because the platform did not hand over what they are about.
    pub failed: usize,
    /// Undeployments of another deployment than the one that was held.
    pub mismatches: usize,
    /// Artifacts that were fetched because the list had what the database had not.
    pub refetched: usize,
    /// Snapshots that were applied.
    pub snapshots: usize,
    /// Whether the calls of the first link are done.
    pub synced: bool,
    /// The code of the last close.
    pub last_close: Option<u16>,
    /// The status of a refusal that ends a controller for good.
    pub refused: Option<u16>,
    /// What broke the contract.
    pub faults: Vec<String>,
    correlation_ids: HashSet<String>,
    newest: HashMap<String, i64>,
    revisions: HashSet<u64>,
    /// What was applied when the process started, or by the newest snapshot.
    pub(super) floor: u64,
}

impl State {
    /// Takes note of an event as it came: whether its sending is unique, and later than the last about the artifact.
    pub(super) fn arrived(&mut self, event: &Event, performed_at: Option<i64>) {
        self.events += 1;
        if !self.correlation_ids.insert(event.correlation_id.clone()) {
            self.faults.push(format!("the correlation id {} came twice", event.correlation_id));
        }
        let Some(at) = performed_at else { return };
        let api = event.text("apiId");
        let newest = self.newest.entry(api.to_owned()).or_insert(i64::MIN);
        if *newest >= at {
            self.faults.push(format!("{} of {api}: performedAt went from {newest} to {at}", event.kind));
        }
        *newest = at.max(*newest);
    }

    /// Takes note of a revision that came when `applied` was applied already: it must be one that came before.
    pub(super) fn revision(&mut self, revision: u64, applied: u64) {
        if self.revisions.insert(revision) && revision <= applied && revision > self.floor {
            self.faults.push(format!("revision {revision} came after {applied}"));
        }
    }

    pub(super) fn performed(&mut self, event: &Event) {
        self.performed.push(Performed {
            kind: event.kind.clone(),
            api_id: event.text("apiId").to_owned(),
            deployment_id: event.text("deploymentId").to_owned(),
            revision: event.revision,
            at: Instant::now(),
        });
    }
}
