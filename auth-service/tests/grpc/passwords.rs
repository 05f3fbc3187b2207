//! Change and reset of passwords.

use std::time::{Duration, Instant};

use proto::auth::{
    ChangePasswordRequest, GetProfileRequest, RequestPasswordResetRequest, ResetPasswordRequest, TokenPair,
};
use service_kit::{Error, Kind};
use tonic::Request;

use crate::{
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refresh, refusal, with_token},
    mail::{letter, letters},
    second_factors_support::{Factors, STEP_MS, challenge, totp_on},
    secrets::dump,
    sql::execute,
};

const JANE: &str = "jane@example.com";
const NEW: &str = "canary-n3w-pass-word";
const HOUR_MS: i64 = 3_600 * 1_000;

async fn change(auth: &Auth, pair: &TokenPair, current: &str, new: &str) -> Result<(), Error> {
    let request = ChangePasswordRequest { current_password: current.into(), new_password: new.into() };
    answer(auth.client().change_password(with_token(&pair.access_token, request)).await)
}

async fn forgot(auth: &Auth, email: &str) -> Result<(), Error> {
    let request = RequestPasswordResetRequest { email: email.into() };
    answer(auth.client().request_password_reset(request).await)
}

async fn reset(auth: &Auth, token: &str, new: &str) -> Result<(), Error> {
    let request = ResetPasswordRequest { token: token.into(), new_password: new.into() };
    answer(auth.client().reset_password(request).await)
}

fn invalid_credentials() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned())
}

/// Rows that a login with the old password would leave behind.
async fn leave_traces(auth: &Auth) {
    for statement in [
        "INSERT INTO known_devices (hash, user_id, created_at, last_used_at)
           SELECT CAST('d' AS BYTEA), id, 1, 1 FROM users",
        "INSERT INTO device_grants (device_hash, user_code, client_id, scope, address, status, user_id,
           polled_at, poll_interval, created_at, expires_at)
           SELECT CAST('g' AS BYTEA), 'code', 'cli', '*', '', 'APPROVED', id, 1, 1, 1, 9999999999999
           FROM users",
        "INSERT INTO pending SELECT CAST('c' AS BYTEA), 'CHALLENGE', id, CAST('' AS BYTEA), 0, 1,
           9999999999999 FROM users",
        "INSERT INTO totp SELECT id, CAST('s' AS BYTEA), 1, 0, 0, 0 FROM users",
    ] {
        execute(auth, statement).await;
    }
}

/// The dump, with quotes as they stand in the audit log on either database.
async fn log(auth: &Auth) -> String {
    dump(auth).await.replace("\"\"", "\"")
}

async fn assert_no_traces(auth: &Auth) {
    let rows = dump(auth).await;
    for gone in ["known_devices: ", "device_grants: ", "challenge", "password_reset|"] {
        assert!(!rows.contains(gone), "{gone} is left");
    }
    assert!(rows.contains("totp: "), "second factors stay");
}

#[tokio::test]
async fn a_change_ends_what_the_old_password_opened() {
    on_both(async |auth: Auth| {
        let (user, here) = auth.user(JANE).await;
        let there = login(&auth.client(), JANE, PASSWORD).await.unwrap();
        forgot(&auth, JANE).await.unwrap();
        let link = letter(&auth, 2).await.token();
        leave_traces(&auth).await;
        change(&auth, &here, PASSWORD, NEW).await.unwrap();

        refresh(&auth.client(), &here.refresh_token).await.unwrap();
        let dead = refresh(&auth.client(), &there.refresh_token).await;
        assert_eq!(refusal(dead).1, "INVALID_GRANT");
        assert_eq!(refusal(login(&auth.client(), JANE, PASSWORD).await), invalid_credentials());
        assert_eq!(fields(reset(&auth, &link, "canary-of-a-thief").await), ["token"]);
        assert_no_traces(&auth).await;
        execute(&auth, "DELETE FROM totp").await;
        login(&auth.client(), JANE, NEW).await.unwrap();

        let told = letter(&auth, 3).await;
        assert_eq!((told.to.as_str(), told.subject.as_str()), (JANE, "Your password was changed"));
        let rows = log(&auth).await;
        assert!(rows.contains("\"auth.password.change\",true") && rows.contains("password_changed"));
        let revoked: Vec<&str> = rows.lines().filter(|row| row.starts_with("revocations: ")).collect();
        assert_eq!(revoked.len(), 1, "the other session's access tokens are dead: {revoked:?}");
        assert!(rows.contains(&user.id));
    })
    .await;
}

#[tokio::test]
async fn a_change_is_judged_by_the_rules() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let long = "x".repeat(129);
        let cases: &[(&str, &str, &[&str])] = &[
            ("", "", &["currentPassword", "newPassword"]),
            (PASSWORD, "short-7", &["newPassword"]),
            (PASSWORD, "password123", &["newPassword"]),
            (PASSWORD, "jane-and-the-rest", &["newPassword"]),
            (PASSWORD, "Jane Doe", &["newPassword"]),
            (PASSWORD, "tollgate-1!", &["newPassword"]),
            (PASSWORD, PASSWORD, &["newPassword"]),
            (&long, &long, &["currentPassword", "newPassword"]),
        ];
        for (current, new, bad) in cases {
            assert_eq!(&fields(change(&auth, &pair, current, new).await), bad, "{new}");
        }
        // None of them was an attempt.
        change(&auth, &pair, PASSWORD, NEW).await.unwrap();
        let status = auth.client().change_password(ChangePasswordRequest::default()).await.unwrap_err();
        assert_eq!(Error::from(status).kind(), Kind::Unauthenticated);
    })
    .await;
}

#[tokio::test]
async fn guesses_of_the_current_password_cost_what_logins_cost() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        // Strangers keep nobody from a new password.
        for _ in 0..7 {
            login(&auth.client(), JANE, "not-her-password").await.unwrap_err();
        }
        for _ in 0..6 {
            assert_eq!(refusal(change(&auth, &pair, "not-her-password", NEW).await), invalid_credentials());
        }
        // Locked now: the right one does not help, and trying does not extend it.
        for _ in 0..3 {
            assert_eq!(refusal(change(&auth, &pair, PASSWORD, NEW).await), invalid_credentials());
        }
        auth.clock.advance_ms(1_000);
        change(&auth, &pair, PASSWORD, NEW).await.unwrap();
        // And forgiven, in the session and of the address.
        for _ in 0..5 {
            assert_eq!(
                refusal(change(&auth, &pair, "not-her-password", PASSWORD).await),
                invalid_credentials()
            );
        }
        change(&auth, &pair, NEW, PASSWORD).await.unwrap();
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
        let rows = log(&auth).await;
        assert!(rows.contains("\"wrong password\"") && rows.contains("\"too many attempts\""));
    })
    .await;
}

#[tokio::test]
async fn of_changes_side_by_side_one_wins() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let (one, two) = tokio::join!(
            change(&auth, &pair, PASSWORD, "canary-the-first-one"),
            change(&auth, &pair, PASSWORD, "canary-the-second-one"),
        );
        assert_ne!(one.is_ok(), two.is_ok(), "{one:?} {two:?}");
        let won = if one.is_ok() { "canary-the-first-one" } else { "canary-the-second-one" };
        login(&auth.client(), JANE, won).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_login_that_a_change_overtakes_opens_nothing() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let (app, _) = totp_on(&auth, &pair.access_token).await;
        let waiting = challenge(&auth, JANE).await;
        // As if the login had been between its two steps while the change went through.
        execute(&auth, "UPDATE credentials SET changed_at = changed_at + 1").await;
        let refused = Factors::of(&auth).verify(&waiting, app.proof(&auth, 1)).await;
        assert_eq!(refusal(refused), invalid_credentials());
        assert!(log(&auth).await.contains("\"auth.login\",false,\"the account is disabled, or"));
        auth.clock.advance_ms(STEP_MS);
        let waiting = challenge(&auth, JANE).await;
        Factors::of(&auth).verify(&waiting, app.proof(&auth, 1)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_account_without_a_password_gets_one_by_mail() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        execute(&auth, "DELETE FROM credentials").await;
        let refused = change(&auth, &pair, PASSWORD, NEW).await;
        assert_eq!(refusal(refused), (Kind::FailedPrecondition, "NO_PASSWORD".to_owned()));
        assert_eq!(refusal(login(&auth.client(), JANE, PASSWORD).await), invalid_credentials());
        forgot(&auth, JANE).await.unwrap();
        reset(&auth, &letter(&auth, 2).await.token(), NEW).await.unwrap();
        login(&auth.client(), JANE, NEW).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_reset_sets_the_password_proves_the_address_and_ends_all() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        for _ in 0..7 {
            login(&auth.client(), JANE, "not-her-password").await.unwrap_err();
        }
        leave_traces(&auth).await;
        forgot(&auth, "JANE@example.com").await.unwrap();
        let sent = letter(&auth, 2).await;
        assert_eq!(sent.to, JANE, "mail goes to the address as it is stored");
        assert!(sent.link().starts_with("https://localhost:8443/reset-password#token="), "{}", sent.text);

        // A bad password does not use the link up.
        for bad in ["", "short-7", "password123", "my-jane-password"] {
            assert_eq!(fields(reset(&auth, &sent.token(), bad).await), ["newPassword"]);
        }
        reset(&auth, &sent.token(), NEW).await.unwrap();
        assert_eq!(fields(reset(&auth, &sent.token(), "canary-another-one").await), ["token"]);

        assert_eq!(refusal(refresh(&auth.client(), &pair.refresh_token).await).1, "INVALID_GRANT");
        assert_no_traces(&auth).await;
        execute(&auth, "DELETE FROM totp").await;
        // Whoever proves the mailbox does not wait for the guesses of others.
        let pair = login(&auth.client(), JANE, NEW).await.unwrap();
        let profile = with_token(&pair.access_token, GetProfileRequest {});
        assert!(answer(auth.client().get_profile(profile).await).unwrap().email_verified);
        assert_eq!(letter(&auth, 3).await.subject, "Your password was changed");
        let rows = log(&auth).await;
        assert!(rows.contains("\"auth.password.reset.request\",true"));
        assert!(rows.contains("\"auth.password.reset\",true"));
        assert!(!rows.contains(&sent.token().to_lowercase()) && !rows.contains("canary"));
    })
    .await;
}

#[tokio::test]
async fn a_link_is_good_for_an_hour_and_the_last_one_counts() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        for _ in 0..2 {
            forgot(&auth, JANE).await.unwrap();
        }
        let [verification, first, second] = letters(&auth, 3).await.try_into().unwrap();
        let long = "A".repeat(500_000);
        for token in ["", "x", "'; --", &long, &"A".repeat(43), &first.token(), &verification.token()] {
            let refused = reset(&auth, token, NEW).await.unwrap_err();
            let [violation] = refused.violations() else { panic!("{refused:?}") };
            let told = (violation.field.as_str(), violation.message.as_str());
            assert_eq!(told, ("token", "is not valid or has expired"));
        }
        auth.clock.advance_ms(HOUR_MS - 1);
        let link = second.token();
        let racing = tokio::join!(reset(&auth, &link, NEW), reset(&auth, &link, NEW));
        assert_ne!(racing.0.is_ok(), racing.1.is_ok(), "{racing:?}");

        forgot(&auth, JANE).await.unwrap();
        let third = letter(&auth, 5).await;
        auth.clock.advance_ms(HOUR_MS);
        assert_eq!(fields(reset(&auth, &third.token(), "canary-another-one").await), ["token"]);
    })
    .await;
}

#[tokio::test]
async fn asking_for_a_reset_tells_nothing_and_has_a_limit() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        auth.user("disabled@example.com").await;
        execute(&auth, "UPDATE users SET disabled_at = 1 WHERE email LIKE 'disabled%'").await;
        letters(&auth, 2).await;
        let mut metadata = Vec::new();
        for email in [JANE, "unknown@example.com", "disabled@example.com"] {
            let request = Request::new(RequestPasswordResetRequest { email: email.into() });
            let response = auth.client().request_password_reset(request).await.unwrap();
            let mut names: Vec<String> = response.metadata().keys().map(|key| format!("{key:?}")).collect();
            names.sort();
            metadata.push(names);
        }
        assert!(metadata.windows(2).all(|pair| pair[0] == pair[1]), "{metadata:?}");
        assert_eq!(fields(forgot(&auth, "jane@@example.com").await), ["email"]);
        for _ in 0..6 {
            forgot(&auth, JANE).await.unwrap();
        }
        let sent = letters(&auth, 2 + 5).await;
        assert!(sent[2..].iter().all(|letter| letter.to == JANE));
        // A flood kills no link: the last one that was sent is good.
        reset(&auth, &sent[6].token(), NEW).await.unwrap();
        assert!(log(&auth).await.contains("\"too many letters\""));
        auth.clock.advance_ms(HOUR_MS);
        forgot(&auth, JANE).await.unwrap();
        letters(&auth, 2 + 5 + 1 + 1).await;
    })
    .await;
}

/// The least of several times is compared, because noise only adds.
#[tokio::test]
async fn asking_for_a_reset_takes_alike() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let mut least = [Duration::MAX; 2];
        for _ in 0..12 {
            for (least, email) in least.iter_mut().zip([JANE, "unknown@example.com"]) {
                let begin = Instant::now();
                forgot(&auth, email).await.unwrap();
                *least = begin.elapsed().min(*least);
            }
            // Five an hour.
            auth.clock.advance_ms(HOUR_MS);
        }
        let [known, unknown] = least;
        assert!(unknown > known / 2 && known > unknown / 2, "{known:?} and {unknown:?}");
    })
    .await;
}

#[tokio::test]
async fn a_link_of_a_disabled_account_is_dead() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        forgot(&auth, JANE).await.unwrap();
        let link = letter(&auth, 2).await.token();
        execute(&auth, "UPDATE users SET disabled_at = 1").await;
        assert_eq!(fields(reset(&auth, &link, NEW).await), ["token"]);
        let refused = change(&auth, &pair, PASSWORD, NEW).await;
        assert_eq!(refusal(refused), (Kind::NotFound, "NOT_FOUND".to_owned()));
    })
    .await;
}
