//! Whether a service is called at all. When most of what it is asked fails, it is left alone for a moment;
//! then a single call tries, and its outcome decides.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::config::ResilienceConfig;

/// The breaker of one service.
#[derive(Debug)]
pub(super) struct Breaker {
    rules: Rules,
    /// The same as `state` being closed, without its lock: all that a call looks at in good times.
    closed: AtomicBool,
    state: Mutex<State>,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    failures: u32,
    percent: u32,
    open: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One call is under way, and decides.
    HalfOpen,
}

/// Whether a call is the one that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) is_probe: bool,
}

impl Breaker {
    pub(super) fn new(config: &ResilienceConfig) -> Self {
        let rules = Rules {
            failures: config.breaker_failures,
            percent: config.breaker_percent,
            open: Duration::from_millis(config.breaker_open_ms),
        };
        let window = Window::new(Duration::from_millis(config.breaker_window_ms));
        Self { rules, closed: AtomicBool::new(true), state: Mutex::new(State::Closed), window }
    }

    /// Lets a call pass, or says when to try again.
    pub(super) fn enter(&self) -> Result<Pass, Duration> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(Pass { is_probe: false });
        }
        let mut state = self.state();
        match *state {
            State::Closed => Ok(Pass { is_probe: false }),
            State::HalfOpen => Err(self.rules.open),
            State::Open { until } => match until.checked_duration_since(Instant::now()) {
                Some(rest) if !rest.is_zero() => Err(rest),
                _ => {
                    *state = State::HalfOpen;
                    Ok(Pass { is_probe: true })
                }
            },
        }
    }

    /// The service has answered, whatever it said.
    pub(super) fn succeed(&self) {
        if self.closed.load(Ordering::Relaxed) {
            return self.window.add(true);
        }
        let mut state = self.state();
        // What was asked before it broke and is answered now proves as much as a probe.
        if *state != State::Closed {
            *state = State::Closed;
            self.window.clear();
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// The service has not answered. Says whether it is left alone from now on.
    pub(super) fn fail(&self, pass: Pass) -> bool {
        if self.closed.load(Ordering::Relaxed) {
            self.window.add(false);
            if !self.window.is_bad(self.rules) {
                return false;
            }
        } else if !pass.is_probe {
            return false;
        }
        let until = Instant::now() + self.rules.open;
        *self.state() = State::Open { until };
        self.closed.store(false, Ordering::Relaxed);
        true
    }

    /// A call has ended that proves nothing: the next one tries if this was to.
    pub(super) fn abandon(&self, pass: Pass) {
        if pass.is_probe {
            let mut state = self.state();
            if *state == State::HalfOpen {
                *state = State::Open { until: Instant::now() };
            }
        }
    }

    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match *self.state() {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half-open",
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the calls of the current stretch of time came to.
#[derive(Debug)]
struct Window {
    base: Instant,
    length: Duration,
    stretch: AtomicU64,
    good: AtomicU32,
    bad: AtomicU32,
}

impl Window {
    fn new(length: Duration) -> Self {
        let zero = AtomicU64::new(0);
        Self { base: Instant::now(), length, stretch: zero, good: AtomicU32::new(0), bad: AtomicU32::new(0) }
    }

    fn add(&self, good: bool) {
        let length = self.length.as_millis().max(1);
        let stretch = u64::try_from(self.base.elapsed().as_millis() / length).unwrap_or(u64::MAX);
        // A count or two may be lost where two stretches meet; nothing hangs on it.
        if self.stretch.swap(stretch, Ordering::Relaxed) != stretch {
            self.clear();
        }
        if good { &self.good } else { &self.bad }.fetch_add(1, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.good.store(0, Ordering::Relaxed);
        self.bad.store(0, Ordering::Relaxed);
    }

    fn is_bad(&self, rules: Rules) -> bool {
        let (good, bad) = (self.good.load(Ordering::Relaxed), self.bad.load(Ordering::Relaxed));
        let all = u64::from(good) + u64::from(bad);
        rules.failures > 0 && bad >= rules.failures && u64::from(bad) * 100 >= u64::from(rules.percent) * all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::{Breaker, Pass};
    use crate::upstream::testing::resilience;

    const CALL: Pass = Pass { is_probe: false };
    const PROBE: Pass = Pass { is_probe: true };

    fn breaker() -> Breaker {
        let mut config = resilience();
        (config.breaker_failures, config.breaker_percent) = (4, 50);
        (config.breaker_window_ms, config.breaker_open_ms) = (1_000, 500);
        Breaker::new(&config)
    }

    fn broken() -> Breaker {
        let breaker = breaker();
        let opened: Vec<bool> = (0..4).map(|_| breaker.fail(CALL)).collect();
        assert_eq!(opened, [false, false, false, true]);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_tries_and_decides() {
        let breaker = broken();
        assert_eq!(breaker.enter(), Err(Duration::from_millis(500)));
        advance(Duration::from_millis(500)).await;
        assert_eq!(breaker.enter(), Ok(PROBE));
        // Nobody else until it is known.
        assert!(breaker.enter().is_err());
        // Calls from before say nothing bad that was not known.
        assert!(!breaker.fail(CALL) && breaker.name() == "half-open");
        assert!(breaker.fail(PROBE));
        assert_eq!((breaker.enter(), breaker.name()), (Err(Duration::from_millis(500)), "open"));
        advance(Duration::from_millis(500)).await;
        assert_eq!(breaker.enter(), Ok(PROBE));
        breaker.succeed();
        assert_eq!((breaker.enter(), breaker.name()), (Ok(CALL), "closed"));
        // It begins anew.
        assert!(!breaker.fail(CALL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_is_followed_by_another() {
        let breaker = broken();
        advance(Duration::from_millis(500)).await;
        assert_eq!(breaker.enter(), Ok(PROBE));
        breaker.abandon(PROBE);
        assert_eq!(breaker.enter(), Ok(PROBE));
        breaker.abandon(CALL);
        assert!(breaker.enter().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn few_failures_among_many_calls_or_over_a_long_time_are_none() {
        let breaker = breaker();
        for _ in 0..100 {
            breaker.succeed();
        }
        assert!((0..99).all(|_| !breaker.fail(CALL)));
        assert!(breaker.fail(CALL));

        let breaker = self::breaker();
        for _ in 0..100 {
            assert!((0..3).all(|_| !breaker.fail(CALL)));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(breaker.enter(), Ok(CALL));
    }
}
