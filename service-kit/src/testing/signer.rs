//! A stand-in for auth-service towards the verifiers of other services: signs tokens, revokes sessions.

use std::{
    collections::HashSet,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{Stream, StreamExt as _, stream};
use proto::auth::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, Jwk, Jwks, Revocation, RevocationUpdate,
    ValidateTokenRequest, ValidateTokenResponse, WatchRevocationsRequest,
    identity_service_server::{IdentityService, IdentityServiceServer},
    key_service_server::{KeyService, KeyServiceServer},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    Clock, Result,
    token::{Authority, Claims, Feed, TokenConfig},
};

const KID: &str = "k1";

/// Signs access tokens and answers what verifiers ask. Clones share keys and revocations.
#[derive(Clone)]
pub struct Signer(Arc<Inner>);

struct Inner {
    pair: EcdsaKeyPair,
    revoked: watch::Sender<Vec<String>>,
    hang_up: watch::Sender<()>,
    exchanges: Mutex<Vec<(String, String)>>,
    exchanged: AtomicUsize,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

impl Signer {
    /// A signer with a key of its own.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self(Arc::new(Inner {
            pair,
            revoked: watch::Sender::default(),
            hang_up: watch::Sender::default(),
            exchanges: Mutex::default(),
            exchanged: AtomicUsize::new(0),
        }))
    }

    /// What tokens of [`Self::token`] say and verifiers must expect.
    pub fn config() -> TokenConfig {
        TokenConfig { issuer: "https://tollgate.local".to_owned(), audience: "tollgate".to_owned() }
    }

    /// The header of a good token.
    pub fn header() -> Value {
        json!({"alg": "ES256", "typ": "at+jwt", "kid": KID})
    }

    /// The claims of a good token of `user_id` with a session named after the user.
    pub fn claims(user_id: &str, scope: &str) -> Value {
        let (config, now) = (Self::config(), Clock::system().now_ms() / 1_000);
        json!({
            "iss": config.issuer, "aud": config.audience, "sub": user_id, "exp": now + 600, "iat": now,
            "jti": "j", "client_id": "tests", "sid": format!("session-of-{user_id}"), "scope": scope,
            "auth_time": now, "amr": ["pwd"],
        })
    }

    /// A good token.
    pub fn token(&self, user_id: &str, scope: &str) -> String {
        self.sign(&Self::header(), &Self::claims(user_id, scope))
    }

    /// A token of any header and claims.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// A token whose header and claims are any text.
    ///
    /// # Panics
    /// When signing fails.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = self.0.pair.sign(&random, body.as_bytes()).expect("a signature");
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The key set.
    pub fn key_set(&self) -> Jwks {
        let point = self.0.pair.public_key().as_ref();
        Jwks {
            keys: vec![Jwk {
                kty: "EC".to_owned(),
                crv: "P-256".to_owned(),
                x: URL_SAFE_NO_PAD.encode(&point[1..33]),
                y: URL_SAFE_NO_PAD.encode(&point[33..65]),
                r#use: "sig".to_owned(),
                alg: "ES256".to_owned(),
                kid: KID.to_owned(),
            }],
        }
    }

    /// Ends a session, as its `sid` names it.
    pub fn revoke(&self, sid: &str) {
        self.0.revoked.send_modify(|revoked| revoked.push(sid.to_owned()));
    }

    /// Ends every feed, as auth-service does when it drains.
    pub fn hang_up(&self) {
        self.0.hang_up.send_replace(());
    }

    /// Exchanges `opaque` for `access` from now on.
    pub fn exchange(&self, opaque: &str, access: &str) {
        let mut exchanges = self.0.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        exchanges.push((opaque.to_owned(), access.to_owned()));
    }

    /// How often it was asked to exchange a token.
    pub fn exchanged(&self) -> usize {
        self.0.exchanged.load(Ordering::SeqCst)
    }

    /// The gRPC services that verifiers ask.
    pub fn routes(&self) -> Routes {
        Routes::new(KeyServiceServer::new(self.clone())).add_service(IdentityServiceServer::new(self.clone()))
    }

    fn update(revoked: &[String]) -> RevocationUpdate {
        let entry = |sid: &String| Revocation { session_id: sid.clone(), expires_at: i64::MAX };
        RevocationUpdate {
            position: revoked.len() as u64,
            revocations: revoked.iter().map(entry).collect(),
            key_ids: vec![KID.to_owned()],
        }
    }

    fn updates(&self) -> impl Stream<Item = RevocationUpdate> + Send + use<> {
        let (revoked, hang_up) = (self.0.revoked.subscribe(), self.0.hang_up.subscribe());
        stream::unfold((revoked, hang_up, true), |(mut revoked, mut hang_up, first)| async move {
            if !first {
                tokio::select! {
                    _ = revoked.changed() => {}
                    // As auth-service does: an update at least every five seconds.
                    () = tokio::time::sleep(Duration::from_secs(5)) => {}
                    _ = hang_up.changed() => return None,
                }
            }
            let update = Self::update(&revoked.borrow_and_update());
            Some((update, (revoked, hang_up, false)))
        })
    }

    fn is_live(&self, token: &str) -> bool {
        let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Value = serde_json::from_slice(&claims.unwrap_or_default()).unwrap_or_default();
        let revoked: HashSet<String> = self.0.revoked.borrow().iter().cloned().collect();
        claims["sid"].as_str().is_some_and(|sid| !revoked.contains(sid))
    }
}

#[async_trait]
impl Authority for Signer {
    async fn jwks(&self) -> Result<Jwks> {
        Ok(self.key_set())
    }

    async fn is_active(&self, token: &str, _: &Claims) -> Result<bool> {
        Ok(self.is_live(token))
    }

    async fn revocations(&self, _after: u64) -> Result<Feed> {
        Ok(self.updates().map(Ok).boxed())
    }
}

#[async_trait]
impl KeyService for Signer {
    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<Jwks>, Status> {
        Ok(Response::new(self.key_set()))
    }
}

#[async_trait]
impl IdentityService for Signer {
    type WatchRevocationsStream = Pin<Box<dyn Stream<Item = Result<RevocationUpdate, Status>> + Send>>;

    async fn validate_token(
        &self,
        request: Request<ValidateTokenRequest>,
    ) -> Result<Response<ValidateTokenResponse>, Status> {
        let active = self.is_live(&request.get_ref().access_token);
        Ok(Response::new(ValidateTokenResponse { active }))
    }

    async fn exchange_token(
        &self,
        request: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        self.0.exchanged.fetch_add(1, Ordering::SeqCst);
        let exchanges = self.0.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        let found = exchanges.iter().find(|(opaque, _)| *opaque == request.get_ref().token);
        let (_, access) = found.ok_or_else(|| crate::Error::unauthenticated("the token is not valid"))?;
        Ok(Response::new(ExchangeTokenResponse { access_token: access.clone(), expires_in: 60 }))
    }

    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        Ok(Response::new(Box::pin(self.updates().map(Ok))))
    }
}
