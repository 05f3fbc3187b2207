//! Opaque tokens that programs keep: personal ones of people and keys of service accounts. Shown once,
//! revoked at once, and exchanged for short access tokens, which is all that services ever see of them.

use std::{collections::BTreeSet, sync::LazyLock};

use proto::{Access, Contract};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    AuthContext, ClientInfo, Error, Result,
    field::Checks,
    id::is_id,
    opaque,
    page::Page,
    token::{AMR_PERSONAL_TOKEN, AMR_SERVICE_KEY},
};

use super::{
    Shared,
    accounts::check_name,
    audit::{Action, Event},
    issuer::Grant,
};
use crate::store::opaque_tokens::OpaqueTokenStore;

/// The scope that reads everything: what a token gets that asks for none.
const READ_ONLY: &str = "*:read";
/// The scope that does everything.
const FULL: &str = "*";
const MAX_SCOPES: usize = 50;
const DEFAULT_DAYS: u32 = 90;
const MAX_DAYS: u32 = 366;
/// How many tokens an owner may have that still count.
pub(crate) const MAX_LIVE: i64 = 100;
/// The longest life, in seconds, of an access token that a token is exchanged for.
const ACCESS_LIFETIME: i64 = 300;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// For how long tokens are kept that count no more.
const KEPT_MS: i64 = 30 * DAY_MS;

/// Whose token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A person's: `tgpat_…`.
    Personal,
    /// A service account's: `tgsvc_…`.
    Service,
}

/// A token as its owner sees it. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Also the `sid` of the access tokens that it is exchanged for.
    pub(crate) id: String,
    /// A user or a service account.
    pub(crate) owner_id: String,
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) created_by: String,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
    /// To the minute.
    pub(crate) last_used_at: Option<i64>,
}

/// A token that is to be made.
#[derive(Debug)]
pub(crate) struct NewToken {
    /// For its owner, once.
    pub(crate) text: SecretString,
    pub(crate) kind: Kind,
    pub(crate) token: Token,
    pub(crate) stored: opaque::Stored,
}

/// What somebody asks for who wants a token.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) expires_in_days: Option<u32>,
}

/// What became of a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// It is stored.
    Stored,
    /// Its owner has [`MAX_LIVE`] already.
    TooMany,
    /// Its owner is gone or disabled.
    NoOwner,
}

/// A token as it is found by what was presented.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) token: Token,
    pub(crate) salt: Vec<u8>,
    pub(crate) hash: Vec<u8>,
    pub(crate) revoked: bool,
    /// Whether its owner is there and not disabled.
    pub(crate) owned: bool,
}

/// What a token was exchanged for.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub(crate) access: SecretString,
    /// Seconds until it expires.
    pub(crate) expires_in: u32,
}

/// Everything about opaque tokens.
#[derive(Debug)]
pub(crate) struct OpaqueTokens {
    shared: Shared,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Personal, Self::Service];

    /// The form that is stored, and that the text begins with after `tg`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Personal => "pat",
            Self::Service => "svc",
        }
    }

    fn client_id(self) -> &'static str {
        match self {
            Self::Personal => "personal-access-token",
            Self::Service => "service-account",
        }
    }

    fn amr(self) -> &'static str {
        match self {
            Self::Personal => AMR_PERSONAL_TOKEN,
            Self::Service => AMR_SERVICE_KEY,
        }
    }

    fn owner(self) -> &'static str {
        match self {
            Self::Personal => "account",
            Self::Service => "service account",
        }
    }
}

impl OpaqueTokens {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone() }
    }

    /// Makes a personal token of the caller.
    pub(crate) async fn create(
        &self,
        caller: &AuthContext,
        asked: Asked,
        client: &ClientInfo,
    ) -> Result<NewToken> {
        let event = self.shared.journal.of_caller(caller, Action::TokenCreate, client);
        self.issue(caller, Kind::Personal, caller.user_id(), asked, event).await
    }

    /// The caller's tokens that are not revoked, newest first, and how many there are.
    pub(crate) async fn list(&self, caller: &AuthContext, page: Page) -> Result<(Vec<Token>, i64)> {
        self.shared.stores.opaque_tokens.list(Kind::Personal, caller.user_id(), page).await
    }

    /// One of the caller's tokens.
    pub(crate) async fn get(&self, caller: &AuthContext, id: &str) -> Result<Token> {
        let found = match is_id(id) {
            true => self.shared.stores.opaque_tokens.get(Kind::Personal, caller.user_id(), id).await?,
            false => None,
        };
        found.ok_or_else(|| Error::not_found("token"))
    }

    /// Revokes one of the caller's tokens.
    pub(crate) async fn revoke(&self, caller: &AuthContext, id: &str, client: &ClientInfo) -> Result<()> {
        let event = self.shared.journal.of_caller(caller, Action::TokenRevoke, client);
        self.end(Kind::Personal, caller.user_id(), id, event).await
    }

    /// Makes a token of any owner; `event` is completed by its id. INVALID_ARGUMENT names every bad field;
    /// PERMISSION_DENIED (`INSUFFICIENT_SCOPE`) when it could do more than the caller's own token can;
    /// FAILED_PRECONDITION (`TOO_MANY_TOKENS`) when the owner has too many.
    pub(crate) async fn issue(
        &self,
        caller: &AuthContext,
        kind: Kind,
        owner_id: &str,
        asked: Asked,
        event: Event,
    ) -> Result<NewToken> {
        let (name, scopes, days) = asked.check()?;
        if let Some(wider) = scopes.iter().find(|scope| !caller.has_scope(scope)) {
            let message = format!("your own token lacks the scope {wider}, so a new one cannot have it");
            return Err(Error::new(service_kit::Kind::PermissionDenied, "INSUFFICIENT_SCOPE", message));
        }
        let (text, stored) = opaque::issue(kind.name());
        let now = self.shared.clock.now_ms();
        let token = Token {
            id: self.shared.ids.next(),
            owner_id: owner_id.to_owned(),
            name,
            scopes,
            created_by: caller.user_id().to_owned(),
            created_at: now,
            expires_at: now + i64::from(days) * DAY_MS,
            last_used_at: None,
        };
        let event = event.on(&token.id);
        let new = NewToken { text, kind, token, stored };
        match self.shared.stores.opaque_tokens.create(&new, &event).await? {
            Created::Stored => {
                tracing::info!(kind = kind.name(), owner_id, token_id = new.token.id, "token created");
                Ok(new)
            }
            Created::NoOwner => Err(Error::not_found(kind.owner())),
            Created::TooMany => Err(Error::new(
                service_kit::Kind::FailedPrecondition,
                "TOO_MANY_TOKENS",
                format!("there are {MAX_LIVE} tokens already: revoke some that are not used"),
            )),
        }
    }

    /// Revokes a token of any owner; `event` is completed by its id. Revoking it again is fine.
    pub(crate) async fn end(&self, kind: Kind, owner_id: &str, id: &str, event: Event) -> Result<()> {
        let event = event.on(id);
        if !is_id(id) || !self.shared.stores.opaque_tokens.revoke(kind, owner_id, id, &event).await? {
            return Err(Error::not_found("token"));
        }
        tracing::info!(kind = kind.name(), owner_id, token_id = id, "token revoked");
        Ok(())
    }

    /// A short access token in place of a token that was presented. UNAUTHENTICATED (`INVALID_TOKEN`)
    /// whatever is wrong with it; UNAVAILABLE when that cannot be known.
    pub(crate) async fn exchange(&self, text: &SecretString) -> Result<Exchanged> {
        let (store, now) = (&*self.shared.stores.opaque_tokens, self.shared.clock.now_ms());
        let (kind, token) = prove(store, text.expose_secret(), now).await.inspect_err(|error| {
            metrics::counter!("tollgate_token_exchanges_total", "outcome" => error.reason().to_owned())
                .increment(1);
        })?;
        let left = (token.expires_at - now) / 1_000;
        let expires_in = u32::try_from(left.clamp(1, ACCESS_LIFETIME)).unwrap_or(1);
        let access = self.shared.issuer.issue(Grant {
            user_id: &token.owner_id,
            session_id: &token.id,
            client_id: kind.client_id(),
            scope: &token.scopes.join(" "),
            authenticated_at: token.created_at,
            amr: vec![kind.amr().to_owned()],
            lifetime: expires_in,
        })?;
        note_use(store, &token, now).await;
        metrics::counter!("tollgate_token_exchanges_total", "outcome" => "success").increment(1);
        Ok(Exchanged { access, expires_in })
    }
}

impl Asked {
    /// The name, the scopes each once, and the days until it expires.
    fn check(self) -> Result<(String, Vec<String>, u32)> {
        let mut checks = Checks::new();
        let name = check_name(&mut checks, &self.name);
        let few = self.scopes.len() <= MAX_SCOPES;
        checks.that(few, "scopes", &format!("must have at most {MAX_SCOPES} entries"));
        let mut scopes: Vec<String> = Vec::new();
        for (at, scope) in self.scopes.into_iter().enumerate().take(MAX_SCOPES) {
            let rule = "must be a permission such as `apis:read`, or `*:read`, or `*`";
            checks.that(grantable(&scope), &format!("scopes[{at}]"), rule);
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        if scopes.is_empty() {
            scopes.push(READ_ONLY.to_owned());
        }
        let days = self.expires_in_days.unwrap_or(DEFAULT_DAYS);
        let rule = format!("must be 1 to {MAX_DAYS}");
        checks.that((1..=MAX_DAYS).contains(&days), "expiresInDays", &rule).done()?;
        Ok((name, scopes, days))
    }
}

/// Whether a scope means anything: a permission that some method of users needs, or one of the two wide ones.
fn grantable(scope: &str) -> bool {
    static PERMISSIONS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
        let of_users = Contract::get().methods().filter(|method| method.access == Access::User);
        of_users
            .map(|method| method.permission.as_str())
            .filter(|permission| !permission.is_empty())
            .collect()
    });
    scope == FULL || scope == READ_ONLY || PERMISSIONS.contains(scope)
}

/// The token that was presented, if it counts now. What is cheap comes first: a wrong checksum asks no
/// database; a wrong id costs the same hash as a wrong secret.
async fn prove(store: &dyn OpaqueTokenStore, text: &str, now: i64) -> Result<(Kind, Token)> {
    let parse = |kind: Kind| Some((kind, opaque::parse(kind.name(), text)?));
    let (kind, presented) = Kind::ALL.into_iter().find_map(parse).ok_or_else(invalid_token)?;
    let found = store
        .find(kind, &presented.lookup())
        .await
        .map_err(|error| Error::unavailable("tokens cannot be checked right now", error))?;
    let Some(found) = found else {
        presented.matches_nothing();
        return Err(invalid_token());
    };
    let right = presented.matches(&found.salt, &found.hash);
    if !right || found.revoked || found.token.expires_at <= now || !found.owned {
        return Err(invalid_token());
    }
    Ok((kind, found.token))
}

/// Notes the minute of use, once. It is a courtesy: no exchange fails for it.
async fn note_use(store: &dyn OpaqueTokenStore, token: &Token, now: i64) {
    let minute = now / MINUTE_MS * MINUTE_MS;
    if token.last_used_at.is_some_and(|at| at >= minute) {
        return;
    }
    if let Err(error) = store.note_use(&token.id, minute).await {
        tracing::warn!(token_id = token.id, %error, "use of a token not noted");
    }
}

/// Tokens that stopped to count before this are forgotten.
pub(crate) fn forgotten_before(now: i64) -> i64 {
    now - KEPT_MS
}

/// The one answer to every token that does not count: malformed, unknown, wrong, revoked, expired, or its
/// owner is gone or disabled.
fn invalid_token() -> Error {
    Error::new(service_kit::Kind::Unauthenticated, "INVALID_TOKEN", "the token is not valid")
}

#[cfg(test)]
mod tests;
