//! An OpenID Connect provider on loopback that speaks the protocol over HTTP and is as strict as it may be:
//! registered redirect address, PKCE, client authentication, codes that count once. It can also misbehave.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use auth_service::ProviderConfig;
use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Url;
use secrecy::SecretString;
use serde_json::{Value, json};
use service_kit::{Clock, opaque::random};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const CLIENT_ID: &str = "tollgate at the provider";
/// With everything that must be encoded in a header.
const CLIENT_SECRET: &str = "canary-s3cret:/+% é";
const REDIRECT_URL: &str = "https://app.example.com/signed-in?from=provider";
const ACCESS_TOKEN: &str = "an-access-token";

/// What the provider does wrong, or otherwise than usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    WrongNonce,
    NoNonce,
    WrongAudience,
    SecondAudience,
    WrongParty,
    WrongIssuer,
    Expired,
    FromTheFuture,
    Stale,
    Unsigned,
    SignedWithClientSecret,
    SignedBySomebodyElse,
    UnknownKey,
    WrongTokenHash,
    LongSubject,
    NoIdToken,
    Garbage,
    Endless,
    Redirect,
    Unwell,
    /// The ID token names the subject only; the rest is at the userinfo endpoint.
    ThinToken,
    /// As before, and the userinfo endpoint tells of somebody else.
    OtherUserInfo,
    /// The discovery document names another issuer.
    OtherIssuerInDocument,
    /// The discovery document names addresses inside.
    AddressesInside,
    /// The client's secret is to be in the body.
    SecretInBody,
}

/// A running provider.
#[derive(Debug)]
pub(crate) struct OidcServer {
    address: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

struct Inner {
    address: SocketAddr,
    clock: Clock,
    state: Mutex<Provider>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Provider {
    fault: Fault,
    /// Claims of whoever logs in next.
    person: Value,
    signing: Key,
    published: Vec<Value>,
    codes: HashMap<String, Grant>,
    /// How often something was asked, by its path.
    asked: HashMap<&'static str, u32>,
}

struct Key {
    algorithm: Algorithm,
    kid: String,
    key: EncodingKey,
    jwk: Value,
}

/// What a code was given for.
struct Grant {
    challenge: String,
    nonce: String,
    person: Value,
}

impl OidcServer {
    /// A provider that signs with ES256.
    pub(crate) async fn start(clock: &Clock) -> Self {
        Self::with_key(clock, es256()).await
    }

    /// A provider that signs with RS256.
    pub(crate) async fn start_rsa(clock: &Clock) -> Self {
        Self::with_key(clock, rs256()).await
    }

    async fn with_key(clock: &Clock, signing: Key) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let published = vec![signing.jwk.clone()];
        let person = person("subject-1", "jane@example.com", true);
        let fault = Fault::None;
        let state =
            Provider { fault, person, signing, published, codes: HashMap::new(), asked: HashMap::new() };
        let inner = Arc::new(Inner { address, clock: clock.clone(), state: Mutex::new(state) });
        let task = tokio::spawn(serve(listener, inner.clone()));
        Self { address, inner, task }
    }

    /// Stops it: nothing listens any more.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Starts it again at the same address.
    pub(crate) async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = tokio::spawn(serve(listener, self.inner.clone()));
    }

    /// The settings of a client of it.
    pub(crate) fn config(&self) -> ProviderConfig {
        ProviderConfig {
            name: "Local".to_owned(),
            issuer: self.inner.issuer(),
            client_id: CLIENT_ID.to_owned(),
            client_secret: SecretString::from(CLIENT_SECRET),
            redirect_url: REDIRECT_URL.to_owned(),
            scopes: vec!["email".to_owned(), "profile".to_owned()],
        }
    }

    /// Who logs in from now on.
    pub(crate) fn person(&self, claims: Value) {
        self.inner.state().person = claims;
    }

    /// What it does wrong from now on.
    pub(crate) fn fault(&self, fault: Fault) {
        self.inner.state().fault = fault;
    }

    /// Signs with a new key from now on, and publishes that one alone.
    pub(crate) fn rotate(&self) {
        let key = es256();
        let mut state = self.inner.state();
        state.published = vec![key.jwk.clone()];
        state.signing = key;
    }

    /// How often a path was asked.
    pub(crate) fn asked(&self, path: &str) -> u32 {
        self.inner.state().asked.get(path).copied().unwrap_or_default()
    }

    /// What a browser does: goes where it is sent, logs in, and comes back with a code and the state.
    pub(crate) async fn browse(&self, url: &str) -> (String, String) {
        let url: Url = url.parse().unwrap();
        assert_eq!(url.port(), Some(self.address.port()), "the browser is sent to this provider");
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let target = format!("{}?{}", url.path(), url.query().unwrap());
        let request = format!("GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let location = answer.lines().find_map(|line| line.strip_prefix("location: "));
        let back: Url = location.unwrap_or_else(|| panic!("not sent back: {answer}")).parse().unwrap();
        assert!(back.as_str().starts_with(REDIRECT_URL));
        let query: HashMap<String, String> = back.query_pairs().into_owned().collect();
        (query["code"].clone(), query["state"].clone())
    }
}

impl Drop for OidcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Claims of somebody.
pub(crate) fn person(subject: &str, email: &str, verified: bool) -> Value {
    json!({"sub": subject, "email": email, "email_verified": verified, "name": "Jane at the provider"})
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, Provider> {
        self.state.lock().unwrap()
    }

    fn issuer(&self) -> String {
        format!("http://{}/realm", self.address)
    }

    fn count(&self, path: &'static str) -> Fault {
        let mut state = self.state();
        *state.asked.entry(path).or_default() += 1;
        state.fault
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    let routes = Router::new()
        .route("/realm/.well-known/openid-configuration", get(discovery))
        .route("/realm/keys", get(keys))
        .route("/realm/authorize", get(authorize))
        .route("/realm/token", post(token))
        .route("/realm/userinfo", get(userinfo))
        .route("/realm/elsewhere", get(elsewhere).post(elsewhere))
        .with_state(inner);
    axum::serve(listener, routes).await.unwrap();
}

async fn discovery(State(inner): State<Arc<Inner>>) -> Response {
    let fault = inner.count("discovery");
    let issuer = inner.issuer();
    let at = |path: &str| format!("{issuer}/{path}");
    let mut document = json!({
        "issuer": issuer,
        "authorization_endpoint": at("authorize"),
        "token_endpoint": at("token"),
        "userinfo_endpoint": at("userinfo"),
        "jwks_uri": at("keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    });
    match fault {
        Fault::OtherIssuerInDocument => document["issuer"] = json!("https://accounts.example.com"),
        Fault::AddressesInside => document["jwks_uri"] = json!("http://169.254.169.254/latest/meta-data"),
        Fault::SecretInBody => {
            document["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"])
        }
        Fault::Unwell => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => {}
    }
    Json(document).into_response()
}

async fn keys(State(inner): State<Arc<Inner>>) -> Json<Value> {
    inner.count("keys");
    let keys = inner.state().published.clone();
    Json(json!({"keys": keys}))
}

fn form(text: &str) -> HashMap<String, String> {
    let url: Url = format!("http://x/?{text}").parse().unwrap();
    url.query_pairs().into_owned().collect()
}

async fn authorize(State(inner): State<Arc<Inner>>, RawQuery(query): RawQuery) -> Response {
    inner.count("authorize");
    let query = form(&query.unwrap_or_default());
    let says = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
    let scopes: Vec<&str> = says("scope").split(' ').collect();
    let good = says("response_type") == "code"
        && says("client_id") == CLIENT_ID
        && says("redirect_uri") == REDIRECT_URL
        && says("code_challenge_method") == "S256"
        && ["openid", "email", "profile"].iter().all(|scope| scopes.contains(scope))
        && [says("state"), says("nonce"), says("code_challenge")].iter().all(|text| text.len() == 43);
    if !good {
        return (StatusCode::BAD_REQUEST, format!("{query:?}")).into_response();
    }
    let code = URL_SAFE_NO_PAD.encode(random::<16>());
    let (challenge, nonce) = (says("code_challenge").to_owned(), says("nonce").to_owned());
    let mut state = inner.state();
    let person = state.person.clone();
    state.codes.insert(code.clone(), Grant { challenge, nonce, person });
    let location = format!("{REDIRECT_URL}&code={code}&state={}", says("state"));
    (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
}

fn oauth_error(error: &str) -> Response {
    let description = "canary-text-of-the-provider";
    (StatusCode::BAD_REQUEST, Json(json!({"error": error, "error_description": description}))).into_response()
}

/// The client's credentials of a token request, wherever they are.
fn credentials(headers: &HeaderMap, form: &HashMap<String, String>) -> Option<(bool, String, String)> {
    if let (Some(id), Some(secret)) = (form.get("client_id"), form.get("client_secret")) {
        return Some((true, id.clone(), secret.clone()));
    }
    let basic = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decoded = |text: &str| self::form(&format!("v={text}"))["v"].clone();
    Some((false, decoded(id), decoded(secret)))
}

async fn token(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: String) -> Response {
    let fault = inner.count("token");
    match fault {
        Fault::Redirect => {
            let location = format!("{}/elsewhere", inner.issuer());
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
        Fault::Unwell => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Fault::Garbage => return "<html>canary-text-of-the-provider</html>".into_response(),
        Fault::Endless => return Json(json!({"access_token": "x".repeat(1 << 21)})).into_response(),
        _ => {}
    }
    let form = form(&body);
    let says = |key: &str| form.get(key).map(String::as_str).unwrap_or_default();
    let expected = (fault == Fault::SecretInBody, CLIENT_ID.to_owned(), CLIENT_SECRET.to_owned());
    if credentials(&headers, &form) != Some(expected) {
        return oauth_error("invalid_client");
    }
    let Some(grant) = inner.state().codes.remove(says("code")) else { return oauth_error("invalid_grant") };
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(says("code_verifier")));
    if says("grant_type") != "authorization_code"
        || says("redirect_uri") != REDIRECT_URL
        || challenge != grant.challenge
    {
        return oauth_error("invalid_grant");
    }
    let mut answer = json!({"access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 300});
    if fault != Fault::NoIdToken {
        answer["id_token"] = json!(id_token(&inner, &grant, fault));
    }
    Json(answer).into_response()
}

#[allow(clippy::disallowed_methods, reason = "a provider signs tokens of its own, right and wrong ones")]
fn id_token(inner: &Inner, grant: &Grant, fault: Fault) -> String {
    let now = inner.clock.now_ms() / 1_000;
    let hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(ACCESS_TOKEN)[..16]);
    let mut claims = grant.person.clone();
    for (key, value) in [
        ("iss", json!(inner.issuer())),
        ("aud", json!(CLIENT_ID)),
        ("azp", json!(CLIENT_ID)),
        ("nonce", json!(grant.nonce)),
        ("iat", json!(now)),
        ("exp", json!(now + 300)),
        ("at_hash", json!(hash)),
    ] {
        claims[key] = value;
    }
    match fault {
        Fault::WrongNonce => claims["nonce"] = json!("A".repeat(43)),
        Fault::NoNonce => drop(claims.as_object_mut().unwrap().remove("nonce")),
        Fault::WrongAudience => claims["aud"] = json!("another client"),
        Fault::SecondAudience => claims["aud"] = json!([CLIENT_ID, "another client"]),
        Fault::WrongParty => claims["azp"] = json!("another client"),
        Fault::WrongIssuer => claims["iss"] = json!("https://accounts.example.com"),
        Fault::Expired => claims["exp"] = json!(now - 31),
        Fault::FromTheFuture => claims["iat"] = json!(now + 31),
        Fault::Stale => claims["iat"] = json!(now - 601),
        Fault::WrongTokenHash => claims["at_hash"] = json!(URL_SAFE_NO_PAD.encode([0; 16])),
        Fault::LongSubject => claims["sub"] = json!("x".repeat(256)),
        Fault::ThinToken | Fault::OtherUserInfo => {
            for key in ["email", "email_verified", "name"] {
                claims.as_object_mut().unwrap().remove(key);
            }
        }
        _ => {}
    }
    let state = inner.state();
    let Key { algorithm, kid, key, .. } = &state.signing;
    let mut header = Header::new(*algorithm);
    header.kid = Some(kid.clone());
    match fault {
        Fault::Unsigned => {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            return format!("{}.{}.", part(&json!({"alg": "none", "kid": kid})), part(&claims));
        }
        Fault::SignedWithClientSecret => {
            header.alg = Algorithm::HS256;
            let key = EncodingKey::from_secret(CLIENT_SECRET.as_bytes());
            return jsonwebtoken::encode(&header, &claims, &key).unwrap();
        }
        Fault::SignedBySomebodyElse => {
            return jsonwebtoken::encode(&header, &claims, &es256().key).unwrap();
        }
        Fault::UnknownKey => header.kid = Some("nobody-knows-it".to_owned()),
        _ => {}
    }
    jsonwebtoken::encode(&header, &claims, key).unwrap()
}

async fn userinfo(State(inner): State<Arc<Inner>>, headers: HeaderMap) -> Response {
    let fault = inner.count("userinfo");
    if headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
        != Some(&format!("Bearer {ACCESS_TOKEN}"))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut claims = inner.state().person.clone();
    if fault == Fault::OtherUserInfo {
        claims["sub"] = json!("somebody-else");
    }
    Json(claims).into_response()
}

/// Where nobody should come.
async fn elsewhere(State(inner): State<Arc<Inner>>) -> StatusCode {
    inner.count("elsewhere");
    StatusCode::OK
}

fn es256() -> Key {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
    let point = pair.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    let kid = URL_SAFE_NO_PAD.encode(random::<8>());
    let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": x, "y": y});
    Key { algorithm: Algorithm::ES256, kid, key: EncodingKey::from_ec_der(pkcs8.as_ref()), jwk }
}

fn rs256() -> Key {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let body = STANDARD.encode(pair.as_der().unwrap().as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    // RSAPublicKey of 2048 bits: a sequence of the modulus with a zero in front, and 65537.
    let public = pair.public_key().as_ref();
    assert!(public.len() == 270 && public.ends_with(&[2, 3, 1, 0, 1]), "not laid out as expected");
    let (n, e) = (URL_SAFE_NO_PAD.encode(&public[9..265]), URL_SAFE_NO_PAD.encode([1, 0, 1]));
    let kid = URL_SAFE_NO_PAD.encode(random::<8>());
    let jwk = json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e});
    Key { algorithm: Algorithm::RS256, kid, key, jwk }
}
