//! Whether and when a call that failed is tried again: inside a budget that a storm of failures uses up,
//! after pauses that grow, and never against the word of the service.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use http::{HeaderMap, header};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{balance::Chance, config::ResilienceConfig};

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// One retry, in thousandths.
const RETRY: i64 = 1_000;

/// How many retries a service's calls have earned.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// In thousandths of a retry.
    tokens: AtomicI64,
    most: i64,
    per_call: i64,
}

impl RetryBudget {
    pub(super) fn new(config: &ResilienceConfig) -> Self {
        let most = i64::from(config.retry_burst) * RETRY;
        let per_call = i64::from(config.retry_percent) * RETRY / 100;
        Self { tokens: AtomicI64::new(most), most, per_call }
    }

    /// Each call earns a part of a retry.
    pub(super) fn earn(&self) {
        // Full, as in good times: nothing is written.
        if self.tokens.load(Ordering::Relaxed) < self.most {
            let before = self.tokens.fetch_add(self.per_call, Ordering::Relaxed);
            if before + self.per_call > self.most {
                self.tokens.fetch_min(self.most, Ordering::Relaxed);
            }
        }
    }

    /// Takes a retry if there is one.
    pub(super) fn spend(&self) -> bool {
        let spend = |tokens: i64| (tokens >= RETRY).then_some(tokens - RETRY);
        self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    /// How many there are.
    pub(super) fn left(&self) -> i64 {
        self.tokens.load(Ordering::Relaxed) / RETRY
    }
}

/// What a service says of trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushback {
    /// Nothing.
    None,
    /// Not before this has passed.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// Reads what came with a status: gRPC's own header, `Retry-After` and `google.rpc.RetryInfo`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if let Some(value) = headers.get("grpc-retry-pushback-ms") {
            // gRFC A6: what cannot be read, and what is negative, means no.
            let ms = value.to_str().ok().and_then(|text| text.parse::<u32>().ok());
            return ms.map_or(Self::Never, |ms| Self::After(Duration::from_millis(u64::from(ms))));
        }
        let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let info = || {
            headers.get("grpc-status-details-bin")?;
            Status::from_header_map(headers)?.get_details_retry_info()?.retry_delay
        };
        after.map(Duration::from_secs).or_else(info).map_or(Self::None, Self::After)
    }
}

/// The pause before the retry of this number, counted from one; `None` when there must be none.
pub(super) fn pause(
    config: &ResilienceConfig,
    number: u32,
    pushback: Pushback,
    chance: &Chance,
) -> Option<Duration> {
    match pushback {
        Pushback::Never => None,
        Pushback::After(after) => Some(after),
        Pushback::None => {
            let first = Duration::from_millis(config.retry_pause_ms);
            let factor = 2_u32.saturating_pow(number.saturating_sub(1).min(10));
            Some(chance.jittered(first.saturating_mul(factor).min(LONGEST)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;
    use service_kit::{Error, Kind};
    use tonic::Status;

    use super::{Pushback, RetryBudget, pause};
    use crate::upstream::{balance::Chance, config::ResilienceConfig, testing::resilience};

    proptest! {
        /// Whatever comes when: there are never more retries than a part of the calls, and a burst.
        #[test]
        fn retries_are_a_part_of_calls(
            percent in 0..=100_u32,
            burst in 0..20_u32,
            calls in prop::collection::vec(any::<bool>(), 0..500),
        ) {
            let config =
                ResilienceConfig { retry_percent: percent, retry_burst: burst, ..resilience() };
            let budget = RetryBudget::new(&config);
            let (mut earned, mut spent) = (0, 0);
            for fails in calls {
                budget.earn();
                earned += 1;
                spent += u32::from(fails && budget.spend());
                prop_assert!(budget.left() <= i64::from(burst));
            }
            prop_assert!(spent * 100 <= burst * 100 + earned * percent);
        }
    }

    #[test]
    fn the_service_has_the_last_word() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter();
            pairs.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
        };
        let of = |pairs: &[(&'static str, &'static str)]| Pushback::of(&headers(pairs));
        assert_eq!(of(&[]), Pushback::None);
        assert_eq!(of(&[("grpc-retry-pushback-ms", "15")]), Pushback::After(Duration::from_millis(15)));
        for never in ["-1", "soon", "", "99999999999"] {
            assert_eq!(of(&[("grpc-retry-pushback-ms", never)]), Pushback::Never, "{never}");
        }
        assert_eq!(of(&[("retry-after", "2")]), Pushback::After(Duration::from_secs(2)));
        let error = Error::new(Kind::Unavailable, "BUSY", "x").retry_after(Duration::from_millis(70));
        let mut details = HeaderMap::new();
        Status::from(error).add_header(&mut details).unwrap();
        assert_eq!(Pushback::of(&details), Pushback::After(Duration::from_millis(70)));
    }

    #[test]
    fn pauses_double_up_to_a_second() {
        let (config, chance) = (ResilienceConfig { retry_pause_ms: 25, ..resilience() }, Chance::default());
        let ms = |number| pause(&config, number, Pushback::None, &chance).unwrap().as_millis();
        assert!((20..=30).contains(&ms(1)) && (80..=120).contains(&ms(3)) && ms(30) <= 1_200);
        assert_eq!(pause(&config, 1, Pushback::Never, &chance), None);
    }
}
