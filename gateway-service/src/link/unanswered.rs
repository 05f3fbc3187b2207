//! Events that nothing answers: what was sent on one connection, and what of it the peer is proven to be done with.
//!
//! The proof is the peer's own word, in a heartbeat: it is done with everything up to a revision. Over WebSocket the
//! edge says it, once the pong to a ping has come that was written after the events. What is not proven when the
//! connection ends is sent again on the next one.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many events are kept for a peer that proves nothing. Those that are forgotten come again on the next connection.
const MOST: usize = 10_000;

/// The events of one connection that nothing answers.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Revisions, in order.
    sent: VecDeque<i64>,
    proven: i64,
}

impl Unanswered {
    /// An event was queued.
    pub(super) fn note(&self, revision: i64) {
        let mut state = self.state();
        if state.sent.len() == MOST {
            state.sent.pop_front();
        }
        state.sent.push_back(revision);
    }

    /// The peer says that it is done with everything up to `said`, when everything up to `taken` had left its queue.
    pub(super) fn prove(&self, said: u64, taken: i64) {
        let mut state = self.state();
        state.proven = state.proven.max(i64::try_from(said).unwrap_or(i64::MAX).min(taken));
    }

    /// The events that are done.
    pub(super) fn proven(&self) -> Vec<i64> {
        let state = self.state();
        state.sent.iter().copied().take_while(|revision| *revision <= state.proven).collect()
    }

    /// The log knows that everything up to `revision` is done.
    pub(super) fn forget(&self, revision: i64) {
        let mut state = self.state();
        while state.sent.pop_front_if(|sent| *sent <= revision).is_some() {}
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Unanswered};

    #[test]
    fn only_what_was_sent_and_is_said_to_be_done_is_proven() {
        let unanswered = Unanswered::default();
        [2, 5, 9].into_iter().for_each(|revision| unanswered.note(revision));
        assert!(unanswered.proven().is_empty());
        unanswered.prove(6, 5);
        assert_eq!(unanswered.proven(), [2, 5]);
        unanswered.prove(3, 5);
        assert_eq!(unanswered.proven(), [2, 5], "a proof is not taken back");
        unanswered.forget(5);
        // What it says too much of has not been sent yet, and does not count later.
        unanswered.prove(u64::MAX, 8);
        assert!(unanswered.proven().is_empty());
        unanswered.prove(9, 9);
        assert_eq!(unanswered.proven(), [9]);
    }

    #[test]
    fn a_peer_that_proves_nothing_costs_little() {
        let unanswered = Unanswered::default();
        let sent = i64::try_from(MOST).unwrap() + 5;
        (1..=sent).for_each(|revision| unanswered.note(revision));
        unanswered.prove(u64::MAX, sent);
        assert_eq!(unanswered.proven(), (6..=sent).collect::<Vec<_>>());
    }
}
