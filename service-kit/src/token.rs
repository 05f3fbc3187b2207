//! The one verifier of access tokens. Nothing else may decode a JWT.
//!
//! An access token is ES256, `typ: at+jwt`, with a `kid` out of the key set and no other header; `iss`
//! and `aud` are one string each; it lives at most 15 minutes. A token that verified once is remembered
//! until it expires.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use proto::auth::{GetJwksRequest, Jwk, Jwks, key_service_client::KeyServiceClient};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    Clock,
    client::Upstream,
    error::{Error, Result},
};

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

/// The claims of an access token (RFC 9068).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The session's id.
    pub sid: String,
    /// The scopes, separated by spaces; `*` is every scope.
    pub scope: String,
    /// When the user last proved who they are, in seconds.
    pub auth_time: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Where the key set comes from.
#[async_trait]
pub trait KeySource: fmt::Debug + Send + Sync + 'static {
    /// The public keys as they are now.
    async fn jwks(&self) -> Result<Jwks>;
}

/// The key set of auth-service, asked over gRPC.
#[derive(Debug, Clone)]
pub struct RemoteKeys(KeyServiceClient<Upstream>);

impl RemoteKeys {
    /// Asks the auth-service behind `upstream`.
    pub fn new(upstream: Upstream) -> Self {
        Self(KeyServiceClient::new(upstream))
    }
}

#[async_trait]
impl KeySource for RemoteKeys {
    async fn jwks(&self) -> Result<Jwks> {
        match self.0.clone().get_jwks(GetJwksRequest {}).await {
            Ok(answer) => Ok(answer.into_inner()),
            // Whatever the reason: without keys nothing can be proven, which is no proof of a bad token.
            Err(status) => Err(unreachable(status)),
        }
    }
}

/// Verifies access tokens. Clones share keys and cache.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    config: TokenConfig,
    clock: Clock,
    source: Arc<dyn KeySource>,
    keys: RwLock<Vec<(String, Arc<DecodingKey>)>>,
    fetches: Mutex<Fetches>,
    verified: moka::sync::Cache<Arc<str>, Arc<Claims>>,
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
    /// A verifier that fetches keys from `source` when it needs them.
    pub fn new(config: TokenConfig, source: Arc<dyn KeySource>, clock: Clock) -> Self {
        let verified = moka::sync::Cache::builder()
            .max_capacity(20_000)
            .time_to_live(Duration::from_secs(MAX_LIFETIME.unsigned_abs()))
            .build();
        Self(Arc::new(Inner {
            config,
            clock,
            source,
            keys: RwLock::default(),
            fetches: Mutex::default(),
            verified,
        }))
    }

    /// The claims of a good token. UNAUTHENTICATED when it is not one; UNAVAILABLE when the keys
    /// cannot be had, because doubt is not a proof.
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>> {
        let now = self.0.clock.now_ms() / 1_000;
        if let Some(claims) = self.0.verified.get(token) {
            return if now < claims.exp + LEEWAY { Ok(claims) } else { Err(expired()) };
        }
        let kid = self.checked_kid(token)?;
        let key = self.key(&kid).await?;
        let claims = Arc::new(self.claims(token, &key, now)?);
        self.0.verified.insert(Arc::from(token), claims.clone());
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
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let mut fetches = self.0.fetches.lock().await;
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let now = self.0.clock.now_ms();
        if fetches.succeeded_at.is_some_and(|at| now - at < REFETCH_MS) {
            return Err(invalid("its key is unknown"));
        }
        if fetches.failed_at.is_some_and(|at| now - at < RETRY_MS) {
            return Err(unreachable(anyhow::anyhow!("the key set could not be had a moment ago")));
        }
        match self.0.source.jwks().await {
            Ok(jwks) => {
                fetches.succeeded_at = Some(now);
                let keys = jwks.keys.iter().filter_map(decoding_key).collect();
                *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                self.known(kid).ok_or_else(|| invalid("its key is unknown"))
            }
            Err(error) => {
                fetches.failed_at = Some(self.0.clock.now_ms());
                Err(error)
            }
        }
    }

    fn known(&self, kid: &str) -> Option<Arc<DecodingKey>> {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find(|(known, _)| known == kid).map(|(_, key)| key.clone())
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
        if claims.exp + LEEWAY <= now {
            return Err(expired());
        }
        let early = claims.iat > now + LEEWAY || claims.nbf.is_some_and(|nbf| nbf > now + LEEWAY);
        if early
            || claims.exp - claims.iat > MAX_LIFETIME
            || claims.iss != config.issuer
            || claims.aud != config.audience
        {
            return Err(invalid("its claims are wrong"));
        }
        Ok(claims)
    }
}

fn decoding_key(jwk: &Jwk) -> Option<(String, Arc<DecodingKey>)> {
    let key = DecodingKey::from_ec_components(&jwk.x, &jwk.y).ok()?;
    (jwk.alg == "ES256").then(|| (jwk.kid.clone(), Arc::new(key)))
}

fn invalid(why: &str) -> Error {
    Error::new(crate::Kind::Unauthenticated, "INVALID_TOKEN", format!("the access token is not valid: {why}"))
}

fn unreachable(cause: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("access tokens cannot be checked right now", cause)
}

fn expired() -> Error {
    Error::new(crate::Kind::Unauthenticated, "TOKEN_EXPIRED", "the access token has expired")
}

#[cfg(test)]
mod tests;
