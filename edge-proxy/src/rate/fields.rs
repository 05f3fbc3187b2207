//! What callers are told of limits: `RateLimit` and `RateLimit-Policy`, and a 429 that says which.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use service_kit::{Error, Kind, opaque};

use super::{
    bucket::Left,
    limit::{Denied, Exceeded},
};
use crate::rescue::{Problem, Refusal};

/// What a caller has left.
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Which limits there are.
pub(crate) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How much of a limit a caller has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    name: &'static str,
    quota: u32,
    left: Left,
}

impl Standing {
    pub(super) fn new(name: &'static str, quota: u32, left: Left) -> Self {
        Self { name, quota, left }
    }

    /// Of two limits the one that will refuse first: a client that heeds it heeds both.
    pub(crate) fn tighter(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let part = |standing: &Self| f64::from(standing.left.permits) / f64::from(standing.quota.max(1));
        match (one, other) {
            (Some(one), Some(other)) => Some(if part(&other) < part(&one) { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// `"user";r=50;t=30`: so many calls, and no more than that for so many seconds.
    pub(crate) fn field(&self) -> Option<HeaderValue> {
        field(self.name, self.left.permits, self.left.reset)
    }
}

fn field(name: &str, permits: u32, reset: Duration) -> Option<HeaderValue> {
    // Not by `format!`: there is one for each answer.
    let (mut left, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
    let parts = ["\"", name, "\";r=", left.format(permits), ";t=", seconds.format(reset.as_secs())];
    let mut value = HeaderValue::try_from(parts.concat()).ok()?;
    // No secret, but another each time: HPACK must not drop what comes again for it.
    value.set_sensitive(true);
    Some(value)
}

impl From<Denied> for Refusal {
    /// 429 with the fields of draft-ietf-httpapi-ratelimit-headers; 503 when nobody could count.
    fn from(denied: Denied) -> Self {
        let Exceeded { name, policy, after } = match denied {
            Denied::Exceeded(exceeded) => exceeded,
            Denied::Away => {
                let cause = anyhow::anyhow!("the shared limits are away");
                return Error::unavailable("limits cannot be checked right now", cause).into();
            }
        };
        let message = match name {
            "user" | "heavy" => "too many calls of this user",
            "token" => "too many calls with this token",
            _ => "too many attempts from this address",
        };
        let error = Error::new(Kind::ResourceExhausted, "RATE_LIMITED", message);
        let refusal = Self::from(error.retry_after(jittered(after))).of_type(Problem::QuotaExceeded(name));
        [(RATE_LIMIT_POLICY, HeaderValue::try_from(policy).ok()), (RATE_LIMIT, field(name, 0, after))]
            .into_iter()
            .fold(refusal, |refusal, (name, value)| match value {
                Some(value) => refusal.with_header(name, value),
                None => refusal,
            })
    }
}

/// Up to a tenth later, whole seconds: those who were refused together do not come again together.
fn jittered(after: Duration) -> Duration {
    let most = after.as_secs().div_ceil(10);
    let part = u64::from(u32::from_be_bytes(opaque::random()));
    after + Duration::from_secs((part * (most + 1)) >> 32)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::{Left, Standing, jittered};

    #[test]
    fn who_comes_again_is_spread_and_never_early() {
        for after in [1, 3, 20, 360] {
            let seen: BTreeSet<u64> =
                (0..2_000).map(|_| jittered(Duration::from_secs(after)).as_secs()).collect();
            let most = after + after.div_ceil(10);
            assert_eq!(seen, (after..=most).collect(), "{after}");
        }
    }

    #[test]
    fn the_tighter_limit_is_told() {
        let standing = |name, quota, permits| {
            Some(Standing::new(name, quota, Left { permits, reset: Duration::from_secs(9) }))
        };
        let (wide, narrow) = (standing("user", 100, 50), standing("token", 1_000, 400));
        assert_eq!(Standing::tighter(wide, narrow), narrow);
        assert_eq!(Standing::tighter(narrow, wide), narrow);
        assert_eq!(Standing::tighter(None, wide), wide);
        assert_eq!(narrow.unwrap().field().unwrap(), "\"token\";r=400;t=9");
    }
}
