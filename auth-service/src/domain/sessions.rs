//! Sessions: login opens one, refresh keeps it, logout and a refresh token used twice end it.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use service_kit::{
    AuthContext, Clock, Error, Ids, Kind, Result,
    field::Checks,
    token::{Claims, TokenConfig},
};

use super::{
    email::Email,
    hashing::{Hasher, Place, Verdict},
    keys::KeyRing,
    password::Password,
    refresh_token::{self, TokenHash},
    throttle::{Admission, Key, Rules, Turns},
};
use crate::{
    config::{SessionConfig, ThrottleConfig},
    store::Stores,
};

/// The client that people log in with; the only one so far.
const CLIENT_ID: &str = "tollgate-web";
/// A login gives all that its owner may do.
const SCOPE: &str = "*";

/// A session. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) user_id: String,
    pub(crate) created_at: i64,
    /// No refresh moves this.
    pub(crate) expires_at: i64,
}

/// A refresh token as it is stored. Times are Unix milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefreshToken {
    pub(crate) hash: TokenHash,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// Its owner asked for it.
    Logout,
    /// A refresh token came twice: one of the two had stolen it.
    RefreshReused,
}

impl EndReason {
    /// The form that is stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Logout => "LOGOUT",
            Self::RefreshReused => "REFRESH_REUSED",
        }
    }
}

/// What became of a refresh token that was presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// Its successor is stored.
    Rotated(Session),
    /// It had been used before; its session has ended now.
    Reused(Session),
    /// It is unknown or expired, or its session is over.
    Dead,
}

/// What a client needs to call on behalf of a user.
#[derive(Debug)]
pub(crate) struct TokenPair {
    pub(crate) access: SecretString,
    pub(crate) refresh: SecretString,
    /// Seconds until the access token expires.
    pub(crate) expires_in: u32,
}

/// What sessions are made with.
#[derive(Debug)]
pub(crate) struct Deps {
    pub(crate) stores: Stores,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) hasher: Arc<Hasher>,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) token: TokenConfig,
    pub(crate) session: SessionConfig,
    pub(crate) throttle: ThrottleConfig,
}

/// Everything about sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    deps: Deps,
    rules: Rules,
    turns: Turns,
}

impl Sessions {
    pub(crate) fn new(deps: Deps) -> Self {
        let rules = Rules::new(&deps.throttle);
        Self { deps, rules, turns: Turns::default() }
    }

    /// Opens a session. UNAUTHENTICATED (`INVALID_CREDENTIALS`) for an unknown address and for a wrong
    /// password alike; RESOURCE_EXHAUSTED after too many failures, or when too many log in at once.
    pub(crate) async fn login(&self, email: &str, password: &SecretString) -> Result<TokenPair> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, email);
        let password = Password::check_login(&mut checks, password);
        checks.done()?;

        let key = Key::of(&email);
        let place = self.deps.hasher.place()?;
        let _turn = self.turns.take(&key).await;
        if let Admission::Locked(ms) = self.admit(&key).await? {
            count_login("throttled");
            return Err(too_many_attempts(ms));
        }
        match self.proven(&place, &email, &password).await? {
            Some(user_id) => {
                count_login("success");
                self.open(&user_id, &key).await
            }
            None => {
                count_login("failure");
                Err(invalid_credentials())
            }
        }
    }

    /// Exchanges a refresh token. UNAUTHENTICATED (`INVALID_GRANT`) when it is not good, whatever the
    /// reason; one that was used before ends its session.
    pub(crate) async fn refresh(&self, token: &SecretString) -> Result<TokenPair> {
        let empty = secrecy::ExposeSecret::expose_secret(token).is_empty();
        Checks::new().that(!empty, "refreshToken", "is required").done()?;
        let hash = refresh_token::hash(token).ok_or_else(invalid_grant)?;
        let now = self.deps.clock.now_ms();
        let (successor, stored) = self.new_refresh_token(now);
        match self.deps.stores.sessions.rotate(hash, &stored, now).await? {
            Rotation::Rotated(session) => self.pair(&session, successor, now),
            Rotation::Reused(session) => {
                tracing::warn!(session_id = session.id, user_id = session.user_id, "refresh token reused");
                metrics::counter!("tollgate_refresh_reuse_total").increment(1);
                Err(invalid_grant())
            }
            Rotation::Dead => Err(invalid_grant()),
        }
    }

    /// Ends the caller's session; its refresh tokens are dead at once. Ending it again is fine.
    pub(crate) async fn logout(&self, caller: &AuthContext) -> Result<()> {
        let (session_id, user_id) = (caller.session_id(), caller.user_id());
        let now = self.deps.clock.now_ms();
        if self.deps.stores.sessions.end(session_id, user_id, EndReason::Logout, now).await? {
            tracing::info!(session_id, user_id, "session ended");
        }
        Ok(())
    }

    async fn admit(&self, key: &Key) -> Result<Admission> {
        self.deps.stores.throttles.admit(key, &self.rules, self.deps.clock.now_ms()).await
    }

    /// The id of the account that the password proves. An unknown address costs the same hash.
    async fn proven(&self, place: &Place, email: &Email, password: &Password) -> Result<Option<String>> {
        let accounts = &self.deps.stores.accounts;
        let credential = accounts.credential(&email.canonical).await?;
        let stored = credential.as_ref().map(|credential| credential.password_hash.as_str());
        let verdict = self.deps.hasher.verify(place, password, stored).await?;
        let Some(credential) = credential.filter(|_| verdict != Verdict::Wrong) else { return Ok(None) };
        if verdict == Verdict::RightButOutdated {
            let hash = self.deps.hasher.hash(place, password).await?;
            let now = self.deps.clock.now_ms();
            accounts.rehash(&credential, &hash, now).await?;
            tracing::info!(user_id = credential.user_id, "password hashed again with today's parameters");
        }
        Ok(Some(credential.user_id))
    }

    /// Opens a session for a proven user, and forgives the failures before it.
    async fn open(&self, user_id: &str, key: &Key) -> Result<TokenPair> {
        let now = self.deps.clock.now_ms();
        let session = Session {
            id: self.deps.ids.next(),
            user_id: user_id.to_owned(),
            created_at: now,
            expires_at: now + i64::from(self.deps.session.lifetime) * 1_000,
        };
        let (refresh, stored) = self.new_refresh_token(now);
        self.deps.stores.sessions.open(&session, &stored, key).await?;
        tracing::info!(user_id, session_id = session.id, "session opened");
        self.pair(&session, refresh, now)
    }

    fn new_refresh_token(&self, now: i64) -> (SecretString, RefreshToken) {
        let (text, hash) = refresh_token::issue();
        let expires_at = now + i64::from(self.deps.session.refresh_idle) * 1_000;
        (text, RefreshToken { hash, created_at: now, expires_at })
    }

    fn pair(&self, session: &Session, refresh: SecretString, now: i64) -> Result<TokenPair> {
        let Deps { token, session: lives, ids, keys, .. } = &self.deps;
        let iat = now / 1_000;
        let claims = Claims {
            iss: token.issuer.clone(),
            sub: session.user_id.clone(),
            aud: token.audience.clone(),
            exp: iat + i64::from(lives.access_lifetime),
            iat,
            nbf: None,
            jti: ids.next(),
            client_id: CLIENT_ID.to_owned(),
            sid: session.id.clone(),
            scope: SCOPE.to_owned(),
            auth_time: session.created_at / 1_000,
        };
        let access = SecretString::from(keys.sign(&claims)?);
        Ok(TokenPair { access, refresh, expires_in: lives.access_lifetime })
    }
}

fn count_login(outcome: &'static str) {
    metrics::counter!("tollgate_logins_total", "outcome" => outcome).increment(1);
}

fn invalid_credentials() -> Error {
    Error::new(Kind::Unauthenticated, "INVALID_CREDENTIALS", "the e-mail address or the password is wrong")
}

fn invalid_grant() -> Error {
    Error::new(Kind::Unauthenticated, "INVALID_GRANT", "the refresh token is not valid; log in again")
}

fn too_many_attempts(ms: i64) -> Error {
    let seconds = ms.unsigned_abs().div_ceil(1_000);
    Error::new(Kind::ResourceExhausted, "TOO_MANY_ATTEMPTS", "too many failed logins; try again later")
        .retry_after(Duration::from_secs(seconds))
}
