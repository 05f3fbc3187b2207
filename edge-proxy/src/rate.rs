//! How often one address may do something: a token bucket for each address, the number of them bounded.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use service_kit::{Clock, Error, Kind, Result};

/// How many addresses are remembered; beyond it the least used are forgotten.
const MAX_ADDRESSES: u64 = 100_000;

/// A limit for each address (IPv6: for each /64, which is one customer's).
#[derive(Debug)]
pub(crate) struct AddressLimit {
    per_minute: u32,
    clock: Clock,
    buckets: moka::sync::Cache<IpAddr, Arc<Mutex<Bucket>>>,
}

#[derive(Debug)]
struct Bucket {
    /// Thousandths of a permit.
    filled: u64,
    at: i64,
}

impl AddressLimit {
    /// `per_minute` permits a minute, all of which may be used at once.
    pub(crate) fn per_minute(per_minute: u32, clock: Clock) -> Self {
        let buckets = moka::sync::Cache::builder()
            .max_capacity(MAX_ADDRESSES)
            // A bucket is full again after a minute: forgetting it then changes nothing.
            .time_to_idle(Duration::from_secs(90))
            .build();
        Self { per_minute, clock, buckets }
    }

    /// Takes a permit of this address, or says when there will be one: RESOURCE_EXHAUSTED.
    pub(crate) fn check(&self, address: IpAddr) -> Result<()> {
        let now = self.clock.now_ms();
        let full = u64::from(self.per_minute) * 1_000;
        let bucket = self
            .buckets
            .get_with(network_of(address), || Arc::new(Mutex::new(Bucket { filled: full, at: now })));
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = u64::try_from(now - bucket.at).unwrap_or(0).min(60_000);
        bucket.filled = full.min(bucket.filled + elapsed * u64::from(self.per_minute) / 60);
        bucket.at = now;
        if let Some(rest) = bucket.filled.checked_sub(1_000) {
            bucket.filled = rest;
            return Ok(());
        }
        let missing_ms = (1_000 - bucket.filled) * 60 / u64::from(self.per_minute.max(1));
        Err(Error::new(Kind::ResourceExhausted, "RATE_LIMITED", "too many attempts from this address")
            .retry_after(Duration::from_secs(missing_ms.div_ceil(1_000).max(1))))
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
    use service_kit::Clock;

    use super::AddressLimit;

    #[test]
    fn a_burst_is_allowed_and_then_the_pace_counts() {
        let clock = Clock::fixed(1_000_000);
        let limit = AddressLimit::per_minute(30, clock.clone());
        let address = "192.0.2.7".parse().unwrap();
        for _ in 0..30 {
            limit.check(address).unwrap();
        }
        let refused = limit.check(address).unwrap_err();
        assert_eq!(refused.reason(), "RATE_LIMITED");
        assert_eq!(refused.retry_delay(), Some(std::time::Duration::from_secs(2)));
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
    fn a_network_of_ipv6_is_one_address() {
        let limit = AddressLimit::per_minute(2, Clock::fixed(0));
        limit.check("2001:db8:1:2::1".parse().unwrap()).unwrap();
        limit.check("2001:db8:1:2:ffff::2".parse().unwrap()).unwrap();
        assert!(limit.check("2001:db8:1:2::3".parse().unwrap()).is_err());
        limit.check("2001:db8:1:3::1".parse().unwrap()).unwrap();
        // An IPv4 address written as IPv6 is the same caller.
        limit.check("192.0.2.1".parse().unwrap()).unwrap();
        limit.check("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(limit.check("192.0.2.1".parse().unwrap()).is_err());
    }
}
