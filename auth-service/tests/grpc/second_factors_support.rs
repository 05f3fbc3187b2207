//! What tests of second factors need: the calls, and an authenticator application.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::{
    Struct,
    auth::{
        ConfirmTotpRequest, FinishPasskeyLoginRequest, FinishPasskeyRegistrationRequest,
        GetSecondFactorsRequest, PasskeyCeremony, RecoveryCodes, RegisteredPasskey,
        RenewRecoveryCodesRequest, SecondFactors, StartPasskeyLoginRequest, StartPasskeyRegistrationRequest,
        StartPasskeyVerificationRequest, StartTotpRequest, TokenPair, TotpSecret, VerifySecondFactorRequest,
        second_factor_service_client::SecondFactorServiceClient, verify_second_factor_request::Proof,
    },
};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use service_kit::{Error, Kind, client::Upstream, server::Running};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use totp_rs::{Builder, Secret, Totp};

use crate::{
    authenticator::Authenticator,
    harness::{Auth, PASSWORD, answer, login, with_token},
};

pub(crate) const JANE: &str = "jane@example.com";
pub(crate) const STEP_MS: i64 = 30_000;

/// What every second factor that does not count is told.
pub(crate) fn refused() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_SECOND_FACTOR".to_owned())
}

/// The calls of `SecondFactorService`.
#[derive(Debug, Clone)]
pub(crate) struct Factors(pub(crate) SecondFactorServiceClient<Upstream>);

impl Factors {
    pub(crate) fn of(auth: &Auth) -> Self {
        Self::at(auth, &auth.running)
    }

    /// Those of one of several instances.
    pub(crate) fn at(auth: &Auth, running: &Running) -> Self {
        Self(SecondFactorServiceClient::new(auth.upstream_to(running, "edge-proxy")))
    }

    pub(crate) async fn get(&self, token: &str) -> SecondFactors {
        let request = with_token(token, GetSecondFactorsRequest {});
        self.0.clone().get_second_factors(request).await.unwrap().into_inner()
    }

    pub(crate) async fn start_totp(&self, token: &str) -> Result<TotpSecret, Error> {
        answer(self.0.clone().start_totp(with_token(token, StartTotpRequest {})).await)
    }

    pub(crate) async fn confirm_totp(&self, token: &str, code: &str) -> Result<Vec<String>, Error> {
        let request = with_token(token, ConfirmTotpRequest { code: code.into() });
        answer(self.0.clone().confirm_totp(request).await).map(|codes| codes.codes)
    }

    pub(crate) async fn renew(&self, token: &str) -> Result<RecoveryCodes, Error> {
        answer(self.0.clone().renew_recovery_codes(with_token(token, RenewRecoveryCodesRequest {})).await)
    }

    pub(crate) async fn verify(&self, challenge: &str, proof: Proof) -> Result<TokenPair, Error> {
        let request =
            VerifySecondFactorRequest { challenge: challenge.into(), proof: Some(proof), cookie: false };
        answer(self.0.clone().verify_second_factor(request).await)
    }

    pub(crate) async fn start_registration(&self, token: &str) -> Result<PasskeyCeremony, Error> {
        let request = with_token(token, StartPasskeyRegistrationRequest {});
        answer(self.0.clone().start_passkey_registration(request).await)
    }

    pub(crate) async fn finish_registration(
        &self,
        token: &str,
        ceremony: &str,
        credential: Struct,
    ) -> Result<RegisteredPasskey, Error> {
        let request = FinishPasskeyRegistrationRequest {
            ceremony: ceremony.into(),
            credential: Some(credential),
            name: "Her phone".into(),
        };
        answer(self.0.clone().finish_passkey_registration(with_token(token, request)).await)
    }

    /// Registers a passkey of an authenticator.
    pub(crate) async fn register(
        &self,
        token: &str,
        authenticator: &mut Authenticator,
    ) -> Result<RegisteredPasskey, Error> {
        let started = self.start_registration(token).await?;
        let credential = authenticator.create(&started);
        self.finish_registration(token, &started.ceremony, credential).await
    }

    pub(crate) async fn start_login(&self) -> PasskeyCeremony {
        self.0.clone().start_passkey_login(StartPasskeyLoginRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn finish_login(&self, ceremony: &str, credential: Struct) -> Result<TokenPair, Error> {
        let request = FinishPasskeyLoginRequest {
            ceremony: ceremony.into(),
            credential: Some(credential),
            cookie: false,
        };
        answer(self.0.clone().finish_passkey_login(request).await)
    }

    /// Logs in with an authenticator and nothing else.
    pub(crate) async fn login(&self, authenticator: &mut Authenticator) -> Result<TokenPair, Error> {
        let started = self.start_login().await;
        self.finish_login(&started.ceremony, authenticator.get(&started)).await
    }

    pub(crate) async fn start_verification(&self, challenge: &str) -> Result<PasskeyCeremony, Error> {
        let request = StartPasskeyVerificationRequest { challenge: challenge.into() };
        answer(self.0.clone().start_passkey_verification(request).await)
    }
}

/// The challenge that a login with the right password waits for.
pub(crate) async fn challenge(auth: &Auth, email: &str) -> String {
    let pair = login(&auth.client(), email, PASSWORD).await.unwrap();
    assert!(pair.access_token.is_empty() && pair.refresh_token.is_empty(), "a login needs both factors");
    pair.second_factor.unwrap().challenge
}

/// What an access token says.
pub(crate) fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// An authenticator application with a secret, in the time of a test.
#[derive(Debug)]
pub(crate) struct App(Totp);

impl App {
    pub(crate) fn new(secret: &TotpSecret) -> Self {
        let secret = Secret::try_from_base32(&secret.secret).unwrap();
        Self(Builder::new().with_secret(secret).build().unwrap())
    }

    /// The code so many steps from now.
    pub(crate) fn code(&self, auth: &Auth, steps: i64) -> String {
        self.0.generate(((auth.clock.now_ms() + steps * STEP_MS) / 1_000) as u64).to_string()
    }

    /// A code that is none around now.
    pub(crate) fn wrong(&self, auth: &Auth) -> String {
        let near: Vec<String> = (-3..=3).map(|steps| self.code(auth, steps)).collect();
        (0..).map(|n| format!("{n:06}")).find(|code| !near.contains(code)).unwrap()
    }

    /// Proves with the code so many steps from now.
    pub(crate) fn proof(&self, auth: &Auth, steps: i64) -> Proof {
        Proof::TotpCode(self.code(auth, steps))
    }
}

/// Turns one-time passwords on for the holder of a token; the recovery codes that came with it. The step
/// of now is used up by it.
pub(crate) async fn totp_on(auth: &Auth, token: &str) -> (App, Vec<String>) {
    let factors = Factors::of(auth);
    let app = App::new(&factors.start_totp(token).await.unwrap());
    let codes = factors.confirm_totp(token, &app.code(auth, 0)).await.unwrap();
    (app, codes)
}

/// Runs a statement on the database; a table is written `{users}`.
pub(crate) async fn execute(auth: &Auth, statement: &str) {
    let config = &auth.database.config;
    let url = config.url.expose_secret();
    if url.starts_with("sqlite:") {
        let pool = SqlitePool::connect(url).await.unwrap();
        let statement = AssertSqlSafe(statement.replace(['{', '}'], ""));
        sqlx::query(statement).execute(&pool).await.unwrap();
        pool.close().await;
    } else {
        let pool = PgPool::connect(url).await.unwrap();
        let statement = statement.replace('{', &format!("\"{}\".", config.schema)).replace('}', "");
        sqlx::query(AssertSqlSafe(statement)).execute(&pool).await.unwrap();
        pool.close().await;
    }
}
