//! What failed logins cost: the first few nothing, then each one doubles the wait before the next try.
//!
//! An attempt counts as failed before its password is looked at and is forgiven when it was right, so
//! attempts side by side gain nothing. Addresses without an account are throttled alike. A known device and
//! a session have a count of their own: guesses of strangers do not delay their owner.

use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    audit::{Chain, Shard},
    email::Email,
    secret::TokenHash,
};
use crate::config::ThrottleConfig;

/// Failures in a row after which a password counts no more, however long one waits (NIST SP 800-63B-4,
/// 3.2.2), until the owner gets in in another way or chooses a new one.
pub(crate) const MOST_FAILURES: i64 = 100;

/// Whose failures are counted. Of an address the SHA-256 of its canonical form: no list of addresses of
/// people who have no account is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    digest: [u8; 32],
}

impl Key {
    /// The key of strangers who try an address.
    pub(crate) fn of(email: &Email) -> Self {
        Self::of_canonical(&email.canonical)
    }

    /// As [`Self::of`], of an address in its canonical form.
    pub(crate) fn of_canonical(address: &str) -> Self {
        Self { digest: Sha256::digest(address).into() }
    }

    /// The key of a known device. No address holds a colon, so none shares it.
    pub(crate) fn of_device(hash: TokenHash) -> Self {
        Self { digest: Sha256::new().chain_update("device:").chain_update(hash.0).finalize().into() }
    }

    /// The key of a session whose owner proves again who they are.
    pub(crate) fn of_session(id: &str) -> Self {
        Self { digest: Sha256::new().chain_update("session:").chain_update(id).finalize().into() }
    }

    /// Reads [`Self::hex`]; `None` when it is not that.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self { digest })
    }

    /// The key of something else than an address: a name without an `@`.
    pub(crate) fn named(name: &str) -> Self {
        Self { digest: Sha256::digest(name).into() }
    }

    /// What wrong second factors of an account count under, whatever its address.
    pub(crate) fn of_second_factor(user_id: &str) -> Self {
        Self { digest: Sha256::digest(format!("second-factor:{user_id}")).into() }
    }

    /// What wrong second factors count under that come from a known device, named by its key: whoever only
    /// knows the password keeps no owner out.
    pub(crate) fn of_second_factor_on(device: &str) -> Self {
        Self { digest: Sha256::digest(format!("second-factor-device:{device}")).into() }
    }

    /// The same for the holder of a session.
    pub(crate) fn of_second_factor_in(session_id: &str) -> Self {
        Self { digest: Sha256::digest(format!("second-factor-session:{session_id}")).into() }
    }

    /// The chain of the audit log for attempts on it when there is no such account.
    pub(crate) fn chain(&self) -> Chain {
        Chain::Nobody(Shard::of(&self.digest))
    }

    /// The form that is stored: 64 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        TokenHash(self.digest).hex()
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
    /// No, for so many milliseconds, or without end. Nothing changes: trying while locked does not extend
    /// the lock.
    Locked(Option<i64>),
}

/// The cost of failures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    free: i64,
    max_wait_ms: i64,
    forget_ms: i64,
    most: i64,
}

impl Rules {
    pub(crate) fn new(config: &ThrottleConfig) -> Self {
        Self {
            most: MOST_FAILURES,
            free: i64::from(config.free_failures),
            max_wait_ms: i64::from(config.max_wait) * 1_000,
            forget_ms: i64::from(config.forget_after) * 1_000,
        }
    }

    /// The same for what time always heals.
    pub(crate) fn healing(config: &ThrottleConfig) -> Self {
        Self { most: i64::MAX, ..Self::new(config) }
    }

    /// Judges an attempt at `now`.
    pub(crate) fn admit(&self, state: State, now: i64) -> Admission {
        if state.failures >= self.most {
            return Admission::Locked(None);
        }
        if now < state.locked_until {
            return Admission::Locked(Some((state.locked_until - now).min(self.max_wait_ms)));
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

    use super::{Admission, Key, Rules, State};
    use crate::{config::ThrottleConfig, domain::secret};

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
        assert_eq!(rules().admit(state, 899_999), Admission::Locked(Some(1)));
        let Admission::Admitted(next) = rules().admit(state, 900_000) else { panic!("the lock is over") };
        assert_eq!((next.failures, next.locked_until), (51, 1_800_000));
        let Admission::Admitted(next) = rules().admit(state, 43_200_000) else { panic!("forgotten") };
        assert_eq!((next.failures, next.locked_until), (1, 43_200_000));
    }

    #[test]
    fn after_a_hundred_failures_time_heals_nothing() {
        let (mut state, mut now, mut looked_at) = (State::default(), 0, 0);
        // Each attempt as early as it is admitted.
        while let Admission::Admitted(next) = rules().admit(state, now) {
            (state, now, looked_at) = (next, next.locked_until, looked_at + 1);
        }
        assert_eq!((looked_at, state.failures), (100, 100));
        for later in [0, 900_000, 43_200_000, 365 * 86_400_000] {
            assert_eq!(rules().admit(state, now + later), Admission::Locked(None));
        }
        // Short of it, half a day is enough.
        let state = State { failures: 99, ..state };
        let Admission::Admitted(next) = rules().admit(state, now + 43_200_000) else { panic!("forgotten") };
        assert_eq!(next.failures, 1);
    }

    #[test]
    fn keys_are_apart_and_read_back() {
        let (_, hash) = secret::issue();
        let keys = [Key::of_canonical("a@b.co"), Key::of_device(hash), Key::of_session("s")];
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(Key::from_hex(&key.hex()).as_ref(), Some(key));
            assert!(!keys[at + 1..].contains(key));
        }
        for bad in
            ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65), &format!("+{}", "0".repeat(63))]
        {
            assert_eq!(Key::from_hex(bad), None, "{bad}");
        }
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
                    Admission::Locked(wait) => prop_assert!(wait.is_some_and(|wait| wait > 0 && wait <= 900_000)),
                }
            }
            prop_assert!(admitted <= 18, "{}", admitted);
        }
    }
}
