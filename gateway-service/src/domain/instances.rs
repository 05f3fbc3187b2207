//! Instances of gateways: what they say they can do and have, and what the platform believes that they run.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

use service_kit::{Result, field::Checks};
use sha2::{Digest as _, Sha256};

use crate::{domain::log::LogEvent, events::Effect};

/// The longest version that is kept, in characters.
const MAX_VERSION: usize = 64;

/// The most capabilities of a hello.
const MAX_CAPABILITIES: usize = 32;

/// The longest detail of a refusal that is kept, in characters.
const MAX_DETAIL: usize = 1_024;

/// What a gateway says when it connects, as it came in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Greeting {
    pub(crate) instance_id: String,
    pub(crate) version: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) applied_revision: u64,
    pub(crate) state_hash: String,
}

/// A gateway that has said who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Empty for those that share what they know.
    pub(crate) instance_id: String,
    pub(crate) version: String,
    pub(crate) mode: Mode,
}

/// How a gateway is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It answers deployments; what it knows, the gateway knows.
    Plain,
    /// As plain, but it answers every event.
    Answering,
    /// It keeps what it has applied, goes on from there, and takes snapshots.
    Resumable(Claim),
}

/// What a resumable instance says that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The newest revision that it has applied; 0 for nothing.
    pub(crate) applied: i64,
    /// The hash of what it runs; empty when it does not say.
    pub(crate) state_hash: String,
}

/// An event as an instance gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) event: LogEvent,
    /// Of its newest sending, unix milliseconds.
    pub(crate) performed_at: i64,
    /// Whether it was never sent to anybody.
    pub(crate) is_first: bool,
}

/// What an event is about: all that is left of it once it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) revision: i64,
    pub(crate) key: String,
    pub(crate) deployment_id: String,
    pub(crate) effect: Effect,
}

/// Why an instance refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) detail: String,
}

/// What an instance says became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) subject: Subject,
    pub(crate) refusal: Option<Refusal>,
}

/// Whose answers they are. They count only while the connection is the instance's newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Author<'a> {
    pub(crate) gateway_id: &'a str,
    /// Empty for those that share what they know.
    pub(crate) instance_id: &'a str,
    pub(crate) connection_id: &'a str,
}

/// An event that the gateway as a whole has now performed, or has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) revision: i64,
    /// Unix milliseconds.
    pub(crate) created_at: i64,
    pub(crate) failed: bool,
}

/// What is known of the log and of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Up to here events may be gone.
    pub(crate) floor: i64,
    /// The newest revision.
    pub(crate) head: i64,
    /// The newest revision up to which the instance has answered everything.
    pub(crate) answered: i64,
}

/// What an instance says of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// What runs; empty when nothing does.
    pub(crate) deployment_id: String,
    /// That was applied.
    pub(crate) revision: i64,
    /// That was refused since; 0 for none.
    pub(crate) rejected_revision: i64,
    pub(crate) reason: String,
}

/// What an instance is believed to run, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Belief(pub(crate) BTreeMap<String, Reported>);

/// Why an instance gets the whole state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has nothing.
    New,
    /// Nothing is known of it, and it does not say what it runs.
    Unknown,
    /// Events that it has not seen may be gone.
    Compacted,
    /// It says that it has what never was.
    Ahead,
    /// It runs something else than is believed.
    Hash,
    /// The same, said on a link that stands.
    Drift,
}

/// Where an instance goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// After this revision. What it runs proves that it has done these, whose answers were lost.
    Resume(i64, Vec<Reply>),
    /// With the whole state.
    Snapshot(Reason),
}

impl Greeting {
    /// Who it is, or what is wrong with what it says.
    pub(crate) fn check(self) -> Result<Peer> {
        let mut checks = Checks::new();
        checks.length("instanceId", &self.instance_id, 0, 64).printable(
            "instanceId",
            &self.instance_id,
            false,
        );
        let count = self.capabilities.len();
        checks.that(count <= MAX_CAPABILITIES, "capabilities", "must hold at most 32 entries");
        let can = |what: &str| self.capabilities.iter().any(|capability| capability == what);
        let (ack, resume) = (can("ack"), can("resume"));
        if resume {
            checks.that(ack, "capabilities", "must hold `ack` beside `resume`");
            checks.that(!self.instance_id.is_empty(), "instanceId", "is required with `resume`");
            let is_hash = self.state_hash.len() == 64
                && self.state_hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let rule = "must be a SHA-256 in 64 lower-case hexadecimal digits";
            checks.that(self.state_hash.is_empty() || is_hash, "stateHash", rule);
        }
        checks.done()?;
        let applied = i64::try_from(self.applied_revision).unwrap_or(i64::MAX);
        let mode = match (ack, resume) {
            (_, true) => Mode::Resumable(Claim { applied, state_hash: self.state_hash }),
            (true, false) => Mode::Answering,
            (false, false) => Mode::Plain,
        };
        Ok(Peer { instance_id: self.instance_id, version: shown(&self.version, MAX_VERSION), mode })
    }
}

impl Peer {
    /// What it says that it has applied.
    pub(crate) fn applied(&self) -> i64 {
        if let Mode::Resumable(claim) = &self.mode { claim.applied } else { 0 }
    }
}

impl Subject {
    /// What is left of an event once it is sent.
    pub(crate) fn of(event: &LogEvent) -> Self {
        Self {
            revision: event.revision,
            key: event.event_key.clone(),
            deployment_id: event.deployment_id.clone(),
            effect: Effect::of(&event.event_type),
        }
    }
}

impl Change {
    /// Where it stands in a snapshot: first what the gateway as a whole needs, then what runs, then what needs
    /// that. Events of one key stay in order.
    fn rank(&self) -> (u8, i64) {
        let class = match Effect::of(&self.event.event_type) {
            _ if self.event.artifact_id.is_empty() => 0,
            Effect::Runs => 1,
            _ => 2,
        };
        (class, self.event.revision)
    }
}

impl Refusal {
    /// A refusal that is safe to keep and to show; `None` when there is no code.
    pub(crate) fn read(code: &str, message: &str) -> Option<Self> {
        if code.is_empty() {
            return None;
        }
        let reason = shown(code, 128);
        let reason = if reason.is_empty() { "REFUSED".to_owned() } else { reason };
        Some(Self { reason, detail: shown(message, MAX_DETAIL) })
    }
}

impl Belief {
    /// The hash of what runs, as instances compute it.
    pub(crate) fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (artifact, reported) in &self.0 {
            if !reported.deployment_id.is_empty() {
                hash.update(format!("{artifact} {}\n", reported.deployment_id));
            }
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Those of these events that it does not know of: neither applied nor refused.
    fn unknown(&self, newest: Vec<Subject>, answered: i64) -> Vec<Reply> {
        let is_new = |subject: &Subject| match self.0.get(&subject.key) {
            Some(known) => known.revision < subject.revision && known.rejected_revision != subject.revision,
            // Only what runs, or was to stop, is remembered for good.
            None => subject.effect == Effect::Runs || subject.revision > answered,
        };
        let answers = newest.into_iter().filter(is_new);
        answers.map(|subject| Reply { subject, refusal: None }).collect()
    }

    /// What it is after an answer.
    pub(crate) fn apply(&mut self, answer: &Reply) {
        let Subject { revision, key, deployment_id, effect } = &answer.subject;
        if key.is_empty() {
            return;
        }
        let known = self.0.get(key).cloned().unwrap_or_default();
        // An answer out of order says nothing about what came later.
        if known.revision > *revision {
            return;
        }
        let refused_later = known.rejected_revision > *revision;
        match &answer.refusal {
            Some(_) if refused_later => {}
            Some(refusal) => {
                let reason = refusal.reason.clone();
                self.0.insert(key.clone(), Reported { rejected_revision: *revision, reason, ..known });
            }
            // Only of what can run it is remembered that it does not.
            None if !refused_later && !matches!(effect, Effect::Runs | Effect::Stops) => {
                self.0.remove(key);
            }
            None => {
                let deployment_id =
                    if *effect == Effect::Runs { deployment_id.clone() } else { String::new() };
                let refused = if refused_later { known } else { Reported::default() };
                self.0.insert(key.clone(), Reported { deployment_id, revision: *revision, ..refused });
            }
        }
    }

    /// What it is after a snapshot: what was not in it runs no more. A refusal leaves what ran before.
    pub(crate) fn replace(self, answers: &[Reply]) -> Self {
        let mut next = Self::default();
        let held: HashSet<&str> = answers.iter().map(|answer| answer.subject.key.as_str()).collect();
        for (key, known) in self.0 {
            // What it had refused without running any other was left out.
            let left_out = !held.contains(key.as_str());
            if !left_out || (known.deployment_id.is_empty() && known.rejected_revision > 0) {
                next.0.insert(key, known);
            }
        }
        for answer in answers {
            if answer.refusal.is_none() {
                // The snapshot says more than what was known, even of a later revision.
                next.0.remove(&answer.subject.key);
            }
            next.apply(answer);
        }
        next
    }

    /// Those of these events that a snapshot holds, in order: nothing that takes something away. What an instance
    /// has refused while it runs nothing older is left out, unless it begins anew.
    pub(crate) fn snapshot(&self, mut newest: Vec<Change>, is_new: bool) -> Vec<Change> {
        newest.retain(|change| {
            let known = self.0.get(&change.event.event_key);
            let refused = known.is_some_and(|known| {
                known.rejected_revision == change.event.revision && known.deployment_id.is_empty()
            });
            !Effect::of(&change.event.event_type).takes_away() && (is_new || !refused)
        });
        newest.sort_by_key(Change::rank);
        newest
    }
}

impl Reason {
    /// The name in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Unknown => "unknown",
            Self::Compacted => "compacted",
            Self::Ahead => "ahead",
            Self::Hash => "hash",
            Self::Drift => "drift",
        }
    }
}

impl Claim {
    /// Whether the instance may go on at all, by its revision alone; else why not.
    pub(crate) fn fits(&self, position: &Position) -> Result<(), Reason> {
        match self.applied {
            0 => Err(Reason::New),
            applied if applied > position.head => Err(Reason::Ahead),
            applied if applied < position.floor => Err(Reason::Compacted),
            _ => Ok(()),
        }
    }

    /// Where the instance goes on: `newest` are the newest events of each key up to what it has applied.
    ///
    /// Answers get lost. An instance that proves by its hash that it has done what it had not answered goes on
    /// after that; one that does not is asked again from what it did answer.
    pub(crate) fn start(&self, position: &Position, belief: &Belief, newest: Vec<Subject>) -> Start {
        if !self.state_hash.is_empty() && self.state_hash != belief.hash() {
            let (mut proven, answers) = (belief.clone(), belief.unknown(newest, position.answered));
            answers.iter().for_each(|answer| proven.apply(answer));
            return if proven.hash() == self.state_hash {
                Start::Resume(self.applied, answers)
            } else {
                Start::Snapshot(Reason::Hash)
            };
        }
        match self.applied.min(position.answered) {
            0 => Start::Snapshot(Reason::Unknown),
            from if from < position.floor => Start::Snapshot(Reason::Compacted),
            from => Start::Resume(from, Vec::new()),
        }
    }
}

/// What a peer says of itself, fit to keep and to log.
pub(crate) fn shown(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

#[cfg(test)]
mod tests;
