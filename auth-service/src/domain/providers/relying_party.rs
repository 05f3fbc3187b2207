//! This service as a client of one OpenID Connect provider: where the browser goes, and who the provider
//! says came back. What a provider signs counts only when every rule of OpenID Connect Core holds.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use openidconnect::{
    AccessTokenHash, AuthType, AuthenticationFlow, AuthorizationCode, ClaimsVerificationError, ClientId,
    ClientSecret, CsrfToken, DiscoveryError, EndUserEmail, EndUserName, EndpointMaybeSet, EndpointNotSet,
    EndpointSet, IssuerUrl, JsonWebKeySet, LocalizedClaim, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError,
    StandardErrorResponse, SubjectIdentifier, TokenResponse as _, UserInfoError,
    core::{
        CoreClient, CoreClientAuthMethod, CoreErrorResponseType, CoreIdToken, CoreIdTokenClaims,
        CoreIdTokenVerifier, CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreResponseType,
        CoreTokenResponse, CoreUserInfoClaims,
    },
};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{Clock, Error, Kind, Result};
use tokio::sync::Mutex;

use super::http::{HttpClient, HttpError, may_ask};
use crate::config::ProviderConfig;

/// For how long a provider's documents are believed.
const DOCUMENTS_MS: i64 = 3_600_000;
/// How long to leave a provider alone that did not answer.
const RETRY_MS: i64 = 1_000;
/// How far the provider's clock and ours may differ, in seconds.
const LEEWAY: i64 = 30;
/// How old an ID token may be that was fetched a moment ago, in seconds.
const MAX_AGE: i64 = 600;
/// The longest subject (OpenID Connect Core, section 2).
const MAX_SUBJECT: usize = 255;

/// What providers may sign with: no secret that both sides know, and never nothing.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

type Client = CoreClient<
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

type TokenError = RequestTokenError<HttpError, StandardErrorResponse<CoreErrorResponseType>>;

/// Who came back from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// The account at the provider.
    pub(crate) subject: String,
    /// As the provider says it: anything.
    pub(crate) email: String,
    /// Whether the provider has verified the address.
    pub(crate) email_verified: bool,
    /// As the provider says it: anything.
    pub(crate) name: String,
}

/// The secrets of one login that tie its answer to its question.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Ties {
    pub(crate) nonce: String,
    /// The PKCE verifier.
    pub(crate) verifier: String,
}

/// This service as a client of one provider.
#[derive(Debug)]
pub(crate) struct RelyingParty {
    id: String,
    config: ProviderConfig,
    http: HttpClient,
    clock: Clock,
    documents: Mutex<Documents>,
}

/// What the provider says of itself. Locked while it is asked: many logins at once ask once.
#[derive(Debug, Default)]
struct Documents {
    /// With the time at which it was fetched.
    metadata: Option<(Arc<CoreProviderMetadata>, i64)>,
    failed_at: Option<i64>,
}

/// Why an ID token does not count.
enum Flaw {
    /// It is signed with a key that we do not know.
    UnknownKey,
    /// It breaks this rule.
    Breaks(&'static str),
}

impl RelyingParty {
    /// The client of a provider with a checked configuration. Nothing is asked yet.
    pub(crate) fn new(id: &str, config: &ProviderConfig, clock: Clock) -> Self {
        let plain = config.issuer.starts_with("http:");
        let http = HttpClient::new(plain);
        Self { id: id.to_owned(), config: config.clone(), http, clock, documents: Mutex::default() }
    }

    /// What to show.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Where to send the browser. UNAVAILABLE when the provider does not answer.
    pub(crate) async fn authorization_url(&self, state: &SecretString, ties: &Ties) -> Result<String> {
        let metadata = self.metadata().await?;
        let client = self.client(&metadata)?;
        let (state, nonce) =
            (CsrfToken::new(state.expose_secret().to_owned()), Nonce::new(ties.nonce.clone()));
        let verifier = PkceCodeVerifier::new(ties.verifier.clone());
        let scopes = self.config.scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new);
        let flow = AuthenticationFlow::<CoreResponseType>::AuthorizationCode;
        let (url, ..) = client
            .authorize_url(flow, move || state, move || nonce)
            .add_scopes(scopes)
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url.into())
    }

    /// Who came back with a code. UNAUTHENTICATED (`PROVIDER_REFUSED`) when the provider refuses the code or
    /// what it says does not hold; UNAVAILABLE when it does not answer.
    pub(crate) async fn person(&self, code: String, ties: Ties) -> Result<Person> {
        let metadata = self.metadata().await?;
        let client = self.client(&metadata)?;
        let request = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|_| self.refused("no token endpoint"))?
            .set_pkce_verifier(PkceCodeVerifier::new(ties.verifier));
        let tokens: CoreTokenResponse =
            Box::pin(request.request_async(&self.http)).await.map_err(|error| self.not_exchanged(error))?;
        let id_token = tokens.id_token().ok_or_else(|| self.refused("no ID token"))?;
        let nonce = Nonce::new(ties.nonce);
        let claims = match self.verified(id_token, &tokens, &metadata, &nonce) {
            Err(Flaw::UnknownKey) => {
                let metadata = self.with_new_keys(&metadata).await?;
                self.verified(id_token, &tokens, &metadata, &nonce)
            }
            judged => judged,
        };
        let claims = claims.map_err(|flaw| match flaw {
            Flaw::UnknownKey => self.refused("ID token: unknown key"),
            Flaw::Breaks(rule) => self.refused(rule),
        })?;
        let subject = claims.subject();
        if !(1..=MAX_SUBJECT).contains(&subject.len()) {
            return Err(self.refused("ID token: subject"));
        }
        if claims.email().is_none() && metadata.userinfo_endpoint().is_some() {
            let info = self.user_info(&client, &tokens, subject).await?;
            return Ok(Person::new(subject, info.email(), info.email_verified(), info.name()));
        }
        Ok(Person::new(subject, claims.email(), claims.email_verified(), claims.name()))
    }

    /// The claims of an ID token that keeps every rule.
    fn verified<'t>(
        &self,
        id_token: &'t CoreIdToken,
        tokens: &CoreTokenResponse,
        metadata: &CoreProviderMetadata,
        nonce: &Nonce,
    ) -> Result<&'t CoreIdTokenClaims, Flaw> {
        let now = self.clock.now_ms() / 1_000;
        let client_id = ClientId::new(self.config.client_id.clone());
        let (issuer, keys) = (metadata.issuer().clone(), metadata.jwks().clone());
        let verifier = CoreIdTokenVerifier::new_public_client(client_id.clone(), issuer, keys)
            .set_allowed_algs(ALGORITHMS)
            .set_time_fn(move || (UNIX_EPOCH + Duration::from_secs((now - LEEWAY).unsigned_abs())).into())
            .set_issue_time_verifier_fn(move |iat| match now - iat.timestamp() {
                age if (-LEEWAY..=MAX_AGE).contains(&age) => Ok(()),
                _ => Err("not issued just now".to_owned()),
            });
        let claims = id_token.claims(&verifier, nonce).map_err(flaw)?;
        if claims.authorized_party().is_some_and(|azp| *azp != client_id) {
            return Err(Flaw::Breaks("ID token: authorized party"));
        }
        if let Some(expected) = claims.access_token_hash() {
            let algorithm = id_token.signing_alg().map_err(signature_flaw)?;
            let key = id_token.signing_key(&verifier).map_err(signature_flaw)?;
            match AccessTokenHash::from_token(tokens.access_token(), algorithm, key) {
                Ok(hash) if hash == *expected => {}
                _ => return Err(Flaw::Breaks("ID token: access token hash")),
            }
        }
        Ok(claims)
    }

    /// What the provider tells about somebody whose ID token leaves it out.
    async fn user_info(
        &self,
        client: &Client,
        tokens: &CoreTokenResponse,
        subject: &SubjectIdentifier,
    ) -> Result<CoreUserInfoClaims> {
        let token = tokens.access_token();
        // The library would panic on one that fits into no header.
        if !token.secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.refused("access token"));
        }
        let request = client
            .user_info(token.clone(), Some(subject.clone()))
            .map_err(|_| self.refused("no userinfo endpoint"))?;
        Box::pin(request.request_async(&self.http)).await.map_err(|error| match error {
            UserInfoError::Request(cause) => self.unavailable(cause),
            _ => self.refused("userinfo"),
        })
    }

    fn client(&self, metadata: &CoreProviderMetadata) -> Result<Client> {
        let config = &self.config;
        let secret = config.client_secret.expose_secret();
        let secret = (!secret.is_empty()).then(|| ClientSecret::new(secret.to_owned()));
        let client_id = ClientId::new(config.client_id.clone());
        let redirect_url = RedirectUrl::new(config.redirect_url.clone()).map_err(Error::internal)?;
        let known = metadata.token_endpoint_auth_methods_supported();
        let in_body = known.is_some_and(|known| {
            let knows = |method| known.contains(&method);
            knows(CoreClientAuthMethod::ClientSecretPost) && !knows(CoreClientAuthMethod::ClientSecretBasic)
        });
        let method = if in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(Client::from_provider_metadata(metadata.clone(), client_id, secret)
            .set_redirect_uri(redirect_url)
            .set_auth_type(method))
    }

    /// The provider's documents, fetched when they are missing or old.
    async fn metadata(&self) -> Result<Arc<CoreProviderMetadata>> {
        let mut documents = self.documents.lock().await;
        let now = self.clock.now_ms();
        if let Some((metadata, at)) = &documents.metadata
            && now - at < DOCUMENTS_MS
        {
            return Ok(metadata.clone());
        }
        if documents.failed_at.is_some_and(|at| now - at < RETRY_MS) {
            return Err(self.unavailable(anyhow::anyhow!("it did not answer a moment ago")));
        }
        match self.discover().await {
            Ok(metadata) => {
                let metadata = Arc::new(metadata);
                *documents = Documents { metadata: Some((metadata.clone(), now)), failed_at: None };
                Ok(metadata)
            }
            Err(error) => {
                documents.failed_at = Some(now);
                Err(error)
            }
        }
    }

    async fn discover(&self) -> Result<CoreProviderMetadata> {
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(Error::internal)?;
        let metadata = Box::pin(CoreProviderMetadata::discover_async(issuer, &self.http))
            .await
            .map_err(|error| self.not_discovered(error))?;
        // The other addresses are ours to ask, and judged when they are; this one is where browsers are sent.
        if !may_ask(metadata.authorization_endpoint().url(), self.http.plain()) {
            return Err(self.unavailable(HttpError::Address));
        }
        Ok(metadata)
    }

    /// The provider's documents with its keys as they are now: it may have begun to sign with a new one.
    async fn with_new_keys(&self, metadata: &CoreProviderMetadata) -> Result<Arc<CoreProviderMetadata>> {
        let keys = Box::pin(JsonWebKeySet::fetch_async(metadata.jwks_uri(), &self.http))
            .await
            .map_err(|error| self.not_discovered(error))?;
        let metadata = Arc::new(metadata.clone().set_jwks(keys));
        let mut documents = self.documents.lock().await;
        if let Some((known, _)) = &mut documents.metadata {
            known.clone_from(&metadata);
        }
        Ok(metadata)
    }

    fn not_discovered(&self, error: DiscoveryError<HttpError>) -> Error {
        // What the provider sent is not repeated: it may hold anything.
        self.unavailable(match error {
            DiscoveryError::Request(cause) => anyhow::Error::new(cause),
            DiscoveryError::Response(status, ..) => anyhow::anyhow!("answered {status}, or no JSON"),
            DiscoveryError::Parse(_) => anyhow::anyhow!("its documents cannot be read"),
            DiscoveryError::Validation(_) => anyhow::anyhow!("its documents name another issuer"),
            _ => anyhow::anyhow!("its documents cannot be fetched"),
        })
    }

    fn not_exchanged(&self, error: TokenError) -> Error {
        match error {
            RequestTokenError::Request(cause) => self.unavailable(cause),
            RequestTokenError::ServerResponse(answer) => self.refused(match answer.error() {
                CoreErrorResponseType::InvalidGrant => "token endpoint: invalid_grant",
                CoreErrorResponseType::InvalidClient => "token endpoint: invalid_client",
                CoreErrorResponseType::UnauthorizedClient => "token endpoint: unauthorized_client",
                CoreErrorResponseType::InvalidRequest => "token endpoint: invalid_request",
                _ => "token endpoint: another error",
            }),
            RequestTokenError::Parse(..) => self.refused("token endpoint: not an answer"),
            RequestTokenError::Other(_) => self.refused("token endpoint: not an answer of its kind"),
        }
    }

    fn unavailable(&self, cause: impl Into<anyhow::Error>) -> Error {
        let cause = cause.into().context(format!("provider {}", self.id));
        Error::unavailable("the provider does not answer; try again later, or log in another way", cause)
    }

    /// What the caller learns when anything about a login is not as it must be. The log says a little more.
    pub(super) fn refused(&self, reason: &str) -> Error {
        tracing::info!(provider = self.id, reason, "login at a provider refused");
        Error::new(
            Kind::Unauthenticated,
            "PROVIDER_REFUSED",
            "the login at the provider could not be completed; start it again",
        )
    }
}

impl Person {
    fn new(
        subject: &SubjectIdentifier,
        email: Option<&EndUserEmail>,
        email_verified: Option<bool>,
        name: Option<&LocalizedClaim<EndUserName>>,
    ) -> Self {
        let name = name.and_then(|name| name.get(None).or_else(|| name.iter().next().map(|(_, name)| name)));
        Self {
            subject: subject.to_string(),
            email: email.map(|email| email.to_string()).unwrap_or_default(),
            email_verified: email_verified == Some(true),
            name: name.map(|name| name.to_string()).unwrap_or_default(),
        }
    }
}

fn flaw(error: ClaimsVerificationError) -> Flaw {
    Flaw::Breaks(match error {
        ClaimsVerificationError::SignatureVerification(error) => return signature_flaw(error),
        ClaimsVerificationError::Expired(_) => "ID token: time",
        ClaimsVerificationError::InvalidAudience(_) => "ID token: audience",
        ClaimsVerificationError::InvalidIssuer(_) => "ID token: issuer",
        ClaimsVerificationError::InvalidNonce(_) => "ID token: nonce",
        _ => "ID token: unsupported",
    })
}

fn signature_flaw(error: SignatureVerificationError) -> Flaw {
    match error {
        SignatureVerificationError::NoMatchingKey => Flaw::UnknownKey,
        SignatureVerificationError::DisallowedAlg(_) | SignatureVerificationError::NoSignature => {
            Flaw::Breaks("ID token: algorithm")
        }
        _ => Flaw::Breaks("ID token: signature"),
    }
}
