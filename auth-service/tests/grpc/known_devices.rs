//! Devices that have logged in before: strangers' guesses do not lock them out.

use proto::auth::{
    LoginRequest, ReauthenticateRequest, TokenPair, session_service_client::SessionServiceClient,
    verify_second_factor_request::Proof,
};
use service_kit::Error;

use crate::{
    database::{number, texts},
    harness::{Auth, Client, PASSWORD, answer, login, on_both, refresh, refusal, with_token},
    second_factors_support::{Factors, STEP_MS, challenge, refused as refused_factor, totp_on},
    sql::execute,
};

const WRONG: &str = "not-her-password";
const JANE: &str = "jane@example.com";

async fn login_from(client: &Client, device: &str, password: &str) -> Result<TokenPair, Error> {
    let request = LoginRequest {
        email: JANE.into(),
        password: password.into(),
        device_token: device.into(),
        ..LoginRequest::default()
    };
    answer(client.clone().login(request).await)
}

async fn refused(client: &Client, device: &str, password: &str) {
    let error = login_from(client, device, password).await.unwrap_err();
    assert_eq!(error.reason(), "INVALID_CREDENTIALS", "{error}");
}

#[tokio::test]
async fn two_hundred_guesses_lock_strangers_out_and_not_the_owner() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, first) = auth.user(JANE).await;
        for _ in 0..200 {
            refused(&client, "", WRONG).await;
        }
        refused(&client, "", PASSWORD).await;
        let second = login_from(&client, &first.device_token, PASSWORD).await.unwrap();
        assert!(!second.device_token.is_empty() && second.device_token != first.device_token);
        // The owner got in: what strangers did is forgiven.
        login(&client, JANE, PASSWORD).await.unwrap();

        // The owner's own failures count for the device, and for nobody else.
        for _ in 0..6 {
            refused(&client, &second.device_token, WRONG).await;
        }
        refused(&client, &second.device_token, PASSWORD).await;
        login(&client, JANE, PASSWORD).await.unwrap();
        refused(&client, &second.device_token, PASSWORD).await;
        auth.clock.advance_ms(1_000);
        login_from(&client, &second.device_token, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn guesses_of_second_factors_by_a_stranger_do_not_lock_a_known_device_out() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, first) = auth.user(JANE).await;
        let (factors, (app, _)) = (Factors::of(&auth), totp_on(&auth, &first.access_token).await);
        // A stranger has the password, and no second factor.
        let waiting = challenge(&auth, JANE).await;
        let wrong = || Proof::TotpCode(app.wrong(&auth));
        assert_eq!(refusal(factors.verify(&waiting, wrong()).await), refused_factor());
        execute(&auth, "UPDATE login_throttles SET failures = 50, locked_until = 9999999999999").await;
        assert_eq!(refusal(factors.verify(&waiting, app.proof(&auth, 1)).await), refused_factor());

        let known = login_from(&client, &first.device_token, PASSWORD).await.unwrap();
        let waiting = known.second_factor.unwrap().challenge;
        let pair = factors.verify(&waiting, app.proof(&auth, 1)).await.unwrap();
        // Nor the holder of a session who proves again who they are; the throttle of the session is its own.
        auth.clock.advance_ms(STEP_MS);
        execute(&auth, "UPDATE login_throttles SET failures = 50, locked_until = 9999999999999").await;
        let request = ReauthenticateRequest { password: PASSWORD.into() };
        let mut sessions = SessionServiceClient::new(auth.upstream("edge-proxy"));
        let again = answer(sessions.reauthenticate(with_token(&pair.access_token, request)).await).unwrap();
        let waiting = again.second_factor.unwrap().challenge;
        factors.verify(&waiting, app.proof(&auth, 1)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_is_no_device_of_the_account_is_ignored() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, jane) = auth.user(JANE).await;
        let (_, joan) = auth.user("joan@example.com").await;
        let used = jane.device_token;
        let device = login_from(&client, &used, PASSWORD).await.unwrap().device_token;
        for _ in 0..6 {
            refused(&client, "", WRONG).await;
        }
        for none in [&used, &joan.device_token, &jane.refresh_token, "x", &"A".repeat(43), &"é".repeat(900)]
        {
            refused(&client, none, PASSWORD).await;
        }
        login_from(&client, &device, PASSWORD).await.unwrap();
        // A refresh makes no device known.
        assert_eq!(refresh(&client, &joan.refresh_token).await.unwrap().device_token, "");
        // After a year without a login a device is nobody's.
        let device = login_from(&client, "", PASSWORD).await.unwrap().device_token;
        auth.clock.advance_ms(365 * 24 * 3_600 * 1_000 + 1);
        for _ in 0..6 {
            refused(&client, "", WRONG).await;
        }
        refused(&client, &device, PASSWORD).await;
    })
    .await;
}

#[tokio::test]
async fn twenty_devices_are_known_the_last_used_ones() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, first) = auth.user(JANE).await;
        auth.clock.advance_ms(1);
        let second = login(&client, JANE, PASSWORD).await.unwrap();
        auth.clock.advance_ms(1);
        // Used again, the first is not the one that goes.
        let first = login_from(&client, &first.device_token, PASSWORD).await.unwrap();
        for others in 1..=19 {
            auth.clock.advance_ms(1);
            login(&client, JANE, PASSWORD).await.unwrap();
            let known = number(&auth, "SELECT CAST(COUNT(*) AS TEXT) FROM known_devices").await;
            assert_eq!(known, 20.min(2 + others));
        }
        for _ in 0..6 {
            refused(&client, "", WRONG).await;
        }
        refused(&client, &second.device_token, PASSWORD).await;
        login_from(&client, &first.device_token, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_device_with_a_hundred_failures_is_known_no_more() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, pair) = auth.user(JANE).await;
        let device = login_from(&client, &pair.device_token, PASSWORD).await.unwrap().device_token;
        refused(&client, &device, WRONG).await;
        texts(&auth, "UPDATE login_throttles SET failures = 100 RETURNING key").await;
        refused(&client, &device, PASSWORD).await;
        assert_eq!(number(&auth, "SELECT CAST(COUNT(*) AS TEXT) FROM known_devices").await, 0);
        assert_eq!(number(&auth, "SELECT CAST(COUNT(*) AS TEXT) FROM login_throttles").await, 0);
        // As anybody it goes on.
        login_from(&client, &device, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_known_device_helps_after_a_hundred_failures_of_strangers() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, pair) = auth.user(JANE).await;
        refused(&client, "", WRONG).await;
        texts(&auth, "UPDATE login_throttles SET failures = 100 RETURNING key").await;
        refused(&client, "", PASSWORD).await;
        login_from(&client, &pair.device_token, PASSWORD).await.unwrap();
        login(&client, JANE, PASSWORD).await.unwrap();
    })
    .await;
}
