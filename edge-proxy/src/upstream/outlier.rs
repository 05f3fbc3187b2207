//! Whether an instance fails where it should not: then it is left out for a while, each time for longer.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::config::ResilienceConfig;

/// What is known of one instance.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    in_a_row: AtomicU32,
    /// The same as `until` being there, without its lock.
    out: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    until: Option<Instant>,
    times: u32,
    last: Option<Instant>,
}

impl Outlier {
    /// It has answered, whatever it said.
    pub(super) fn succeed(&self) {
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// It has not answered. Says whether that is once too often.
    pub(super) fn fail(&self, config: &ResilienceConfig) -> bool {
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        config.eject_failures > 0 && in_a_row >= config.eject_failures && !self.is_out()
    }

    /// How many calls it has failed in a row.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row.load(Ordering::Relaxed)
    }

    /// Leaves it out. What happened long ago is forgotten.
    pub(super) fn eject(&self, config: &ResilienceConfig) {
        let now = Instant::now();
        let (first, most) =
            (Duration::from_millis(config.eject_ms), Duration::from_millis(config.eject_max_ms));
        let mut record = self.record();
        if record.last.is_none_or(|last| now.saturating_duration_since(last) > most) {
            record.times = 0;
        }
        record.times = record.times.saturating_add(1);
        let until = now + first.saturating_mul(record.times).min(most);
        (record.until, record.last) = (Some(until), Some(until));
        self.in_a_row.store(0, Ordering::Relaxed);
        self.out.store(true, Ordering::Relaxed);
    }

    /// It is another process now: nothing of what was known holds.
    pub(super) fn forget(&self) {
        *self.record() = Record::default();
        self.in_a_row.store(0, Ordering::Relaxed);
        self.out.store(false, Ordering::Relaxed);
    }

    /// Whether it is left out now.
    pub(super) fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed) && self.rest().is_some()
    }

    /// For how long it is left out.
    pub(super) fn rest(&self) -> Option<Duration> {
        let mut record = self.record();
        let rest = record.until?.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero());
        if rest.is_none() {
            record.until = None;
            self.out.store(false, Ordering::Relaxed);
        }
        rest
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one more of a service's instances may be left out.
pub(super) fn may_eject(config: &ResilienceConfig, instances: usize, out: usize) -> bool {
    instances >= config.eject_min_instances && (out + 1) * 100 <= config.eject_percent * instances
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::{Outlier, may_eject};
    use crate::upstream::{config::ResilienceConfig, testing::resilience};

    fn config() -> ResilienceConfig {
        let mut config = resilience();
        (config.eject_failures, config.eject_ms, config.eject_max_ms) = (3, 1_000, 2_500);
        config
    }

    #[tokio::test(start_paused = true)]
    async fn each_time_is_longer_up_to_a_bound() {
        let (outlier, config) = (Outlier::default(), config());
        for seconds in [1_000, 2_000, 2_500, 2_500] {
            assert!(!outlier.fail(&config) && !outlier.fail(&config));
            assert!(outlier.fail(&config) && !outlier.is_out());
            outlier.eject(&config);
            assert_eq!(outlier.rest(), Some(Duration::from_millis(seconds)));
            // What was under way when it was left out does not prolong it.
            assert!((0..10).all(|_| !outlier.fail(&config)));
            outlier.succeed();
            advance(Duration::from_millis(seconds)).await;
            assert!(!outlier.is_out());
        }
        // Long after, it is the first time again.
        advance(Duration::from_secs(60)).await;
        outlier.eject(&config);
        assert_eq!(outlier.rest(), Some(Duration::from_secs(1)));
        outlier.forget();
        assert!(!outlier.is_out());
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_count() {
        let (outlier, config) = (Outlier::default(), config());
        for _ in 0..10 {
            assert!(!outlier.fail(&config) && !outlier.fail(&config));
            outlier.succeed();
        }
        assert_eq!(outlier.in_a_row(), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_the_percentage(percent in 0..=100_usize, instances in 0..50_usize) {
            let config = ResilienceConfig { eject_percent: percent, eject_min_instances: 2, ..resilience() };
            let mut out = 0;
            while may_eject(&config, instances, out) {
                out += 1;
            }
            prop_assert!(out * 100 <= percent * instances);
            prop_assert!(instances >= 2 || out == 0);
        }
    }
}
