//! Which instance gets the next call: of two by chance the one with less to do.
//!
//! Looking at two is nearly as even as looking at all, and a crowd of callers does not run to the same one.

use std::sync::atomic::{AtomicU64, Ordering};

/// Chance that nobody has to guess, and everybody can share: a counter, mixed.
#[derive(Debug, Default)]
pub(super) struct Chance(AtomicU64);

impl Chance {
    /// The next number (splitmix64).
    pub(super) fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A duration from 80 to 120 percent of `around`.
    pub(super) fn jittered(&self, around: std::time::Duration) -> std::time::Duration {
        let permille = u32::try_from(self.next() % 401).unwrap_or(200);
        around * (800 + permille) / 1_000
    }
}

/// One of those that may be taken.
pub(super) fn pick<'i, T>(
    items: &'i [T],
    chance: &Chance,
    may: impl Fn(&T) -> bool,
    load: impl Fn(&T) -> usize,
) -> Option<&'i T> {
    if let [only] = items {
        return may(only).then_some(only);
    }
    let count = items.iter().filter(|item| may(item)).count();
    // An instance may have gone since it was counted: then there is one fewer to find.
    let nth = |index: usize| items.iter().filter(|item| may(item)).nth(index);
    match count {
        0 => None,
        1 => nth(0),
        _ => {
            let (first, second) = two_of(count, chance.next());
            match (nth(first), nth(second)) {
                (Some(one), Some(other)) if load(other) < load(one) => Some(other),
                (one, other) => one.or(other),
            }
        }
    }
}

/// Two different numbers below `count`, which is at least two.
fn two_of(count: usize, chance: u64) -> (usize, usize) {
    let below = |chance: u64, bound: usize| usize::try_from(chance % bound as u64).unwrap_or(0);
    let first = below(chance >> 32, count);
    let second = below(chance & 0xffff_ffff, count - 1);
    (first, if second >= first { second + 1 } else { second })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Chance, pick, two_of};

    proptest! {
        #[test]
        fn two_are_always_different(count in 2..100_usize, chance: u64) {
            let (one, other) = two_of(count, chance);
            prop_assert!(one != other && one < count && other < count);
        }

        #[test]
        fn only_what_may_be_taken_is(items in prop::collection::vec((any::<bool>(), 0..9_usize), 0..9)) {
            let chance = Chance::default();
            let chosen = pick(&items, &chance, |item| item.0, |item| item.1);
            prop_assert_eq!(chosen.is_some(), items.iter().any(|item| item.0));
            prop_assert!(chosen.is_none_or(|item| item.0));
        }
    }

    #[test]
    fn load_is_spread_and_the_busiest_is_left_alone() {
        let chance = Chance::default();
        let mut loads = [0_usize; 5];
        for _ in 0..10_000 {
            let all: Vec<(usize, usize)> = loads.iter().copied().enumerate().collect();
            loads[pick(&all, &chance, |_| true, |item| item.1).unwrap().0] += 1;
        }
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least < 10, "{loads:?}");
        let all = [(0, 5), (1, 0)];
        assert!((0..100).all(|_| pick(&all, &chance, |_| true, |item| item.1).unwrap().0 == 1));
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let chance = Chance::default();
        for _ in 0..1_000 {
            let jittered = chance.jittered(Duration::from_millis(100));
            assert!((80..=120).contains(&jittered.as_millis()), "{jittered:?}");
        }
    }
}
