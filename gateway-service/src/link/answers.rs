//! What was sent on one connection and waits for its answer: the window.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::gateway::PlatformFrame;

use super::{connection::Link, outbound::Offered};
use crate::domain::instances::Subject;

/// The most events that wait for an answer on one connection.
pub(super) const WINDOW: usize = 256;

/// The events of one connection that its gateway is to answer.
#[derive(Debug, Default)]
pub(super) struct Answers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In order of revision; those that are answered stay while one before them is not.
    sent: VecDeque<Sent>,
    /// Somebody waits for room.
    full: bool,
    applied: i64,
}

#[derive(Debug)]
struct Sent {
    subject: Subject,
    nonce: String,
    answered: bool,
}

impl Answers {
    /// Nothing is sent, and everything up to `applied` is done.
    pub(super) fn after(applied: i64) -> Self {
        Self { state: Mutex::new(State { applied, ..State::default() }) }
    }

    /// How many events may be sent now. If none may, [`Self::take`] says when.
    pub(super) fn room(&self) -> usize {
        let mut state = self.state();
        let room = WINDOW.saturating_sub(state.sent.len());
        state.full |= room == 0;
        room
    }

    /// Whether nothing waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.state().sent.is_empty()
    }

    /// Queues an event on its connection. Sent again, its newest nonce counts.
    pub(super) fn offer(
        &self,
        link: &Link,
        frame: &Arc<PlatformFrame>,
        subject: Subject,
        nonce: &str,
    ) -> Offered {
        // Held while the frame is queued: its answer finds it.
        let mut state = self.state();
        let offered = link.offer(frame);
        if offered == Offered::Queued {
            let nonce = nonce.to_owned();
            match state.sent.iter_mut().find(|sent| sent.subject.revision == subject.revision) {
                Some(sent) => sent.nonce = nonce,
                None => state.sent.push_back(Sent { subject, nonce, answered: false }),
            }
        }
        offered
    }

    /// The event that an answer is to; `None` when it is to nothing that waits.
    pub(super) fn take(&self, revision: i64, nonce: &str) -> Option<Subject> {
        let mut state = self.state();
        let sent = state
            .sent
            .iter_mut()
            .find(|sent| !sent.answered && sent.subject.revision == revision && sent.nonce == nonce)?;
        sent.answered = true;
        let subject = sent.subject.clone();
        while let Some(done) = state.sent.pop_front_if(|sent| sent.answered) {
            state.applied = state.applied.max(done.subject.revision);
        }
        Some(subject)
    }

    /// Up to where everything is answered, `sent` being up to where everything was sent.
    pub(super) fn applied(&self, sent: i64) -> i64 {
        let mut state = self.state();
        if state.sent.is_empty() {
            // What was not sent need not be answered.
            state.applied = state.applied.max(sent);
        }
        state.applied
    }

    /// Everything up to `revision` is done: the whole state was.
    pub(super) fn reset(&self, revision: i64) {
        self.state().applied = revision;
    }

    /// Whether somebody waited for room and there is some now.
    pub(super) fn has_room_again(&self) -> bool {
        let mut state = self.state();
        let again = state.full && state.sent.len() <= WINDOW / 2;
        state.full &= !again;
        again
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
