//! What was sent and not acknowledged in time is sent again on the same connections.
//!
//! Time is measured here, by a clock that only goes forward: what other instances have sent is theirs to
//! repeat. Idle gateways cost nothing, and the log is asked about all others at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use service_kit::Result;
use tokio::time::Instant;

use super::hub::Hub;

/// The longest wait is so many times the first.
const MAX_FACTOR: u32 = 10;

/// How many events one question to the log names.
const CHUNK: usize = 1_000;

/// What was sent to one gateway from here and may have to be sent again.
#[derive(Debug, Default)]
pub(super) struct Sent(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By revision.
    waiting: BTreeMap<i64, Waiting>,
    /// To be sent again now.
    again: BTreeSet<i64>,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    times: u32,
}

impl Sent {
    /// An event was sent (again): its answer is due later than the time before.
    pub(super) fn note(&self, revision: i64, first_wait: Duration) {
        let now = Instant::now();
        let mut state = self.state();
        let waiting = state.waiting.entry(revision).or_insert(Waiting { due: now, times: 0 });
        let factor = 1u32.checked_shl(waiting.times).map_or(MAX_FACTOR, |factor| factor.min(MAX_FACTOR));
        waiting.times += 1;
        waiting.due = now + first_wait * factor;
    }

    /// The events whose answers are overdue.
    fn overdue(&self) -> Vec<i64> {
        let now = Instant::now();
        let state = self.state();
        let due = state.waiting.iter().filter(|(_, waiting)| waiting.due <= now);
        due.map(|(revision, _)| *revision).collect()
    }

    /// Of these, which were overdue, only those that are still `open` are to be sent again.
    fn settle(&self, overdue: &[i64], open: &[i64]) {
        let mut state = self.state();
        for revision in overdue {
            if open.contains(revision) {
                state.again.insert(*revision);
            } else {
                state.waiting.remove(revision);
            }
        }
    }

    /// The first `most` of what is to be sent again now, and whether there is more.
    pub(super) fn take_again(&self, most: usize) -> (Vec<i64>, bool) {
        let mut state = self.state();
        let first = std::iter::from_fn(|| state.again.pop_first()).take(most).collect();
        (first, !state.again.is_empty())
    }

    /// These could not be sent again yet.
    pub(super) fn put_back(&self, revisions: Vec<i64>) {
        self.state().again.extend(revisions);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for overdue answers until the service drains.
pub(super) fn start(hub: &Hub) {
    let looking = hub.clone();
    hub.tasks().spawn("link redelivery", async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(looking.config().poll()) => {}
                () = looking.stopping() => return Ok(()),
            }
            if let Err(error) = look(&looking).await {
                tracing::warn!(%error, "it is not known what to send again, will try again");
            }
        }
    });
}

async fn look(hub: &Hub) -> Result<()> {
    let lanes = hub.all_lanes();
    let overdue: Vec<_> = lanes
        .iter()
        .map(|lane| (lane, lane.sent.overdue()))
        .filter(|(_, overdue)| !overdue.is_empty())
        .collect();
    let asked: Vec<(String, i64)> = overdue
        .iter()
        .flat_map(|(lane, revisions)| revisions.iter().map(|revision| (lane.gateway_id.clone(), *revision)))
        .collect();
    let mut open: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for asked in asked.chunks(CHUNK) {
        for (gateway, revisions) in hub.events().unanswered(asked).await? {
            open.entry(gateway).or_default().extend(revisions);
        }
    }
    for (lane, overdue) in overdue {
        let open = open.get(&lane.gateway_id).map_or(&[][..], Vec::as_slice);
        lane.sent.settle(&overdue, open);
        if !open.is_empty() {
            tracing::warn!(gateway = lane.gateway_id, events = open.len(), "not acknowledged: sent again");
            metrics::counter!("tollgate_gateway_redeliveries_total")
                .increment(u64::try_from(open.len()).unwrap_or(0));
            lane.wake.notify_one();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Sent;

    #[tokio::test(start_paused = true)]
    async fn each_wait_is_twice_as_long_and_none_longer_than_ten_times() {
        let (sent, first) = (Sent::default(), Duration::from_secs(60));
        for factor in [1, 2, 4, 8, 10, 10] {
            sent.note(7, first);
            tokio::time::advance(first * factor - Duration::from_millis(1)).await;
            assert!(sent.overdue().is_empty(), "{factor}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(sent.overdue(), [7], "{factor}");
            sent.settle(&[7], &[7]);
            assert_eq!(sent.take_again(2), (vec![7], false));
            assert_eq!(sent.take_again(2), (vec![], false));
        }
        sent.put_back(vec![9, 7, 8]);
        assert_eq!(sent.take_again(2), (vec![7, 8], true), "the oldest first");
        sent.settle(&[7], &[]);
        tokio::time::advance(first * 100).await;
        assert!(sent.overdue().is_empty(), "it is answered");
    }
}
