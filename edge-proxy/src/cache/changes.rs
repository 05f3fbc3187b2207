//! What changed since when, in a fixed number of counters: no list of names to keep, none to forget.
//!
//! A name is one of a few thousand counters by its hash. Two names that share one cost a read too many, never a
//! wrong answer.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use proto::{Access, MethodPolicy};
use service_kit::{
    AuthContext,
    bus::{Bus, Received},
    shutdown::Tasks,
};

/// How many counters there are.
const COUNTERS: usize = 16 * 1024;

/// What the subjects start with that say that something changed.
const SUBJECTS: &str = "changed.";

/// A name that something is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u16);

/// What changed since when.
#[derive(Debug)]
pub(crate) struct Changes {
    hasher: RandomState,
    /// Counts changes up.
    last: AtomicU64,
    /// The last change of everything.
    all: AtomicU64,
    /// The last change of each name.
    of: Box<[AtomicU64]>,
}

impl Default for Changes {
    fn default() -> Self {
        let of = std::iter::repeat_with(AtomicU64::default).take(COUNTERS).collect();
        Self { hasher: RandomState::new(), last: AtomicU64::default(), all: AtomicU64::default(), of }
    }
}

impl Changes {
    /// The name `text`. One that ends with a dot stands for all that begin so.
    pub(super) fn tag(&self, text: &str) -> Tag {
        let hash = self.hasher.hash_one(text) % COUNTERS as u64;
        Tag(u16::try_from(hash).unwrap_or_default())
    }

    /// The moment to compare with later.
    pub(super) fn now(&self) -> u64 {
        self.last.load(SeqCst)
    }

    /// Whether any of these changed after a moment.
    pub(super) fn since(&self, moment: u64, tags: &[Tag]) -> bool {
        let changed = |of: &AtomicU64| of.load(SeqCst) > moment;
        changed(&self.all) || tags.iter().any(|tag| changed(&self.of[usize::from(tag.0)]))
    }

    /// Something of this name changed.
    fn changed(&self, tag: Tag) {
        let now = self.last.fetch_add(1, SeqCst) + 1;
        self.of[usize::from(tag.0)].fetch_max(now, SeqCst);
    }

    /// Anything may have changed.
    pub(crate) fn lost(&self) {
        let now = self.last.fetch_add(1, SeqCst) + 1;
        self.all.fetch_max(now, SeqCst);
    }

    /// A subject was on the bus.
    pub(crate) fn heard(&self, subject: &str) {
        self.changed(self.tag(subject));
        for (dot, _) in subject.match_indices('.') {
            self.changed(self.tag(&subject[..=dot]));
        }
    }

    /// What a call may change for whoever reads later; `None` for a call that changes nothing. Keep it until the
    /// call is over, however it ends.
    pub(crate) fn written<'v>(
        self: &Arc<Self>,
        policy: &MethodPolicy,
        caller: Option<&AuthContext>,
        named: impl IntoIterator<Item = &'v str>,
    ) -> Option<Written> {
        if policy.no_side_effects || policy.access != Access::User {
            return None;
        }
        let own = caller.map(|caller| self.tag(&own(caller.user_id())));
        let tags = own.into_iter().chain(named.into_iter().map(|id| self.tag(&target(id)))).collect();
        Some(Written { changes: self.clone(), tags })
    }
}

/// The name of all that a user reads.
pub(super) fn own(user_id: &str) -> String {
    format!("changed.user.{user_id}")
}

/// The name of what a path names: RFC 9111 §4.4 for whoever reads it.
pub(super) fn target(id: &str) -> String {
    format!("target.{id}")
}

/// A call that may change something. When it is over, what was read before is read anew: by its caller
/// everything, by all others what its path names.
#[derive(Debug)]
pub(crate) struct Written {
    changes: Arc<Changes>,
    tags: Vec<Tag>,
}

impl Drop for Written {
    fn drop(&mut self) {
        for tag in &self.tags {
            self.changes.changed(*tag);
        }
    }
}

/// Listens to the bus for what changed, until the edge drains.
pub(crate) async fn follow(bus: &Arc<dyn Bus>, changes: &Arc<Changes>, tasks: &Tasks) -> anyhow::Result<()> {
    let mut subscription = bus.subscribe(SUBJECTS).await?;
    let (changes, stop) = (changes.clone(), tasks.stopping());
    tasks.spawn("cache invalidation", async move {
        loop {
            let received = tokio::select! {
                received = subscription.next() => received,
                () = stop.cancelled() => return Ok(()),
            };
            match received {
                Received::Message(message) => changes.heard(&message.subject),
                Received::Lost => changes.lost(),
                Received::Closed => anyhow::bail!("the bus is gone"),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::Contract;

    use super::Changes;

    #[test]
    fn a_change_is_seen_by_its_name_and_by_what_it_begins_with() {
        let changes = Changes::default();
        let tag = |text: &str| [changes.tag(text)];
        let before = changes.now();
        changes.heard("changed.api.a1.revision");
        for name in ["changed.api.a1.revision", "changed.api.a1.", "changed.api.", "changed."] {
            assert!(changes.since(before, &tag(name)), "{name}");
            assert!(!changes.since(changes.now(), &tag(name)), "{name}");
        }
        for name in ["changed.api.a2.", "changed.api", "org.", "changed.api.a1"] {
            assert!(!changes.since(before, &tag(name)), "{name}");
        }
        changes.lost();
        assert!(changes.since(before, &tag("changed.api.a2.")) && changes.since(before, &[]));
    }

    #[test]
    fn only_calls_that_change_something_are_noted_and_only_at_their_end() {
        let changes = Arc::new(Changes::default());
        let method = |name: &str| Contract::get().method(&format!("/tollgate.project.v1.{name}")).unwrap();
        assert!(changes.written(method("ApiService/GetApi"), None, ["a"]).is_none());
        let before = changes.now();
        let written = changes.written(method("ApiService/UpdateApi"), None, ["a"]);
        let tags = [changes.tag(&super::target("a"))];
        assert!(!changes.since(before, &tags));
        drop(written);
        assert!(changes.since(before, &tags));
    }
}
