//! What a gateway keeps in its database: it survives the process, and the controllers of one gateway share it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// A gateway's database. Clones are the same database.
#[derive(Debug, Clone)]
pub struct Store(Arc<watch::Sender<Tables>>);

/// What a gateway holds of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The deployment's id.
    pub deployment_id: String,
    /// The `performedAt` that counts, in milliseconds.
    pub performed_at_ms: i64,
    /// Whether it runs; else it was removed.
    pub deployed: bool,
    /// How many operations the artifact has.
    pub operations: usize,
    /// The artifact's handle, and its name and version: no two that run may have the same.
    pub names: Names,
}

/// What an artifact is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// `metadata.name`.
    pub handle: String,
    /// `spec.displayName` and `spec.version`.
    pub display: (String, String),
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) held: BTreeMap<String, Held>,
    /// The primary keys of the events that were written.
    correlation_ids: HashSet<String>,
    /// With the capability `resume`.
    pub(super) applied_revision: u64,
    /// The hash of each secret, by handle.
    pub(super) secrets: BTreeMap<String, String>,
    /// Subscription plans by id.
    pub(super) plans: BTreeMap<String, String>,
    /// API keys by id.
    pub(super) keys: BTreeMap<String, String>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It is in the database.
    Yes,
    /// What is there is as new or newer.
    Stale,
    /// Another deployment is there than the one to be removed.
    Mismatch,
    /// It is newer, and its correlation id is there already: a real gateway would skip it without a word.
    Repeated,
}

impl Default for Store {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Tables::default()).0))
    }
}

impl Store {
    /// What it holds, by API.
    pub fn held(&self) -> BTreeMap<String, Held> {
        self.0.borrow().held.clone()
    }

    /// The newest revision that was applied.
    pub fn applied_revision(&self) -> u64 {
        self.0.borrow().applied_revision
    }

    /// The hash of what runs: SHA-256 over a line of artifact and deployment for each, by artifact.
    pub fn state_hash(&self) -> String {
        let mut hash = Sha256::new();
        for (artifact, held) in self.0.borrow().held.iter().filter(|(_, held)| held.deployed) {
            hash.update(format!("{artifact} {}\n", held.deployment_id));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Tables> {
        self.0.subscribe()
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.0.borrow())
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Tables)) {
        self.0.send_modify(change);
    }

    /// When what is known of an artifact was performed.
    pub(super) fn performed_at(&self, artifact: &str) -> Option<i64> {
        self.0.borrow().held.get(artifact).map(|held| held.performed_at_ms)
    }

    /// Writes what an event brought, if it is newer than what is there.
    pub(super) fn perform(&self, artifact: &str, held: Held, correlation_id: &str) -> Written {
        let mut written = Written::Stale;
        self.change(|tables| {
            written = match tables.held.get(artifact) {
                Some(known) if known.performed_at_ms >= held.performed_at_ms => Written::Stale,
                Some(known) if !held.deployed && known.deployment_id != held.deployment_id => {
                    Written::Mismatch
                }
                _ if !tables.correlation_ids.insert(correlation_id.to_owned()) => Written::Repeated,
                _ => Written::Yes,
            };
            if written == Written::Yes {
                tables.held.insert(artifact.to_owned(), held);
            }
        });
        written
    }

    /// Another artifact that runs under the same name.
    pub(super) fn namesake(&self, artifact: &str, names: &Names) -> Option<String> {
        let tables = self.0.borrow();
        let mut others = tables.held.iter().filter(|(id, held)| held.deployed && *id != artifact);
        let found =
            others.find(|(_, held)| held.names.handle == names.handle || held.names.display == names.display);
        found.map(|(id, _)| id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, Names, Store, Written};

    fn held(deployment: &str, at: i64, deployed: bool) -> Held {
        let deployment_id = deployment.to_owned();
        Held { deployment_id, performed_at_ms: at, deployed, operations: 1, names: Names::default() }
    }

    #[test]
    fn only_what_is_strictly_newer_is_written_and_once() {
        let store = Store::default();
        assert_eq!(store.perform("a", held("d1", 5, true), "c1"), Written::Yes);
        assert_eq!(store.perform("a", held("d1", 5, true), "c2"), Written::Stale);
        assert_eq!(store.perform("a", held("d2", 6, true), "c1"), Written::Repeated);
        assert_eq!(store.perform("a", held("d2", 7, false), "c3"), Written::Mismatch);
        assert_eq!(store.perform("a", held("d1", 7, false), "c3"), Written::Yes);
        assert_eq!(store.perform("b", held("d9", 1, false), "c4"), Written::Yes);
    }

    #[test]
    fn the_hash_is_that_of_the_contract() {
        let store = Store::default();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(store.state_hash(), empty);
        store.perform("b", held("2", 1, true), "c1");
        store.perform("a", held("1", 1, true), "c2");
        store.perform("c", held("3", 1, false), "c3");
        // printf 'a 1\nb 2\n' | sha256sum
        assert_eq!(store.state_hash(), "2951835de33689a441bfa61bc7af99b1f0305ca8ec0ab4dd508f14f57b27ca23");
    }
}
