//! The one verifier of access tokens. Nothing else may decode a JWT.
//!
//! An access token is ES256, `typ: at+jwt`, with a `kid` out of the key set and no other header; `iss`
//! and `aud` are one string each; it lives at most 15 minutes; its session is not revoked. A token that
//! verified once is remembered until it expires.

mod authority;
mod keys;
mod revocations;
mod verified;

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    Clock,
    error::{Error, Result},
};

pub use authority::{Authority, Feed, RemoteAuthority};
use keys::Keys;
use revocations::{Judgement, Revocations};
use verified::{Cache, Verified};

/// The longest life of an access token, in seconds, whoever signed it.
pub const MAX_LIFETIME: i64 = 900;
/// How far clocks may differ, in seconds.
pub const LEEWAY: i64 = 5;
/// The longest token that is looked at.
const MAX_LENGTH: usize = 8 * 1024;
/// How often an unknown `kid` may cause the key set to be fetched.
const REFETCH_MS: i64 = 30_000;
/// How long to leave a source alone that did not answer.
const RETRY_MS: i64 = 1_000;

/// The `[token]` section: what access tokens must say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// The `iss` claim.
    pub issuer: String,
    /// The `aud` claim.
    pub audience: String,
}

/// Says in `amr` that a personal access token stands behind an access token.
pub const AMR_PERSONAL_TOKEN: &str = "pat";
/// Says in `amr` that the key of a service account stands behind an access token.
pub const AMR_SERVICE_KEY: &str = "svc";

/// The claims of an access token (RFC 9068), and no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// The user's id.
    pub sub: String,
    /// The audience.
    pub aud: String,
    /// When it expires, in seconds.
    pub exp: i64,
    /// When it was issued, in seconds.
    pub iat: i64,
    /// Not valid before, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// The token's id.
    pub jti: String,
    /// The client that asked for it.
    pub client_id: String,
    /// What is revoked to end the token early: the session's id, or that of the opaque token behind it.
    pub sid: String,
    /// The scopes, separated by spaces; `*` is every scope, `*:read` every read.
    pub scope: String,
    /// When the user last proved who they are, in seconds.
    pub auth_time: i64,
    /// How (RFC 8176): `pwd`, `otp`, `hwk`, `fed`; `pat` and `svc` for opaque tokens.
    pub amr: Vec<String>,
}

impl Claims {
    /// Whether a person is behind the token, and not an opaque token that a program keeps.
    pub fn is_interactive(&self) -> bool {
        !self.amr.iter().any(|method| method == AMR_PERSONAL_TOKEN || method == AMR_SERVICE_KEY)
    }

    fn has_expired(&self, now: i64) -> bool {
        self.exp.saturating_add(LEEWAY) <= now
    }

    /// Whether its times are in order, and it says who, by what and how.
    fn are_sound(&self, now: i64) -> bool {
        let latest = now + LEEWAY;
        let begun = self.iat <= latest && self.nbf.is_none_or(|nbf| nbf <= latest);
        let short = self.exp.saturating_sub(self.iat) <= MAX_LIFETIME;
        let proven = self.auth_time <= self.iat.saturating_add(LEEWAY) && !self.amr.is_empty();
        begun && short && proven && ![&self.sub, &self.sid, &self.jti].iter().any(|text| text.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Verifies access tokens. Clones share keys and cache.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    config: TokenConfig,
    clock: Clock,
    authority: Arc<dyn Authority>,
    keys: Keys,
    fetches: Mutex<Fetches>,
    revocations: Revocations,
    verified: Cache,
}

/// When the key set was last asked for. Locked while it is: a burst of unknown keys asks once, and
/// tokens of known keys do not wait.
#[derive(Default)]
struct Fetches {
    succeeded_at: Option<i64>,
    failed_at: Option<i64>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Verifier {
    /// How many tokens that verified are remembered.
    pub fn verified(&self) -> u64 {
        self.0.verified.count()
    }

    /// A verifier that asks `authority` for keys when it needs them, and about each token until it
    /// follows the feed of revocations ([`Self::follow`]).
    pub fn new(config: TokenConfig, authority: Arc<dyn Authority>, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            config,
            clock,
            authority,
            keys: Keys::default(),
            fetches: Mutex::default(),
            revocations: Revocations::default(),
            verified: Cache::default(),
        }))
    }

    /// The claims of a good token. UNAUTHENTICATED when it is not one; UNAVAILABLE when that cannot be
    /// known, because doubt is not a proof.
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>> {
        let now = self.now_ms();
        let claims = match self.remembered(token, now / 1_000)? {
            Some(claims) => claims,
            None => self.examine(token, now / 1_000).await?,
        };
        match self.0.revocations.judge(&claims.sid, now) {
            Judgement::Live => Ok(claims),
            Judgement::Revoked => Err(revoked()),
            Judgement::Unknown if self.0.authority.is_active(token, &claims).await? => Ok(claims),
            Judgement::Unknown => Err(revoked()),
        }
    }

    /// The time by which tokens are judged, in Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        self.0.clock.now_ms()
    }

    /// A token that verified before, with a key that is still good.
    fn remembered(&self, token: &str, now: i64) -> Result<Option<Arc<Claims>>> {
        match self.0.verified.get(token) {
            Some(Verified { claims, .. }) if claims.has_expired(now) => Err(expired()),
            Some(Verified { claims, kid }) if self.0.keys.holds(&kid) => Ok(Some(claims)),
            _ => Ok(None),
        }
    }

    async fn examine(&self, token: &str, now: i64) -> Result<Arc<Claims>> {
        let kid = self.checked_kid(token)?;
        let key = self.key(&kid).await?;
        let claims = Arc::new(self.claims(token, &key, now)?);
        let verified = Verified { claims: claims.clone(), kid: kid.into() };
        self.0.verified.insert(token, verified);
        Ok(claims)
    }

    fn checked_kid(&self, token: &str) -> Result<String> {
        if token.len() > MAX_LENGTH {
            return Err(invalid("it is too long"));
        }
        let header = token.split('.').next().unwrap_or_default();
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| invalid("it is not a JWT"))?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| invalid("its header is not ours"))?;
        let kid_ok = (1..=64).contains(&header.kid.len())
            && header.kid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if header.alg != "ES256" || header.typ != "at+jwt" || !kid_ok {
            return Err(invalid("its header is not ours"));
        }
        Ok(header.kid)
    }

    async fn key(&self, kid: &str) -> Result<Arc<DecodingKey>> {
        if let Some(key) = self.0.keys.get(kid) {
            return Ok(key);
        }
        let mut fetches = self.0.fetches.lock().await;
        if let Some(key) = self.0.keys.get(kid) {
            return Ok(key);
        }
        let now = self.0.clock.now_ms();
        if fetches.succeeded_at.is_some_and(|at| now - at < REFETCH_MS) {
            return Err(invalid("its key is unknown"));
        }
        if fetches.failed_at.is_some_and(|at| now - at < RETRY_MS) {
            return Err(unreachable(anyhow::anyhow!("the key set could not be had a moment ago")));
        }
        self.fetch(&mut fetches).await?;
        self.0.keys.get(kid).ok_or_else(|| invalid("its key is unknown"))
    }

    /// Fetches the key set, however recently it was.
    async fn fetch_keys(&self) -> Result<()> {
        let mut fetches = self.0.fetches.lock().await;
        self.fetch(&mut fetches).await
    }

    async fn fetch(&self, fetches: &mut Fetches) -> Result<()> {
        let now = self.0.clock.now_ms();
        match self.0.authority.jwks().await {
            Ok(jwks) => {
                fetches.succeeded_at = Some(now);
                self.0.keys.replace(&jwks);
                Ok(())
            }
            Err(error) => {
                fetches.failed_at = Some(now);
                Err(error)
            }
        }
    }

    #[allow(clippy::disallowed_methods, reason = "the verifier is where decoding is allowed")]
    fn claims(&self, token: &str, key: &DecodingKey, now: i64) -> Result<Claims> {
        let config = &self.0.config;
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&config.issuer]);
        rules.set_audience(&[&config.audience]);
        // Times are checked below against our clock, with our leeway.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &rules)
            .map_err(|_| invalid("its signature or its claims are wrong"))?
            .claims;
        if claims.has_expired(now) {
            return Err(expired());
        }
        // Of a claim with several values jsonwebtoken takes one of ours as enough.
        let ours = claims.iss == config.issuer && claims.aud == config.audience;
        if !ours || !claims.are_sound(now) {
            return Err(invalid("its claims are wrong"));
        }
        Ok(claims)
    }
}

fn invalid(why: &str) -> Error {
    Error::new(crate::Kind::Unauthenticated, "INVALID_TOKEN", format!("the access token is not valid: {why}"))
}

fn revoked() -> Error {
    Error::new(crate::Kind::Unauthenticated, "TOKEN_REVOKED", "the session of the access token has ended")
}

fn unreachable(cause: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("access tokens cannot be checked right now", cause)
}

fn expired() -> Error {
    Error::new(crate::Kind::Unauthenticated, "TOKEN_EXPIRED", "the access token has expired")
}

#[cfg(test)]
mod tests;
