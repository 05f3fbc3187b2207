//! Arithmetic of ages (RFC 9111 §4.2, RFC 5861): what may be done with an answer that is so old.

use proto::policy::Cache as Rule;

use super::directives::Directives;

/// What may be done with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It is fresh.
    Fresh,
    /// It is given out once more, while a new one is fetched.
    WhileRevalidating,
    /// It is given out because the client takes one that is so stale.
    Accepted,
    /// It is given out only when no new one can be had.
    IfError,
    /// It is not given out.
    Never,
}

/// The lifetime that a rule gives, in milliseconds.
pub(super) fn lifetime_ms(rule: &Rule) -> i64 {
    i64::from(rule.max_age_s) * 1_000
}

/// What may be done with an answer of this age, in milliseconds since its service was asked. Nothing may with one
/// that is as old as `trust_ms`, or that comes from the future: a clock was put back.
pub(super) fn judge(rule: &Rule, age_ms: i64, trust_ms: i64, asked: &Directives) -> Use {
    if age_ms < 0 || age_ms >= trust_ms || asked.no_cache || asked.no_store {
        return Use::Never;
    }
    let of = |seconds: u32| i64::from(seconds) * 1_000;
    // Who says how old an answer may be takes none that is older, whatever happens.
    if asked.max_age_s.is_some_and(|most| age_ms > of(most)) {
        return Use::Never;
    }
    let fresh = lifetime_ms(rule);
    if let Some(least) = asked.min_fresh_s
        && age_ms + of(least) > fresh
    {
        return Use::Never;
    }
    let revalidating = fresh + of(rule.stale_while_revalidate_s);
    let broken = revalidating + of(rule.stale_if_error_s);
    match age_ms {
        age if age < fresh => Use::Fresh,
        age if age < revalidating => Use::WhileRevalidating,
        age if age < broken => match asked.max_stale_s {
            Some(most) if age - fresh <= of(most) => Use::Accepted,
            _ => Use::IfError,
        },
        _ => Use::Never,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::policy::Cache as Rule;

    use super::{Use, judge};
    use crate::cache::directives::Directives;

    fn rule(max_age_s: u32, stale_while_revalidate_s: u32, stale_if_error_s: u32) -> Rule {
        Rule { max_age_s, stale_while_revalidate_s, stale_if_error_s, topics: Vec::new() }
    }

    #[test]
    fn each_time_begins_where_the_one_before_ends() {
        let judge = |age_ms| judge(&rule(10, 20, 300), age_ms, 60_000, &Directives::default());
        for (age_ms, expected) in [
            (0, Use::Fresh),
            (9_999, Use::Fresh),
            (10_000, Use::WhileRevalidating),
            (29_999, Use::WhileRevalidating),
            (30_000, Use::IfError),
            (59_999, Use::IfError),
            (60_000, Use::Never),
            (-1, Use::Never),
        ] {
            assert_eq!(judge(age_ms), expected, "{age_ms}");
        }
    }

    #[test]
    fn who_takes_stale_answers_gets_them_as_far_as_the_rule_goes() {
        let judge = |age_ms, max_stale_s, max_age_s| {
            let asked = Directives { max_stale_s, max_age_s, ..Directives::default() };
            judge(&rule(10, 20, 300), age_ms, 600_000, &asked)
        };
        for (age_ms, max_stale_s, expected) in [
            (9_999, Some(0), Use::Fresh),
            (29_999, Some(60), Use::WhileRevalidating),
            (30_000, Some(19), Use::IfError),
            (30_000, Some(20), Use::Accepted),
            (70_000, Some(60), Use::Accepted),
            (70_001, Some(60), Use::IfError),
            (329_999, Some(u32::MAX), Use::Accepted),
            (330_000, Some(u32::MAX), Use::Never),
        ] {
            assert_eq!(judge(age_ms, max_stale_s, None), expected, "{age_ms} {max_stale_s:?}");
        }
        // A bound of the age is one of stale answers too.
        assert_eq!(judge(40_001, Some(60), Some(40)), Use::Never);
        assert_eq!(judge(40_000, Some(60), Some(40)), Use::Accepted);
    }

    fn rank(verdict: Use) -> u8 {
        match verdict {
            Use::Fresh => 0,
            Use::WhileRevalidating => 1,
            Use::Accepted => 2,
            Use::IfError => 3,
            Use::Never => 4,
        }
    }

    proptest! {
        /// An answer never gets better with time, what a client demands never makes it better, and no number is too
        /// large to be added.
        #[test]
        fn answers_only_get_worse(
            (fresh, revalidate, broken) in (any::<u32>(), any::<u32>(), any::<u32>()),
            ages in (-10_000_i64..i64::from(u32::MAX) * 4_000, 0_i64..i64::from(u32::MAX) * 4_000),
            trust_ms in 1_i64..i64::from(u32::MAX) * 4_000,
            max_age_s in proptest::option::of(any::<u32>()),
            min_fresh_s in proptest::option::of(any::<u32>()),
            max_stale_s in proptest::option::of(any::<u32>()),
        ) {
            let rule = rule(fresh, revalidate, broken);
            let free = Directives::default();
            let (young, old) = (ages.0.max(0), ages.0.max(0) + ages.1);
            prop_assert!(rank(judge(&rule, young, trust_ms, &free)) <= rank(judge(&rule, old, trust_ms, &free)));
            let asked = Directives { max_age_s, min_fresh_s, ..Directives::default() };
            let verdict = judge(&rule, ages.0, trust_ms, &asked);
            prop_assert!(rank(verdict) >= rank(judge(&rule, ages.0, trust_ms, &free)));
            // Only who says so gets what is stale, and nobody what nobody gets.
            let lenient = judge(&rule, ages.0, trust_ms, &Directives { max_stale_s, ..asked });
            let allowed = verdict == Use::IfError && max_stale_s.is_some() && lenient == Use::Accepted;
            prop_assert!(lenient == verdict || allowed);
            if verdict != Use::Never {
                prop_assert!((0..trust_ms).contains(&ages.0));
                prop_assert!(max_age_s.is_none_or(|most| ages.0 <= i64::from(most) * 1_000));
            }
            if verdict == Use::Fresh {
                prop_assert!(ages.0 < i64::from(fresh) * 1_000);
            }
        }
    }
}
