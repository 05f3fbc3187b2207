//! The way into one service: so many calls at once, a bounded queue for those that wait, and a door that closes
//! the earlier the less a call matters.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Priority,
    gradient::{Gradient, Window, slowness},
};
use crate::config::ConcurrencyConfig;

/// How long a window of answers is, at least.
const WINDOW: Duration = Duration::from_millis(200);
/// And how many answers it has, at least.
const ENOUGH: u32 = 20;

/// What a method usually takes, in microseconds as `f64` bits; 0 while nobody knows.
pub(super) type Usual = std::sync::atomic::AtomicU64;

/// The way into one service.
#[derive(Debug)]
pub(super) struct Gate {
    queue_length: usize,
    wait: Duration,
    inflight: AtomicUsize,
    limit: AtomicUsize,
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    learner: Mutex<Learner>,
}

/// Those who wait, by what they matter.
#[derive(Debug, Default)]
struct Queue([VecDeque<oneshot::Sender<Pass>>; Priority::WAITING]);

#[derive(Debug)]
struct Learner {
    gradient: Gradient,
    window: Window,
    since: Instant,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Not even to wait.
    Queue,
    /// And none came in time.
    Waited,
}

/// A place among the calls that are under way; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Pass(Option<Arc<Gate>>);

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(gate) = self.0.take() else { return };
        gate.inflight.fetch_sub(1, SeqCst);
        if gate.waiting.load(SeqCst) > 0 {
            gate.wake();
        }
    }
}

impl Gate {
    pub(super) fn new(config: &ConcurrencyConfig) -> Arc<Self> {
        let gradient = Gradient::new(config.initial, config.least, config.most);
        let gate = Self {
            queue_length: config.queue,
            wait: Duration::from_millis(config.wait_ms),
            inflight: AtomicUsize::new(0),
            limit: AtomicUsize::new(gradient.limit()),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            learner: Mutex::new(Learner { gradient, window: Window::default(), since: Instant::now() }),
        };
        Arc::new(gate)
    }

    /// A place, at once or after a wait, and which it was; nobody overtakes those who wait already.
    pub(super) async fn enter(self: &Arc<Self>, priority: Priority) -> Result<(Pass, bool), Full> {
        let Some(line) = priority.line() else {
            self.inflight.fetch_add(1, SeqCst);
            return Ok((Pass(Some(self.clone())), false));
        };
        if self.waiting.load(SeqCst) == 0
            && let Some(pass) = self.try_enter()
        {
            return Ok((pass, false));
        }
        let turn = self.line_up(line, priority)?;
        match tokio::time::timeout(self.wait, turn).await {
            Ok(Ok(pass)) => Ok((pass, true)),
            _ => Err(Full::Waited),
        }
    }

    fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        let limit = self.limit.load(SeqCst);
        let next = |inflight| (inflight < limit).then_some(inflight + 1);
        self.inflight.fetch_update(SeqCst, SeqCst, next).ok().map(|_| Pass(Some(self.clone())))
    }

    fn line_up(self: &Arc<Self>, line: usize, priority: Priority) -> Result<oneshot::Receiver<Pass>, Full> {
        let (turn, receiver) = oneshot::channel();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let room = priority.room(self.queue_length);
        if queue.length() >= room {
            queue.forget_the_gone();
            self.waiting.store(queue.length(), SeqCst);
        }
        if queue.length() >= room {
            return Err(Full::Queue);
        }
        queue.0[line].push_back(turn);
        // Said before the last look: whoever leaves after it sees that somebody waits.
        self.waiting.store(queue.length(), SeqCst);
        self.serve(&mut queue);
        Ok(receiver)
    }

    fn wake(self: &Arc<Self>) {
        self.serve(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Gives free places to those who wait, what matters most first.
    fn serve(self: &Arc<Self>, queue: &mut Queue) {
        while queue.length() > 0
            && let Some(pass) = self.try_enter()
        {
            let Some(turn) = queue.0.iter_mut().find_map(VecDeque::pop_front) else { break };
            self.waiting.store(queue.length(), SeqCst);
            if let Err(mut pass) = turn.send(pass) {
                // Who waited has gone. Emptied first: to drop a pass looks at the queue, which is locked.
                pass.0 = None;
                self.inflight.fetch_sub(1, SeqCst);
            }
        }
        self.waiting.store(queue.length(), SeqCst);
    }

    /// Learns from an answer that took so long, of a method that usually takes `usual`.
    pub(super) fn answered(self: &Arc<Self>, usual: &Usual, took: Duration) {
        self.learn(|window, gradient, inflight| {
            let in_crowd = gradient.is_crowd(inflight);
            let (slower, now) = slowness(f64::from_bits(usual.load(SeqCst)), took, in_crowd);
            usual.store(now.to_bits(), SeqCst);
            window.answers += 1;
            window.slowness += slower;
        });
    }

    /// Learns that the service did not answer in time.
    pub(super) fn dropped(self: &Arc<Self>) {
        self.learn(|window, _, _| window.dropped += 1);
    }

    fn learn(self: &Arc<Self>, note: impl FnOnce(&mut Window, &Gradient, usize)) {
        let inflight = self.inflight.load(SeqCst);
        let mut learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        let Learner { gradient, window, since } = &mut *learner;
        note(window, gradient, inflight);
        window.peak = window.peak.max(inflight);
        if window.answers + window.dropped < ENOUGH || since.elapsed() < WINDOW {
            return;
        }
        gradient.learn(window);
        (*window, *since) = (Window::default(), Instant::now());
        self.limit.store(gradient.limit(), SeqCst);
    }

    /// Calls under way, the limit, and those that wait.
    pub(super) fn figures(&self) -> (usize, usize, usize) {
        (self.inflight.load(SeqCst), self.limit.load(SeqCst), self.waiting.load(SeqCst))
    }
}

impl Queue {
    fn length(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    fn forget_the_gone(&mut self) {
        self.0.iter_mut().for_each(|line| line.retain(|turn| !turn.is_closed()));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use futures_util::FutureExt as _;

    use super::{Full, Gate};
    use crate::{config::ConcurrencyConfig, load::Priority};

    fn gate(limit: usize, queue: usize) -> Arc<Gate> {
        let config = ConcurrencyConfig { initial: limit, least: 1, most: limit, queue, wait_ms: 1_000 };
        Gate::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_of_who_leaves_and_what_matters_more_goes_first() {
        let gate = gate(1, 100);
        let first = gate.enter(Priority::Ordinary).await.unwrap();
        let mut heavy = Box::pin(gate.enter(Priority::Heavy));
        let mut login = Box::pin(gate.enter(Priority::Credential));
        assert!(heavy.as_mut().now_or_never().is_none() && login.as_mut().now_or_never().is_none());
        assert_eq!(gate.figures(), (1, 1, 2));
        drop(first);
        let login = login.await.unwrap();
        assert!(heavy.as_mut().now_or_never().is_none());
        drop(login);
        drop(heavy.await.unwrap());
        assert_eq!(gate.figures(), (0, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_it_may_and_the_gone_take_no_place() {
        let gate = gate(1, 2);
        let first = gate.enter(Priority::Ordinary).await.unwrap();
        assert_eq!(gate.enter(Priority::Credential).await.unwrap_err(), Full::Waited);
        assert_eq!(gate.enter(Priority::Credential).await.unwrap_err(), Full::Waited);
        // Both are still in the queue, but nobody stands there any more.
        assert_eq!(gate.enter(Priority::Credential).await.unwrap_err(), Full::Waited);
        drop(first);
        drop(gate.enter(Priority::Ordinary).await.unwrap());
        assert_eq!(gate.figures(), (0, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_matters_less_is_shed_first_and_links_never() {
        let gate = gate(1, 8);
        let _first = gate.enter(Priority::Ordinary).await.unwrap();
        let mut waiting = Vec::new();
        for (priority, room) in [(Priority::Heavy, 4), (Priority::Ordinary, 6), (Priority::Credential, 8)] {
            while waiting.len() < room {
                let mut turn = Box::pin(gate.enter(priority));
                assert!(turn.as_mut().now_or_never().is_none());
                waiting.push(turn);
            }
            assert_eq!(gate.enter(priority).now_or_never().unwrap().unwrap_err(), Full::Queue);
        }
        for _ in 0..100 {
            std::mem::forget(gate.enter(Priority::Always).now_or_never().unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn a_crowd_never_exceeds_the_limit_and_nobody_is_forgotten() {
        let gate = gate(7, 10_000);
        let one = |number: u64| {
            let gate = gate.clone();
            tokio::spawn(async move {
                let priority =
                    [Priority::Heavy, Priority::Ordinary, Priority::Credential][number as usize % 3];
                if number % 10 == 9 {
                    // These give up at once, wherever they are.
                    return drop(tokio::time::timeout(Duration::ZERO, gate.enter(priority)).await);
                }
                let pass = gate.enter(priority).await.unwrap();
                assert!(gate.figures().0 <= 7);
                tokio::task::yield_now().await;
                drop(pass);
            })
        };
        for done in futures_util::future::join_all((0..3_000).map(one)).await {
            done.unwrap();
        }
        drop(gate.enter(Priority::Heavy).await.unwrap());
        assert_eq!(gate.figures(), (0, 7, 0));
    }
}
