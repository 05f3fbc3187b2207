//! How many calls a service can have at once: found out by what they take longer when there are more of them.
//!
//! A window of answers says how much slower they were than the same methods usually are; the limit becomes
//! `limit · gradient + √limit`, smoothed. While answers are as fast as ever the root lets it grow; when they slow
//! down because they wait for each other, the gradient takes more away than the root adds. No clock, no I/O.

use std::time::Duration;

/// Slower than usual by this much is still as usual: small differences are noise.
const TOLERANCE: f64 = 1.5;
/// No window takes more than half away.
const STEEPEST: f64 = 0.5;
/// How much of the new limit counts.
const SMOOTHING: f64 = 0.2;
/// What a refusal for lack of room (or an answer that never came) leaves of the limit.
const BACKOFF: f64 = 0.9;
/// So much of what is usual follows an answer that was slower, and one that was faster.
const SLOWER: f64 = 0.01;
const FASTER: f64 = 0.05;

/// The limit of one service.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    limit: f64,
    least: f64,
    most: f64,
}

/// A window of answers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    /// How many there were.
    pub(super) answers: u32,
    /// The sum of how much slower than usual they were: 1.0 is as usual.
    pub(super) slowness: f64,
    /// How many the service had no room for, or did not answer in time.
    pub(super) dropped: u32,
    /// The most calls that were under way at once.
    pub(super) peak: usize,
}

impl Gradient {
    pub(super) fn new(first: usize, least: usize, most: usize) -> Self {
        let [first, least, most] = [first, least, most].map(|limit| limit as f64);
        Self { limit: first.clamp(least, most), least, most }
    }

    /// Whether so many calls at once may be what slows them down. At the bottom of the limit they are not: what
    /// answers take there is what the service takes, and if that is more than it was, it is believed.
    pub(super) fn is_crowd(&self, concurrent: usize) -> bool {
        concurrent as f64 * 2.0 > self.limit && self.limit > self.least * 2.0
    }

    /// How many calls may be under way.
    pub(super) fn limit(&self) -> usize {
        // Between `least` and `most`, which were whole numbers.
        self.limit as usize
    }

    /// Learns from a window.
    pub(super) fn learn(&mut self, window: &Window) {
        if window.dropped > 0 {
            self.limit = (self.limit * BACKOFF).clamp(self.least, self.most);
            return;
        }
        // A limit that is not used says nothing about what would be if it were.
        if window.answers == 0 || (window.peak as f64) < self.limit / 2.0 {
            return;
        }
        let slowness = window.slowness / f64::from(window.answers);
        let gradient = (TOLERANCE / slowness.max(f64::MIN_POSITIVE)).clamp(STEEPEST, 1.0);
        let new = self.limit * gradient + self.limit.sqrt();
        self.limit += (new - self.limit) * SMOOTHING;
        self.limit = self.limit.clamp(self.least, self.most);
    }
}

/// How much slower than usual an answer was that `took` so long, and what is usual from now on. `usual` is in
/// microseconds, 0 while nobody knows. In a crowd what is usual never grows: overload must not become it.
pub(super) fn slowness(usual: f64, took: Duration, in_crowd: bool) -> (f64, f64) {
    let took = (took.as_secs_f64() * 1_000_000.0).max(1.0);
    if usual <= 0.0 {
        return (1.0, took);
    }
    let part = match (took > usual, in_crowd) {
        (true, true) => 0.0,
        (true, false) => SLOWER,
        (false, _) => FASTER,
    };
    (took / usual, usual + (took - usual) * part)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Gradient, Window, slowness};

    /// A service that does `slots` calls at once, each in `work`: what is more waits its turn.
    struct Service {
        slots: usize,
        work: Duration,
    }

    impl Service {
        /// How long a call takes of `concurrent` ones.
        fn takes(&self, concurrent: usize) -> Duration {
            self.work.mul_f64((concurrent as f64 / self.slots as f64).max(1.0))
        }
    }

    /// Windows of a service under a load that would take every permit there is.
    fn settle(gradient: &mut Gradient, service: &Service, usual: &mut f64, demand: usize, windows: usize) {
        for _ in 0..windows {
            let concurrent = gradient.limit().min(demand);
            let mut window = Window { peak: concurrent, ..Window::default() };
            for _ in 0..50 {
                let (slower, now) =
                    slowness(*usual, service.takes(concurrent), gradient.is_crowd(concurrent));
                *usual = now;
                window.slowness += slower;
                window.answers += 1;
            }
            gradient.learn(&window);
        }
    }

    #[test]
    fn it_finds_what_a_service_can_do_and_follows_it() {
        let mut gradient = Gradient::new(20, 5, 1_000);
        let mut service = Service { slots: 100, work: Duration::from_millis(10) };
        let mut usual = 0.0;
        settle(&mut gradient, &service, &mut usual, usize::MAX, 300);
        let found = gradient.limit();
        assert!((100..=300).contains(&found), "all slots are used and the queue is short: {found}");
        // Half of its instances are gone.
        service.slots = 50;
        settle(&mut gradient, &service, &mut usual, usize::MAX, 100);
        let fewer = gradient.limit();
        assert!(fewer < found * 3 / 4, "{fewer} after {found}");
        service.slots = 200;
        settle(&mut gradient, &service, &mut usual, usize::MAX, 300);
        assert!(gradient.limit() > found, "{} after {found}", gradient.limit());
        // Every call takes longer from now on, alone or not: that is not overload.
        (service.slots, service.work) = (100, Duration::from_millis(40));
        settle(&mut gradient, &service, &mut usual, usize::MAX, 300);
        assert!((100..=300).contains(&gradient.limit()), "{}", gradient.limit());
    }

    #[test]
    fn a_limit_that_is_not_used_stays() {
        let mut gradient = Gradient::new(100, 5, 1_000);
        let service = Service { slots: 1_000, work: Duration::from_millis(1) };
        settle(&mut gradient, &service, &mut 0.0, 10, 1_000);
        assert_eq!(gradient.limit(), 100);
    }

    #[test]
    fn overload_does_not_become_what_is_usual() {
        let mut usual = 1_000.0;
        for _ in 0..100 {
            usual = slowness(usual, Duration::from_millis(10), true).1;
        }
        assert!(usual < 1_001.0, "{usual}");
        for _ in 0..1_000 {
            usual = slowness(usual, Duration::from_millis(10), false).1;
        }
        assert!(usual > 9_900.0, "{usual}");
        for _ in 0..100 {
            usual = slowness(usual, Duration::from_millis(1), true).1;
        }
        assert!(usual < 1_100.0, "{usual}");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_refusals_never_raise_it(
            first in 1_usize..2_000,
            windows in proptest::collection::vec((0_u32..100, 0.0_f64..1e9, 0_u32..3, 0_usize..3_000), 0..200),
        ) {
            let mut gradient = Gradient::new(first, 10, 500);
            for (answers, slowness, dropped, peak) in windows {
                let before = gradient.limit();
                gradient.learn(&Window { answers, slowness, dropped, peak });
                prop_assert!((10..=500).contains(&gradient.limit()));
                prop_assert!(dropped == 0 || gradient.limit() <= before);
            }
        }

        /// Whatever a service can do: as fast as ever it grows, much slower it shrinks.
        #[test]
        fn it_moves_the_right_way(limit in 100_usize..400) {
            let mut gradient = Gradient::new(limit, 10, 500);
            let window = |slowness| Window { answers: 10, slowness: slowness * 10.0, dropped: 0, peak: limit };
            gradient.learn(&window(1.0));
            prop_assert!(gradient.limit() > limit);
            let mut gradient = Gradient::new(limit, 10, 500);
            gradient.learn(&window(3.0));
            prop_assert!(gradient.limit() < limit);
        }
    }
}
