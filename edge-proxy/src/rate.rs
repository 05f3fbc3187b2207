//! How often one address may do something: a token bucket for each address, the number of them bounded.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use proto::policy::RateClass;
use service_kit::{Clock, Error, Kind, Result};

use crate::{LimitsConfig, rescue::Refusal};

/// How many addresses are remembered; beyond it the least used are forgotten.
const MAX_ADDRESSES: u64 = 100_000;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The limits of addresses.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Checks of credentials, failed exchanges of opaque tokens included.
    pub(crate) credentials: AddressLimit,
    /// New accounts.
    sign_ups: AddressLimit,
    /// Calls that send mail.
    mails: AddressLimit,
    /// Exchanges of refresh tokens.
    refreshes: AddressLimit,
    /// Connection attempts of gateways, over whatever transport.
    links: AddressLimit,
}

impl Limits {
    pub(crate) fn new(config: &LimitsConfig, clock: &Clock) -> Self {
        let limit = |name, permits, period| AddressLimit::new(name, permits, period, clock.clone());
        Self {
            credentials: limit("credential", config.credential_per_minute, MINUTE),
            sign_ups: limit("sign-up", config.sign_up_per_hour, HOUR),
            mails: limit("mail", config.mail_per_hour, HOUR),
            refreshes: limit("refresh", config.refresh_per_minute, MINUTE),
            links: limit("gateway-connect", config.gateway_connects_per_minute, MINUTE),
        }
    }

    /// Takes a permit for a call of this class.
    pub(crate) fn check(&self, class: RateClass, address: IpAddr) -> Result<(), Exceeded> {
        match class {
            RateClass::Credential => self.credentials.check(address),
            RateClass::SignUp => self.sign_ups.check(address),
            RateClass::Mail => self.mails.check(address),
            RateClass::Refresh => self.refreshes.check(address),
            RateClass::Link => self.links.check(address),
            RateClass::Default | RateClass::Heavy => Ok(()),
        }
    }
}

/// A limit for each address (IPv6: for each /64, which is one customer's).
#[derive(Debug)]
pub(crate) struct AddressLimit {
    name: &'static str,
    permits: u32,
    period: Duration,
    clock: Clock,
    buckets: moka::sync::Cache<IpAddr, Arc<Mutex<Bucket>>>,
}

#[derive(Debug)]
struct Bucket {
    /// Permits, in parts of which one grows in a millisecond: a permit is as many as the period has
    /// milliseconds, so that nothing is lost to rounding.
    filled: u64,
    at: i64,
}

/// An address has used its permits up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    name: &'static str,
    permits: u32,
    period: Duration,
    /// When there will be a permit: whole seconds, at least one.
    pub(crate) after: Duration,
}

impl AddressLimit {
    /// `permits` in each `period`, all of which may be used at once.
    pub(crate) fn new(name: &'static str, permits: u32, period: Duration, clock: Clock) -> Self {
        let buckets = moka::sync::Cache::builder()
            .max_capacity(MAX_ADDRESSES)
            // A bucket is full again after a period: forgetting it then changes nothing.
            .time_to_idle(period + period / 2)
            .build();
        Self { name, permits, period, clock, buckets }
    }

    /// Takes a permit of this address, or says when there will be one.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), Exceeded> {
        let permit = self.permit();
        self.with_bucket(address, |bucket| match bucket.filled.checked_sub(permit) {
            Some(rest) => {
                bucket.filled = rest;
                Ok(())
            }
            None => {
                let missing_ms = (permit - bucket.filled).div_ceil(u64::from(self.permits.max(1)));
                let after = Duration::from_secs(missing_ms.div_ceil(1_000).max(1));
                Err(Exceeded { name: self.name, permits: self.permits, period: self.period, after })
            }
        })
    }

    /// Gives a permit back that turned out not to be needed.
    pub(crate) fn give_back(&self, address: IpAddr) {
        let (full, permit) = (self.full(), self.permit());
        self.with_bucket(address, |bucket| bucket.filled = full.min(bucket.filled + permit));
    }

    /// The parts that make a permit.
    fn permit(&self) -> u64 {
        u64::try_from(self.period.as_millis()).unwrap_or(u64::MAX)
    }

    /// The parts of a full bucket.
    fn full(&self) -> u64 {
        self.permit().saturating_mul(u64::from(self.permits))
    }

    fn with_bucket<T>(&self, address: IpAddr, act: impl FnOnce(&mut Bucket) -> T) -> T {
        let (now, full) = (self.clock.now_ms(), self.full());
        let bucket = self
            .buckets
            .get_with(network_of(address), || Arc::new(Mutex::new(Bucket { filled: full, at: now })));
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = u64::try_from(now - bucket.at).unwrap_or(0).min(self.permit());
        bucket.filled = full.min(bucket.filled.saturating_add(elapsed * u64::from(self.permits)));
        bucket.at = now;
        act(&mut bucket)
    }
}

impl From<Exceeded> for Refusal {
    /// 429 with the fields of draft-ietf-httpapi-ratelimit-headers.
    fn from(Exceeded { name, permits, period, after }: Exceeded) -> Self {
        let error =
            Error::new(Kind::ResourceExhausted, "RATE_LIMITED", "too many attempts from this address");
        let refusal = Self::from(error.retry_after(after));
        let policy = format!("\"{name}\";q={permits};w={}", period.as_secs());
        let limit = format!("\"{name}\";r=0;t={}", after.as_secs());
        [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, limit)].into_iter().fold(
            refusal,
            |refusal, (header, text)| match HeaderValue::try_from(text) {
                Ok(value) => refusal.with_header(header, value),
                Err(_) => refusal,
            },
        )
    }
}

/// The network that counts as one caller.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use service_kit::Clock;

    use super::{AddressLimit, HOUR, MINUTE};

    fn limit(permits: u32, period: Duration, clock: &Clock) -> AddressLimit {
        AddressLimit::new("test", permits, period, clock.clone())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_pace_counts() {
        let clock = Clock::fixed(1_000_000);
        let limit = limit(30, MINUTE, &clock);
        let address = address("192.0.2.7");
        for _ in 0..30 {
            limit.check(address).unwrap();
        }
        let refused = limit.check(address).unwrap_err();
        assert_eq!(refused.after, Duration::from_secs(2));
        clock.advance_ms(2_000);
        limit.check(address).unwrap();
        assert!(limit.check(address).is_err());
        // Small steps add up: nothing is lost to rounding.
        for _ in 0..20 {
            clock.advance_ms(100);
            let _ = limit.check("192.0.2.8".parse().unwrap());
        }
        limit.check(address).unwrap();
    }

    #[test]
    fn the_period_is_what_it_says() {
        let clock = Clock::fixed(1_000_000);
        let limit = limit(10, HOUR, &clock);
        let address = address("192.0.2.7");
        for _ in 0..10 {
            limit.check(address).unwrap();
        }
        assert_eq!(limit.check(address).unwrap_err().after, Duration::from_secs(360));
        // Seven milliseconds do not divide an hour, and yet the permit comes on time.
        for _ in 0..51_428 {
            clock.advance_ms(7);
            assert!(limit.check(address).is_err());
        }
        clock.advance_ms(4);
        limit.check(address).unwrap();
        clock.advance_ms(10 * 3_600_000);
        for _ in 0..10 {
            limit.check(address).unwrap();
        }
        assert!(limit.check(address).is_err(), "a bucket holds no more than it may");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let limit = limit(2, MINUTE, &Clock::fixed(0));
        let address = address("192.0.2.7");
        limit.give_back(address);
        for _ in 0..5 {
            limit.check(address).unwrap();
            limit.give_back(address);
        }
        limit.check(address).unwrap();
        limit.check(address).unwrap();
        assert!(limit.check(address).is_err());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let limit = limit(2, MINUTE, &Clock::fixed(0));
        limit.check(address("2001:db8:1:2::1")).unwrap();
        limit.check(address("2001:db8:1:2:ffff::2")).unwrap();
        assert!(limit.check(address("2001:db8:1:2::3")).is_err());
        limit.check(address("2001:db8:1:3::1")).unwrap();
        // An IPv4 address written as IPv6 is the same caller.
        limit.check(address("192.0.2.1")).unwrap();
        limit.check(address("::ffff:192.0.2.1")).unwrap();
        assert!(limit.check(address("192.0.2.1")).is_err());
    }
}
