//! What failed logins cost: the first few nothing, then each one doubles the wait before the next try.
//!
//! An attempt counts as failed before its password is looked at and is forgiven when it was right, so
//! attempts side by side gain nothing. Addresses without an account are throttled alike.

use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, MutexGuard};

use super::email::Email;
use crate::config::ThrottleConfig;

/// By what an address is known here: the SHA-256 of its canonical form. No list of addresses of people
/// who have no account is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    digest: [u8; 32],
}

impl Key {
    pub(crate) fn of(email: &Email) -> Self {
        Self { digest: Sha256::digest(email.canonical.as_bytes()).into() }
    }

    /// The form that is stored: 64 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        self.digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is remembered of an address. Times are Unix milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Failures in a row.
    pub(crate) failures: i64,
    /// No attempt before this.
    pub(crate) locked_until: i64,
    /// When the last attempt was admitted.
    pub(crate) updated_at: i64,
}

/// Whether an attempt may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Yes; this is the state if it fails.
    Admitted(State),
    /// No, for so many milliseconds. Nothing changes: trying while locked does not extend the lock.
    Locked(i64),
}

/// The cost of failures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    free: i64,
    max_wait_ms: i64,
    forget_ms: i64,
}

impl Rules {
    pub(crate) fn new(config: &ThrottleConfig) -> Self {
        Self {
            free: i64::from(config.free_failures),
            max_wait_ms: i64::from(config.max_wait) * 1_000,
            forget_ms: i64::from(config.forget_after) * 1_000,
        }
    }

    /// Judges an attempt at `now`.
    pub(crate) fn admit(&self, state: State, now: i64) -> Admission {
        if now < state.locked_until {
            return Admission::Locked((state.locked_until - now).min(self.max_wait_ms));
        }
        let forgotten = now - state.updated_at >= self.forget_ms;
        let failures = if forgotten { 1 } else { state.failures + 1 };
        Admission::Admitted(State { failures, locked_until: now + self.wait_ms(failures), updated_at: now })
    }

    /// States last touched before this are forgotten.
    pub(crate) fn forgotten_before(&self, now: i64) -> i64 {
        now - self.forget_ms
    }

    fn wait_ms(&self, failures: i64) -> i64 {
        let costly = failures - self.free;
        if costly <= 0 {
            return 0;
        }
        // 2^20 s is beyond every limit that the configuration allows.
        (1_000_i64 << (costly - 1).min(20)).min(self.max_wait_ms)
    }
}

/// Lets the logins of one account go one after the other within this process: somebody who logs in
/// ten times at once with the right password must not run into his own attempts.
#[derive(Debug)]
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..256).map(|_| Mutex::new(())).collect())
    }
}

impl Turns {
    /// Waits for the turn of an account (and of few others that share its lock).
    pub(crate) async fn take(&self, key: &Key) -> MutexGuard<'_, ()> {
        self.0[usize::from(key.digest[0]) % self.0.len()].lock().await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Admission, Rules, State};
    use crate::config::ThrottleConfig;

    fn rules() -> Rules {
        Rules::new(&ThrottleConfig { free_failures: 5, max_wait: 900, forget_after: 43_200 })
    }

    #[test]
    fn the_wait_doubles_after_five_and_ends_at_fifteen_minutes() {
        let rules = rules();
        let waits: Vec<i64> = (1..=18).map(|failures| rules.wait_ms(failures) / 1_000).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(rules.wait_ms(i64::MAX), 900_000);
    }

    #[test]
    fn failures_are_forgotten_after_half_a_day() {
        let state = State { failures: 50, locked_until: 900_000, updated_at: 0 };
        assert_eq!(rules().admit(state, 899_999), Admission::Locked(1));
        let Admission::Admitted(next) = rules().admit(state, 900_000) else { panic!("the lock is over") };
        assert_eq!((next.failures, next.locked_until), (51, 1_800_000));
        let Admission::Admitted(next) = rules().admit(state, 43_200_000) else { panic!("forgotten") };
        assert_eq!((next.failures, next.locked_until), (1, 43_200_000));
    }

    proptest! {
        /// However an attacker spaces attempts, an hour admits only so many.
        #[test]
        fn an_hour_admits_few(gaps in proptest::collection::vec(0_i64..60_000, 0..400)) {
            let (mut state, mut now, mut admitted) = (State::default(), 0, 0);
            for gap in gaps {
                now += gap;
                if now > 3_600_000 { break; }
                match rules().admit(state, now) {
                    Admission::Admitted(next) => { admitted += 1; state = next; }
                    Admission::Locked(wait) => prop_assert!(wait > 0 && wait <= 900_000),
                }
            }
            prop_assert!(admitted <= 18, "{}", admitted);
        }
    }
}
