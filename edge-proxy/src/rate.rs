//! How often somebody may do something: by address before anybody is authenticated, by user and by token after.
//!
//! Each limit is a token bucket for each caller (`bucket`), in this process; where several edges run, what a
//! bucket gives must also be taken from a count that all of them share (`shared`). What a caller has left is
//! said in `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), as headers only.

mod bucket;
mod fields;
mod limit;
mod shared;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use proto::policy::RateClass;
use service_kit::{Clock, access::AuthContext};

use crate::{Client, LimitsConfig};
pub(crate) use fields::{RATE_LIMIT, RATE_LIMIT_POLICY, Standing};
pub(crate) use limit::{Denied, Limit, Who, network_of};
pub(crate) use shared::Shared;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// All limits. A reload makes new ones that go on with the same buckets.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Every call from an address, before its credential is looked at.
    address: Limit,
    /// Checks of credentials, failed exchanges of opaque tokens included.
    pub(crate) credentials: Limit,
    /// New accounts.
    sign_ups: Limit,
    /// Calls that send mail.
    mails: Limit,
    /// Exchanges of refresh tokens.
    refreshes: Limit,
    /// Connection attempts of gateways, over whatever transport.
    links: Limit,
    /// Calls of a user, with whatever token.
    users: Limit,
    /// Calls with one session, personal token or key; of gateways with one token.
    tokens: Limit,
    /// Expensive calls of a user, or of a gateway.
    heavy: Limit,
    /// Tells these limits from those before a reload.
    edition: u64,
}

/// The names of all limits, which is what settings and answers call them.
const NAMES: [&str; 9] =
    ["address", "credential", "sign-up", "mail", "refresh", "gateway-connect", "user", "token", "heavy"];

impl Limits {
    /// The limits of a configuration; fails for what cannot be meant.
    pub(crate) fn new(
        config: &LimitsConfig,
        clock: &Clock,
        shared: Option<&Arc<Shared>>,
    ) -> anyhow::Result<Self> {
        if let Some(unknown) = config.shared.closed.iter().find(|name| !NAMES.contains(&name.as_str())) {
            anyhow::bail!("limits.shared.closed: there is no limit {unknown:?}, only {}", NAMES.join(", "));
        }
        let limit = |name: &'static str, permits, period| {
            let is_closed = config.shared.closed.iter().any(|closed| closed == name);
            Limit::new(name, permits, period, clock.clone()).sharing(shared.cloned(), is_closed)
        };
        static EDITIONS: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            edition: EDITIONS.fetch_add(1, Ordering::Relaxed),
            address: limit("address", config.address_per_minute, MINUTE),
            credentials: limit("credential", config.credential_per_minute, MINUTE),
            sign_ups: limit("sign-up", config.sign_up_per_hour, HOUR),
            mails: limit("mail", config.mail_per_hour, HOUR),
            refreshes: limit("refresh", config.refresh_per_minute, MINUTE),
            links: limit("gateway-connect", config.gateway_connects_per_minute, MINUTE),
            users: limit("user", config.user_per_minute, MINUTE),
            tokens: limit("token", config.token_per_minute, MINUTE),
            heavy: limit("heavy", config.heavy_per_minute, MINUTE),
        })
    }

    /// The limits of another configuration, which go on with what callers have taken under this one.
    pub(crate) fn reconfigured(
        &self,
        config: &LimitsConfig,
        clock: &Clock,
        shared: Option<&Arc<Shared>>,
    ) -> anyhow::Result<Self> {
        let mut new = Self::new(config, clock, shared)?;
        for (new, old) in new.all_mut().into_iter().zip(self.all()) {
            new.go_on_from(old);
        }
        Ok(new)
    }

    /// Takes what a call costs its address: before authentication, so that nobody can make us work for guesses.
    pub(crate) async fn arrive(&self, class: RateClass, address: IpAddr) -> Result<Option<Standing>, Denied> {
        let who = Who::Address(address);
        let mut standing = self.address.take(&who).await?;
        if let Some(limit) = self.by_address(class) {
            standing = Standing::tighter(standing, limit.take(&who).await?);
        }
        Ok(standing)
    }

    /// Takes what a call costs its user and token, once it is known who that is.
    pub(crate) async fn admit(
        &self,
        class: RateClass,
        caller: &Caller<'_>,
    ) -> Result<Option<Standing>, Denied> {
        let (user, token) = caller.counted();
        let mut standing = self.tokens.take(&token).await?;
        if let Some(user) = &user {
            standing = Standing::tighter(standing, self.users.take(user).await?);
        }
        if class == RateClass::Heavy {
            let heavy = self.heavy.take(user.as_ref().unwrap_or(&token)).await?;
            standing = Standing::tighter(standing, heavy);
        }
        Ok(standing)
    }

    /// Notes for the answer to a call what its caller has left, and which limits it has passed.
    pub(crate) fn note(
        &self,
        client: &Client,
        class: RateClass,
        caller: Option<&Caller<'_>>,
        left: Option<Standing>,
    ) {
        let Some(left) = left else { return };
        let known = (self.edition, class, client.address);
        let field = client.connection.told.same_or(known, caller, || self.policies(client, class, caller));
        if let Some(field) = field {
            client.marks().quota(left, field);
        }
    }

    /// `RateLimit-Policy`: which limits there are for a caller.
    fn policies(
        &self,
        client: &Client,
        class: RateClass,
        caller: Option<&Caller<'_>>,
    ) -> Option<HeaderValue> {
        let mut field = String::with_capacity(192);
        let address = Who::Address(client.address);
        self.address.write_policy(&mut field, &address);
        if let Some(limit) = self.by_address(class) {
            limit.write_policy(&mut field, &address);
        }
        if let Some(caller) = caller {
            let (user, token) = caller.counted();
            if let Some(user) = &user {
                self.users.write_policy(&mut field, user);
            }
            self.tokens.write_policy(&mut field, &token);
            if class == RateClass::Heavy {
                self.heavy.write_policy(&mut field, user.as_ref().unwrap_or(&token));
            }
        }
        HeaderValue::try_from(field).ok()
    }

    fn by_address(&self, class: RateClass) -> Option<&Limit> {
        match class {
            RateClass::Credential => Some(&self.credentials),
            RateClass::SignUp => Some(&self.sign_ups),
            RateClass::Mail => Some(&self.mails),
            RateClass::Refresh => Some(&self.refreshes),
            RateClass::Link => Some(&self.links),
            RateClass::Default | RateClass::Heavy => None,
        }
    }

    /// How many callers each limit remembers.
    pub(crate) fn callers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.all().into_iter().map(Limit::callers)
    }

    fn all(&self) -> [&Limit; 9] {
        let Self { address, credentials, sign_ups, mails, refreshes, links, users, tokens, heavy, .. } = self;
        [address, credentials, sign_ups, mails, refreshes, links, users, tokens, heavy]
    }

    fn all_mut(&mut self) -> [&mut Limit; 9] {
        let Self { address, credentials, sign_ups, mails, refreshes, links, users, tokens, heavy, .. } = self;
        [address, credentials, sign_ups, mails, refreshes, links, users, tokens, heavy]
    }
}

/// What the last call over a connection was told of its limits: the next is of the same caller, as a rule.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<(Known, Option<Counted>, HeaderValue)>>);

/// What an item depends on beside its caller: edition of the limits, class and address.
type Known = (u64, RateClass, IpAddr);

/// A [`Caller`] that stays.
#[derive(Debug)]
enum Counted {
    User(AuthContext),
    Gateway(HeaderValue),
}

impl Told {
    /// The same as the last one if everything is the same, else what `make` makes.
    fn same_or(
        &self,
        known: Known,
        caller: Option<&Caller<'_>>,
        make: impl FnOnce() -> Option<HeaderValue>,
    ) -> Option<HeaderValue> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |counted: &Option<Counted>| match (counted, caller) {
            // One token that was verified once is one `Arc`.
            (Some(Counted::User(last)), Some(Caller::User(now))) => last == *now,
            (Some(Counted::Gateway(last)), Some(Caller::Gateway(now))) => last == now,
            (None, None) => true,
            _ => false,
        };
        if let Some((before, counted, field)) = &*last
            && *before == known
            && is_same(counted)
        {
            return Some(field.clone());
        }
        let counted = caller.map(|caller| match caller {
            Caller::User(context) => Counted::User((*context).clone()),
            Caller::Gateway(key) => Counted::Gateway((*key).clone()),
        });
        let field = make()?;
        *last = Some((known, counted, field.clone()));
        Some(field)
    }
}

/// Who a call turned out to be of.
#[derive(Debug)]
pub(crate) enum Caller<'a> {
    /// A user with a token that was judged.
    User(&'a AuthContext),
    /// A gateway: what it shows, which its service judges.
    Gateway(&'a HeaderValue),
}

impl Caller<'_> {
    /// Its user, where it is one, and its token: whom limits count.
    fn counted(&self) -> (Option<Who<'_>>, Who<'_>) {
        match self {
            Self::User(context) => {
                (Some(Who::User(context.user_id())), Who::Token(context.session_id().as_bytes()))
            }
            Self::Gateway(key) => (None, Who::Token(key.as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use http::HeaderValue;
    use proto::policy::RateClass;

    use super::{Caller, Told};

    #[test]
    fn what_was_told_holds_for_the_same_alone() {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (one, other) = (HeaderValue::from_static("one"), HeaderValue::from_static("other"));
        let (one, other) = (Caller::Gateway(&one), Caller::Gateway(&other));
        let told = Told::default();
        let tell = |known, caller, text: &'static str| {
            let field = told.same_or(known, caller, || Some(HeaderValue::from_static(text)));
            field.unwrap().to_str().unwrap().to_owned()
        };
        let known = (1, RateClass::Default, here);
        assert_eq!(tell(known, Some(&one), "a"), "a");
        assert_eq!(tell(known, Some(&one), "b"), "a");
        assert_eq!(tell(known, Some(&other), "c"), "c");
        assert_eq!(tell(known, Some(&one), "d"), "d");
        assert_eq!(tell(known, None, "e"), "e");
        assert_eq!(tell(known, None, "f"), "e");
        let others = [
            ((2, RateClass::Default, here), "edition"),
            ((2, RateClass::Heavy, here), "class"),
            ((2, RateClass::Heavy, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))), "address"),
        ];
        for (known, text) in others {
            assert_eq!(tell(known, None, text), text);
            assert_eq!(tell(known, None, "old"), text);
        }
    }
}
