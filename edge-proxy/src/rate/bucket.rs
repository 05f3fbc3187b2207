//! Token buckets of one limit in this process: one for each caller, the number of them bounded.
//!
//! A bucket also holds what was taken from the shared limit in advance, and until when that has nothing left.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use foldhash::fast::FixedState;
use moka::policy::EvictionPolicy;
use service_kit::Clock;

/// How many callers are remembered for each limit; beyond it those are forgotten who have not called for longest.
const MAX_CALLERS: u64 = 100_000;

/// What a limit has left for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Permits that can be taken at once.
    pub(crate) permits: u32,
    /// When that is more again: whole seconds.
    pub(crate) reset: Duration,
}

/// The buckets. Clones share them, so that another quota goes on with what was taken under the last.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    period: Duration,
    clock: Clock,
    callers: moka::sync::Cache<u64, Arc<Mutex<Bucket>>, FixedState>,
}

#[derive(Debug)]
struct Bucket {
    /// Permits, in parts of which one grows in a millisecond for each permit of the quota: a permit is as
    /// many as the period has milliseconds, so that nothing is lost to rounding.
    filled: u64,
    at: i64,
    /// Permits of the shared limit that are taken already, and what it had left then.
    leased: u32,
    shared: Option<Left>,
    /// Until when the shared limit has none, by our clock.
    empty_until: i64,
}

/// What is known of the shared limit without asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// A permit was taken in advance.
    Permit(Option<Left>),
    /// There is none for so long.
    Empty(Duration),
    /// It has to be asked.
    Ask,
}

impl Buckets {
    pub(super) fn new(period: Duration, clock: Clock) -> Self {
        let callers = moka::sync::Cache::builder()
            .max_capacity(MAX_CALLERS)
            // Not by how often somebody calls: who is new must be counted too.
            .eviction_policy(EvictionPolicy::lru())
            // A bucket is full again after a period: forgetting it then changes nothing.
            .time_to_idle(period + period / 2)
            // What tells callers apart is a hash under a secret already.
            .build_with_hasher(FixedState::default());
        Self { period, clock, callers }
    }

    /// How many callers are remembered.
    pub(super) fn callers(&self) -> u64 {
        self.callers.entry_count()
    }

    /// Takes a permit of `quota`, or says after how long there will be one.
    pub(super) fn take(&self, caller: u64, quota: u32) -> Result<Left, Duration> {
        let permit = self.permit();
        self.with(caller, quota, |bucket, _| match bucket.filled.checked_sub(permit) {
            Some(rest) => {
                bucket.filled = rest;
                Ok(self.left(rest, quota))
            }
            None => {
                let missing_ms = (permit - bucket.filled).div_ceil(u64::from(quota.max(1)));
                Err(seconds(missing_ms))
            }
        })
    }

    /// Gives a permit back that turned out not to be needed.
    pub(super) fn give_back(&self, caller: u64, quota: u32, is_shared: bool) {
        let (full, permit) = (self.full(quota), self.permit());
        self.with(caller, quota, |bucket, _| {
            bucket.filled = full.min(bucket.filled + permit);
            bucket.leased += u32::from(is_shared);
        });
    }

    /// Takes a permit that was leased, if there is one.
    pub(super) fn leased(&self, caller: u64, quota: u32) -> Lease {
        self.with(caller, quota, |bucket, now| {
            if let Some(rest) = bucket.leased.checked_sub(1) {
                bucket.leased = rest;
                return Lease::Permit(bucket.shared);
            }
            match u64::try_from(bucket.empty_until - now) {
                Ok(ms) if ms > 0 => Lease::Empty(seconds(ms)),
                _ => Lease::Ask,
            }
        })
    }

    /// Keeps permits that were leased.
    pub(super) fn keep(&self, caller: u64, quota: u32, leased: u32, left: Left) {
        self.with(caller, quota, |bucket, _| {
            bucket.leased = bucket.leased.saturating_add(leased);
            bucket.shared = Some(left);
        });
    }

    /// Notes that the shared limit has none for so long: a flood of calls is not one of questions.
    pub(super) fn keep_empty(&self, caller: u64, quota: u32, after: Duration) {
        let ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        self.with(caller, quota, |bucket, now| bucket.empty_until = now.saturating_add(ms));
    }

    fn left(&self, filled: u64, quota: u32) -> Left {
        let grown = (self.full(quota) - filled).div_ceil(u64::from(quota.max(1)));
        let permits = u32::try_from(filled / self.permit()).unwrap_or(u32::MAX);
        Left { permits, reset: seconds(grown) }
    }

    /// The parts that make a permit.
    fn permit(&self) -> u64 {
        u64::try_from(self.period.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// The parts of a full bucket.
    fn full(&self, quota: u32) -> u64 {
        self.permit().saturating_mul(u64::from(quota))
    }

    fn with<T>(&self, caller: u64, quota: u32, act: impl FnOnce(&mut Bucket, i64) -> T) -> T {
        let (now, full) = (self.clock.now_ms(), self.full(quota));
        let new = || Bucket { filled: full, at: now, leased: 0, shared: None, empty_until: 0 };
        let begun = || self.callers.get_with(caller, || Arc::new(Mutex::new(new())));
        // To look first costs less when it is there.
        let bucket = self.callers.get(&caller).unwrap_or_else(begun);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = u64::try_from(now - bucket.at).unwrap_or(0).min(self.permit());
        bucket.filled = full.min(bucket.filled.saturating_add(elapsed * u64::from(quota)));
        bucket.at = now;
        act(&mut bucket, now)
    }
}

/// Whole seconds, at least one.
fn seconds(ms: u64) -> Duration {
    Duration::from_secs(ms.div_ceil(1_000).max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use service_kit::Clock;

    use super::{Buckets, Lease, Left};

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_burst_is_allowed_and_then_the_pace_counts() {
        let clock = Clock::fixed(1_000_000);
        let buckets = Buckets::new(MINUTE, clock.clone());
        for left in (0..30).rev() {
            assert_eq!(buckets.take(7, 30).unwrap().permits, left);
        }
        assert_eq!(buckets.take(7, 30), Err(Duration::from_secs(2)));
        clock.advance_ms(2_000);
        assert_eq!(buckets.take(7, 30), Ok(Left { permits: 0, reset: MINUTE }));
        assert!(buckets.take(7, 30).is_err());
        // Small steps add up: nothing is lost to rounding.
        for _ in 0..20 {
            clock.advance_ms(100);
            let _ = buckets.take(8, 30);
        }
        buckets.take(7, 30).unwrap();
    }

    #[test]
    fn the_period_is_what_it_says() {
        let clock = Clock::fixed(1_000_000);
        let buckets = Buckets::new(HOUR, clock.clone());
        for _ in 0..10 {
            buckets.take(7, 10).unwrap();
        }
        assert_eq!(buckets.take(7, 10), Err(Duration::from_secs(360)));
        // Seven milliseconds do not divide an hour, and yet the permit comes on time.
        for _ in 0..51_428 {
            clock.advance_ms(7);
            assert!(buckets.take(7, 10).is_err());
        }
        clock.advance_ms(4);
        buckets.take(7, 10).unwrap();
        clock.advance_ms(10 * 3_600_000);
        for _ in 0..10 {
            buckets.take(7, 10).unwrap();
        }
        assert!(buckets.take(7, 10).is_err(), "a bucket holds no more than it may");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let buckets = Buckets::new(MINUTE, Clock::fixed(0));
        buckets.give_back(7, 2, false);
        for _ in 0..5 {
            buckets.take(7, 2).unwrap();
            buckets.give_back(7, 2, false);
        }
        buckets.take(7, 2).unwrap();
        buckets.take(7, 2).unwrap();
        assert!(buckets.take(7, 2).is_err());
    }

    #[test]
    fn another_quota_goes_on_with_what_was_taken() {
        let clock = Clock::fixed(0);
        let buckets = Buckets::new(MINUTE, clock.clone());
        for _ in 0..8 {
            buckets.take(7, 10).unwrap();
        }
        // Two are left, whatever the quota is now, and a smaller one holds no more than itself.
        let other = buckets.clone();
        assert_eq!(other.take(7, 100).unwrap().permits, 1);
        assert_eq!(other.take(7, 1), Ok(Left { permits: 0, reset: MINUTE }));
        assert!(other.take(7, 1).is_err());
    }

    #[test]
    fn leases_are_used_up_before_anybody_is_asked() {
        let clock = Clock::fixed(5_000);
        let buckets = Buckets::new(MINUTE, clock.clone());
        let left = Left { permits: 3, reset: MINUTE };
        assert_eq!(buckets.leased(7, 10), Lease::Ask);
        buckets.keep(7, 10, 2, left);
        for _ in 0..2 {
            assert_eq!(buckets.leased(7, 10), Lease::Permit(Some(left)));
        }
        assert_eq!(buckets.leased(7, 10), Lease::Ask);
        buckets.keep_empty(7, 10, Duration::from_millis(1_500));
        assert_eq!(buckets.leased(7, 10), Lease::Empty(Duration::from_secs(2)));
        buckets.give_back(7, 10, true);
        assert_eq!(buckets.leased(7, 10), Lease::Permit(Some(left)));
        clock.advance_ms(1_500);
        assert_eq!(buckets.leased(7, 10), Lease::Ask);
    }

    proptest! {
        /// In any stretch of time no more passes than the quota and what grew meanwhile.
        #[test]
        fn no_pattern_of_calls_gets_more_than_its_quota(
            quota in 1_u32..200,
            steps in proptest::collection::vec(0_i64..3_000, 1..300),
        ) {
            let clock = Clock::fixed(0);
            let buckets = Buckets::new(MINUTE, clock.clone());
            let mut passed = 0_i64;
            for step in steps {
                clock.advance_ms(step);
                passed += i64::from(buckets.take(7, quota).is_ok());
                let most = i64::from(quota) + clock.now_ms() * i64::from(quota) / 60_000;
                prop_assert!(passed <= most, "{passed} of {most}");
            }
        }
    }
}
