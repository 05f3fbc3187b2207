//! Equal calls that are under way at once share one: the first makes it, the others wait for its answer.
//!
//! The call belongs to nobody of them: who leaves takes nothing from the others, and when all have left it ends.
//! What fails fails only for the first; the others then ask for themselves.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::{
    sync::{oneshot, watch},
    task::AbortHandle,
};
use tracing::Instrument as _;

use super::{
    changes::{Changes, Tag},
    keep::{Kept, Made},
    key::Key,
};
use crate::rescue::Refusal;

/// The calls under way.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Weak<Flight>>>);

/// A call under way, for as long as somebody waits for it.
pub(super) struct Flight {
    key: Key,
    began: u64,
    tags: Vec<Tag>,
    answer: watch::Receiver<Option<Arc<Kept>>>,
    call: AbortHandle,
    among: Weak<Flights>,
}

/// What a caller is to wait for.
pub(super) enum Entered {
    /// A call that another has begun.
    Joined(Arc<Flight>),
    /// Its own, whose outcome is told here.
    Begun(Arc<Flight>, oneshot::Receiver<Result<Made, Refusal>>),
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Flights {
    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Joins a call that is under way, unless it began before a change that it may not know, or begins one.
    /// `alone` begins one in any case.
    pub(super) fn enter<F>(
        self: &Arc<Self>,
        key: Key,
        tags: Vec<Tag>,
        changes: &Changes,
        alone: bool,
        begin: impl FnOnce() -> F,
    ) -> Entered
    where
        F: Future<Output = Result<Made, Refusal>> + Send + 'static,
    {
        // Before the lock, so that it is dropped after it: the drop of a flight takes the lock too.
        let found;
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found = flights.get(&key).and_then(Weak::upgrade);
        if let Some(flight) = &found
            && !alone
            && !changes.since(flight.began, &tags)
            && !changes.since(flight.began, &flight.tags)
        {
            return Entered::Joined(flight.clone());
        }
        let began = changes.now();
        let (tell, told) = oneshot::channel();
        let (share, answer) = watch::channel(None);
        let work = begin();
        let call = async move {
            let outcome = work.await;
            if let Ok(Made::Kept(kept)) = &outcome {
                share.send_replace(Some(kept.clone()));
            }
            // Who began it may have left.
            let _ = tell.send(outcome);
        };
        let call = tokio::spawn(call.in_current_span()).abort_handle();
        let among = Arc::downgrade(self);
        let flight = Arc::new(Flight { key, began, tags, answer, call, among });
        flights.insert(key, Arc::downgrade(&flight));
        Entered::Begun(flight, told)
    }
}

impl Flight {
    /// Its answer; `None` when it has failed, or has one that cannot be shared.
    pub(super) async fn answer(&self) -> Option<Arc<Kept>> {
        let mut answer = self.answer.clone();
        let answer = answer.wait_for(Option::is_some).await;
        answer.ok().and_then(|answer| answer.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Nobody waits any more: the call is given up, unless it is over.
        self.call.abort();
        let Some(among) = self.among.upgrade() else { return };
        let mut flights = among.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may fly under this key by now: that one lives.
        if flights.get(&self.key).is_some_and(|flight| flight.strong_count() == 0) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use http::HeaderValue;
    use service_kit::Error;
    use tokio::sync::{Semaphore, oneshot};

    use super::{Entered, Flight, Flights};
    use crate::cache::{
        changes::Changes,
        keep::{Kept, Made},
        key::Key,
    };
    use crate::rescue::Refusal;

    /// Calls that wait for a permit; counts those that began and those that ended.
    struct World {
        flights: Arc<Flights>,
        changes: Changes,
        gate: Arc<Semaphore>,
        begun: Arc<AtomicUsize>,
        over: Arc<AtomicUsize>,
    }

    type Begun = (Arc<Flight>, oneshot::Receiver<Result<Made, Refusal>>);

    struct End(Arc<AtomicUsize>);

    impl Drop for End {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl World {
        fn new() -> Self {
            Self {
                flights: Arc::default(),
                changes: Changes::default(),
                gate: Arc::new(Semaphore::new(0)),
                begun: Arc::default(),
                over: Arc::default(),
            }
        }

        fn enter(&self, key: u8, alone: bool, fails: bool) -> Entered {
            let (gate, begun, over) = (self.gate.clone(), self.begun.clone(), self.over.clone());
            let tags = vec![self.changes.tag(&format!("k.{key}"))];
            self.flights.enter(Key::of_test(key), tags, &self.changes, alone, || async move {
                let _end = End(over);
                begun.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                match fails {
                    true => Err(Error::not_found("thing").into()),
                    false => Ok(Made::Kept(Arc::new(Kept::of_test(HeaderValue::from_static("x/y"))))),
                }
            })
        }

        fn joined(&self, key: u8) -> Arc<Flight> {
            match self.enter(key, false, false) {
                Entered::Joined(flight) => flight,
                Entered::Begun(..) => panic!("begun"),
            }
        }

        fn begun(&self, key: u8, alone: bool, fails: bool) -> Begun {
            match self.enter(key, alone, fails) {
                Entered::Joined(_) => panic!("joined"),
                Entered::Begun(flight, told) => (flight, told),
            }
        }
    }

    #[tokio::test]
    async fn who_leaves_takes_nothing_from_those_who_stay() {
        let world = World::new();
        let leader = world.begun(1, false, false);
        let (stays, leaves) = (world.joined(1), world.joined(1));
        let other = world.begun(2, false, false);
        drop((leader, leaves));
        world.gate.add_permits(2);
        assert!(stays.answer().await.is_some());
        assert!(matches!(other.1.await, Ok(Ok(Made::Kept(_)))));
        assert_eq!(world.begun.load(Ordering::SeqCst), 2);
        drop((stays, other.0));
        assert!(world.flights.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn when_all_have_left_the_call_ends() {
        let world = World::new();
        let (leader, follower) = (world.begun(1, false, false), world.joined(1));
        while world.begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(follower);
        assert_eq!(world.over.load(Ordering::SeqCst), 0);
        drop(leader);
        while world.over.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(world.flights.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_that_of_the_first_alone() {
        let world = World::new();
        let (leader, follower) = (world.begun(1, false, true), world.joined(1));
        world.gate.add_permits(1);
        assert!(matches!(leader.1.await, Ok(Err(_))));
        assert!(follower.answer().await.is_none());
    }

    #[tokio::test]
    async fn a_call_from_before_a_change_is_not_joined_after_it() {
        let world = World::new();
        let old = world.begun(1, false, false);
        world.changes.heard("k.2");
        drop(world.joined(1));
        world.changes.heard("k.1");
        let new = world.begun(1, false, false);
        let newest = world.begun(1, true, false);
        // The end of an older one does not hide the newer.
        drop((old, new));
        assert!(Arc::ptr_eq(&world.joined(1), &newest.0));
    }
}
