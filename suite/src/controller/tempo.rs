//! How fast a controller is, and how it throws dice.

use std::time::Duration;

/// The first delay; it doubles with each dial that fails.
const INITIAL: Duration = Duration::from_secs(1);
/// The longest delay, before it is scattered.
const LONGEST: Duration = Duration::from_secs(300);

/// How fast a controller is. The default is that of the wire contract.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tempo {
    /// What every delay before a dial or a repetition is multiplied with.
    pub factor: f64,
    /// Without a sign of life for longer than this, the link is given up. Events are none.
    pub silence: Duration,
    /// How often a controller that does not speak WebSocket gives a sign of life.
    pub heartbeat: Duration,
}

impl Default for Tempo {
    fn default() -> Self {
        Self { factor: 1.0, silence: Duration::from_secs(35), heartbeat: Duration::from_secs(20) }
    }
}

impl Tempo {
    /// The contract's, with every delay before a dial twenty times shorter: for tests that wait for a dial.
    pub fn hasty() -> Self {
        Self { factor: 0.05, ..Self::default() }
    }

    /// How long to wait after the `failures`-th dial in a row that failed; `dice` is 0 to 1.
    pub fn backoff(&self, failures: u32, dice: f64) -> Duration {
        let delay = INITIAL.saturating_mul(2_u32.saturating_pow(failures.min(20))).min(LONGEST);
        delay.mul_f64(self.factor * (0.75 + dice / 2.0))
    }

    /// A delay of the contract at this tempo.
    pub(super) fn scaled(&self, delay: Duration) -> Duration {
        delay.mul_f64(self.factor)
    }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Dice that nobody foresees.
    pub fn fresh() -> Self {
        Self(u64::from_le_bytes(service_kit::opaque::random::<8>()))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.any() % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    /// A number between 0 and 1.
    pub fn share(&mut self) -> f64 {
        // 53 bits are what such a number can hold.
        #[allow(clippy::cast_precision_loss, reason = "the number has 53 bits")]
        let share = (self.any() >> 11) as f64 / (1_u64 << 53) as f64;
        share
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Dice, Tempo};

    #[test]
    fn dials_are_two_four_eight_and_at_most_three_hundred_seconds_apart() {
        let tempo = Tempo::default();
        let seconds = |failures| tempo.backoff(failures, 0.5).as_secs();
        assert_eq!([1, 2, 3, 8, 9, 30].map(seconds), [2, 4, 8, 256, 300, 300]);
        assert_eq!(tempo.backoff(1, 0.0), Duration::from_millis(1_500));
        assert_eq!(tempo.backoff(1, 1.0), Duration::from_millis(2_500));
        assert_eq!(Tempo::hasty().backoff(1, 0.5), Duration::from_millis(100));
    }

    #[test]
    fn dice_repeat_themselves_and_stay_in_their_limits() {
        let (mut one, mut other) = (Dice::new(7), Dice::new(7));
        let throws: Vec<usize> = (0..100).map(|_| one.below(6)).collect();
        assert!(throws.iter().all(|throw| *throw < 6 && *throw == other.below(6)));
        assert!((0..6).all(|side| throws.contains(&side)), "{throws:?}");
        assert!((0..100).map(|_| one.share()).all(|share| (0.0..1.0).contains(&share)));
    }
}
