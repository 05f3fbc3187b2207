//! What can be wrong with an audit log.

use std::fmt;

/// The first thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// An event is not what was recorded.
    BadEvent { chain: String, sequence: i64, problem: &'static str },
    /// There is no event of this sequence, but there are later ones.
    Missing { chain: String, sequence: i64 },
    /// The last events are missing.
    Truncated { chain: String, head: i64, last: i64 },
    /// The last event is not the one that the head names.
    HeadDiffers { chain: String, sequence: i64 },
    /// There are events and no head.
    NoHead { chain: String, last: i64 },
    /// There are events after the one that the head names.
    BeyondHead { chain: String, head: i64, last: i64 },
    /// An exported line is not what was written.
    BadLine { place: String, problem: &'static str },
    /// What an exported head names is not there any more; `last` is 0 when nothing of the chain is.
    Gone { chain: String, sequence: i64, last: i64, place: String },
    /// What an exported head names has another hash now.
    Rewritten { chain: String, sequence: i64, place: String },
    /// The database says that a head was exported, and it is not in the folder.
    NotInFolder { chain: String, sequence: i64 },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadEvent { chain, sequence, problem } => {
                write!(f, "chain {chain}, sequence {sequence}: {problem}")
            }
            Self::Missing { chain, sequence } => {
                write!(f, "chain {chain}, sequence {sequence}: missing, there are later ones")
            }
            Self::Truncated { chain, head, last } => write!(
                f,
                "chain {chain}, sequence {}: truncated, the head says {head} and the last event is {last}",
                last + 1
            ),
            Self::HeadDiffers { chain, sequence } => {
                write!(f, "chain {chain}, sequence {sequence}: the head of the chain has another hash")
            }
            Self::NoHead { chain, last } => {
                write!(f, "chain {chain}: it has no head, and events up to sequence {last}")
            }
            Self::BeyondHead { chain, head, last } => write!(
                f,
                "chain {chain}, sequence {}: the head says {head} and the last event is {last}",
                head + 1
            ),
            Self::BadLine { place, problem } => write!(f, "{place}: {problem}"),
            Self::Gone { chain, sequence, last: 0, place } => {
                write!(f, "chain {chain}: it is gone, and {place} says that it had sequence {sequence}")
            }
            Self::Gone { chain, sequence, last, place } => write!(
                f,
                "chain {chain}, sequence {}: truncated, {place} says {sequence} and the last event is {last}",
                last + 1
            ),
            Self::Rewritten { chain, sequence, place } => write!(
                f,
                "chain {chain}, sequence {sequence}: rewritten, {place} says that it had another hash"
            ),
            Self::NotInFolder { chain, sequence } => write!(
                f,
                "chain {chain}, sequence {sequence}: its head was exported and is not in the folder of heads; \
                 name every folder with --heads if there are several"
            ),
        }
    }
}
