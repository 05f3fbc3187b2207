//! One limit: a name, a quota, and who has taken how much of it.

use std::{
    fmt::Write as _,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use service_kit::Clock;
use sha2::{Digest as _, Sha256};

use super::{
    Shared,
    bucket::{Buckets, Lease, Left},
    fields::Standing,
    shared::{Away, Taken},
};

/// The part of a quota that is taken from the shared count at once: a hundredth, so that Redis is asked once
/// for as many calls, and two edges that lease the last permits are off by as little.
const LEASE: u32 = 100;

/// A limit of callers.
#[derive(Debug)]
pub(crate) struct Limit {
    name: &'static str,
    /// In each period, all of which may be used at once; 0 for no limit.
    permits: u32,
    period: Duration,
    buckets: Buckets,
    hasher: RandomState,
    /// Its item in `RateLimit-Policy`, up to the key of the caller.
    item: String,
    shared: Option<Arc<Shared>>,
    /// Whether to refuse while the shared count is away.
    is_closed: bool,
}

/// Whom a limit counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who<'a> {
    /// An address (IPv6: its /64, which is one customer's).
    Address(IpAddr),
    /// A user.
    User(&'a str),
    /// A session, or whatever else was shown.
    Token(&'a [u8]),
}

/// Why a call does not pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The caller has used its permits up.
    Exceeded(Exceeded),
    /// Nobody can say whether it has.
    Away,
}

/// A caller has used its permits up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(super) name: &'static str,
    /// Its item in `RateLimit-Policy`.
    pub(super) policy: String,
    /// When there will be a permit: whole seconds, at least one.
    pub(crate) after: Duration,
}

impl Limit {
    /// `permits` in each `period`, all of which may be used at once; 0 for no limit.
    pub(crate) fn new(name: &'static str, permits: u32, period: Duration, clock: Clock) -> Self {
        let (buckets, hasher) = (Buckets::new(period, clock), RandomState::new());
        let item = format!("\"{name}\";q={permits};w={};pk=:", period.as_secs());
        Self { name, permits, period, buckets, hasher, item, shared: None, is_closed: false }
    }

    /// Counts together with other edges.
    pub(super) fn sharing(mut self, shared: Option<Arc<Shared>>, is_closed: bool) -> Self {
        (self.shared, self.is_closed) = (shared, is_closed);
        self
    }

    /// Goes on with what callers have taken of another limit of this name.
    pub(super) fn go_on_from(&mut self, other: &Self) {
        self.buckets = other.buckets.clone();
        self.hasher = other.hasher.clone();
    }

    /// Takes a permit, or says when there will be one. `None` where there is no limit.
    pub(crate) async fn take(&self, who: &Who<'_>) -> Result<Option<Standing>, Denied> {
        if self.permits == 0 {
            return Ok(None);
        }
        let caller = self.caller(who);
        // What this edge has counted is part of what all have: where that is too much, nobody is asked.
        let own = self.buckets.take(caller, self.permits).map_err(|after| self.exceeded(caller, after))?;
        let left = match &self.shared {
            None => own,
            Some(shared) => Box::pin(self.take_shared(shared, who, caller, own)).await?,
        };
        Ok(Some(Standing::new(self.name, self.permits, left)))
    }

    /// Its name, and how many callers it remembers.
    pub(super) fn callers(&self) -> (&'static str, u64) {
        (self.name, self.buckets.callers())
    }

    /// Gives a permit back that turned out not to be needed.
    pub(crate) fn give_back(&self, who: &Who<'_>) {
        if self.permits > 0 {
            self.buckets.give_back(self.caller(who), self.permits, self.shared.is_some());
        }
    }

    async fn take_shared(
        &self,
        shared: &Shared,
        who: &Who<'_>,
        caller: u64,
        own: Left,
    ) -> Result<Left, Denied> {
        let refused = |after| {
            self.buckets.give_back(caller, self.permits, false);
            Err(self.exceeded(caller, after))
        };
        match self.buckets.leased(caller, self.permits) {
            Lease::Permit(left) => return Ok(left.unwrap_or(own)),
            Lease::Empty(after) => return refused(after),
            Lease::Ask => {}
        }
        let want = (self.permits / LEASE).max(1);
        match shared.take(&self.key(who), self.permits, self.period, want).await {
            Ok(Taken::Permits(took, left)) => {
                let rest = took.saturating_sub(1);
                let left = Left { permits: left.permits.saturating_add(rest), ..left };
                if rest > 0 {
                    self.buckets.keep(caller, self.permits, rest, left);
                }
                Ok(left)
            }
            Ok(Taken::None(after)) => {
                self.buckets.keep_empty(caller, self.permits, after);
                refused(after)
            }
            Err(Away) if self.is_closed => {
                self.buckets.give_back(caller, self.permits, false);
                Err(Denied::Away)
            }
            Err(Away) => Ok(own),
        }
    }

    fn exceeded(&self, caller: u64, after: Duration) -> Denied {
        metrics::counter!("tollgate_edge_rate_limited_total", "limit" => self.name).increment(1);
        let mut policy = String::with_capacity(self.item.len() + 16);
        self.write_item(&mut policy, caller);
        Denied::Exceeded(Exceeded { name: self.name, policy, after })
    }

    /// Adds its item to a `RateLimit-Policy` of this caller; nothing where there is no limit.
    pub(super) fn write_policy(&self, field: &mut String, who: &Who<'_>) {
        if self.permits > 0 {
            self.write_item(field, self.caller(who));
        }
    }

    /// `"user";q=100;w=60;pk=:3q2+7wAB:`. The key says which calls count together and nothing of whom they are: a
    /// hash of a hash under a secret of this process, of which 48 bits are told.
    fn write_item(&self, field: &mut String, caller: u64) {
        if !field.is_empty() {
            field.push_str(", ");
        }
        field.push_str(&self.item);
        let key = self.hasher.hash_one((3, caller)).to_be_bytes();
        STANDARD.encode_string(&key[..6], field);
        field.push(':');
    }

    /// A caller in this process: a hash under a key that nobody knows, so that nobody finds another with it.
    fn caller(&self, who: &Who<'_>) -> u64 {
        match who {
            Who::Address(address) => self.hasher.hash_one((0, network_of(*address))),
            Who::User(user) => self.hasher.hash_one((1, user)),
            Who::Token(token) => self.hasher.hash_one((2, token)),
        }
    }

    /// A caller among all edges. What was shown is a secret: only its hash leaves the process.
    fn key(&self, who: &Who<'_>) -> String {
        let mut key = format!("{}:", self.name);
        // Writing to a `String` does not fail.
        let _ = match who {
            Who::Address(address) => write!(key, "{}", network_of(*address)),
            Who::User(user) => write!(key, "{}", hex(user.as_bytes())),
            Who::Token(token) => write!(key, "{}", hex(token)),
        };
        key
    }
}

fn hex(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash[..16].iter().fold(String::with_capacity(32), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The network that counts as one caller.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
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
    use std::{collections::HashSet, time::Duration};

    use service_kit::Clock;

    use super::{Limit, Who};

    const MINUTE: Duration = Duration::from_secs(60);

    fn from(text: &str) -> Who<'static> {
        Who::Address(text.parse().unwrap())
    }

    #[tokio::test]
    async fn a_network_of_ipv6_is_one_address() {
        let limit = Limit::new("test", 2, MINUTE, Clock::fixed(0));
        limit.take(&from("2001:db8:1:2::1")).await.unwrap();
        limit.take(&from("2001:db8:1:2:ffff::2")).await.unwrap();
        assert!(limit.take(&from("2001:db8:1:2::3")).await.is_err());
        limit.take(&from("2001:db8:1:3::1")).await.unwrap();
        // An IPv4 address written as IPv6 is the same caller.
        limit.take(&from("192.0.2.1")).await.unwrap();
        limit.take(&from("::ffff:192.0.2.1")).await.unwrap();
        assert!(limit.take(&from("192.0.2.1")).await.is_err());
    }

    #[tokio::test]
    async fn a_user_is_no_token_and_no_limit_is_none() {
        let limit = Limit::new("test", 1, MINUTE, Clock::fixed(0));
        limit.take(&Who::User("x")).await.unwrap();
        limit.take(&Who::Token(b"x")).await.unwrap();
        assert!(limit.take(&Who::User("x")).await.is_err());
        let none = Limit::new("test", 0, MINUTE, Clock::fixed(0));
        for _ in 0..100 {
            assert_eq!(none.take(&Who::User("x")).await.unwrap(), None);
        }
        let mut field = String::new();
        none.write_policy(&mut field, &Who::User("x"));
        assert_eq!(field, "");
        none.give_back(&Who::User("x"));
    }

    /// The key of a caller, as it is told.
    fn key(limit: &Limit, who: &Who<'_>) -> String {
        let mut field = String::new();
        limit.write_policy(&mut field, who);
        field.strip_prefix("\"token\";q=1;w=60;pk=:").unwrap().strip_suffix(':').unwrap().to_owned()
    }

    #[test]
    fn keys_tell_callers_apart_and_nothing_else() {
        let limit = || Limit::new("token", 1, MINUTE, Clock::fixed(0));
        let (one, other) = (limit(), limit());
        let of = |text: &'static str| key(&one, &Who::Token(text.as_bytes()));
        assert_eq!((of("a"), of("a").len()), (of("a"), 8));
        let all: HashSet<String> = ["a", "b", "ab", ""].into_iter().map(of).collect();
        assert_eq!(all.len(), 4);
        // Whoever knows a token learns nothing about calls with it elsewhere, or after a restart.
        assert_ne!(of("a"), key(&other, &Who::Token(b"a")));
        assert_ne!(key(&one, &Who::User("a")), of("a"));
        // A reload goes on.
        let mut next = limit();
        next.go_on_from(&one);
        assert_eq!(key(&next, &Who::Token(b"a")), of("a"));
    }

    #[test]
    fn what_was_shown_does_not_leave_the_process() {
        let limit = Limit::new("token", 1, MINUTE, Clock::fixed(0));
        assert!(!limit.key(&Who::Token(b"secret")).contains("secret"));
        assert_eq!(limit.key(&from("2001:db8::7")), "token:2001:db8::");
    }
}
