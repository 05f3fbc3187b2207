//! Addresses that are verified by mailed links, where they must be and where they need not.

use std::time::{Duration, Instant};

use proto::auth::{
    GetProfileRequest, RequestEmailVerificationRequest, RequestPasswordResetRequest, ResetPasswordRequest,
    SignUpRequest, User, VerifyEmailRequest,
};
use service_kit::{Error, Kind};
use tonic::Request;

use crate::{
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refusal, sign_up, with_token},
    mail::{letter, letters},
    secrets::dump,
    sql::{execute, texts},
};

const JANE: &str = "Jane@example.com";
const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// A service where addresses must be verified, as production has it.
async fn strict(auth: Auth) -> Auth {
    auth.restart(|config| config.account.verify_email = true).await
}

async fn verify(auth: &Auth, token: &str) -> Result<(), Error> {
    answer(auth.client().verify_email(VerifyEmailRequest { token: token.into() }).await)
}

async fn ask_again(auth: &Auth, email: &str) -> Result<(), Error> {
    let request = RequestEmailVerificationRequest { email: email.into() };
    answer(auth.client().request_email_verification(request).await)
}

async fn forgot(auth: &Auth, email: &str) -> Result<(), Error> {
    let request = RequestPasswordResetRequest { email: email.into() };
    answer(auth.client().request_password_reset(request).await)
}

async fn choose(auth: &Auth, token: &str, password: &str) -> Result<(), Error> {
    let request = ResetPasswordRequest { token: token.into(), new_password: password.into() };
    answer(auth.client().reset_password(request).await)
}

fn as_given(email: &str) -> User {
    User { email: email.into(), name: "Jane Doe".into(), ..User::default() }
}

fn invalid_credentials() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned())
}

#[tokio::test]
async fn an_account_counts_once_its_address_is_verified() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        let made = answer(auth.client().sign_up(sign_up(JANE)).await).unwrap();
        assert_eq!(made, as_given(JANE));
        let letter = letter(&auth, 1).await;
        assert!(letter.link().starts_with("https://localhost:8443/verify-email#token="), "{}", letter.text);
        assert_eq!(refusal(login(&auth.client(), JANE, PASSWORD).await), invalid_credentials());
        // As a wrong password of an account that is not there.
        let unverified = login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        let unknown = login(&auth.client(), "joan@example.com", PASSWORD).await.unwrap_err();
        assert_eq!(format!("{unverified:?}"), format!("{unknown:?}"));

        verify(&auth, &letter.token()).await.unwrap();
        let pair = login(&auth.client(), JANE, PASSWORD).await.unwrap();
        let profile = with_token(&pair.access_token, GetProfileRequest {});
        let user = answer(auth.client().get_profile(profile).await).unwrap();
        assert!(user.email_verified && service_kit::id::is_id(&user.id), "{user:?}");
        // Once, however often it is clicked.
        assert_eq!(fields(verify(&auth, &letter.token()).await), ["token"]);
        let log = dump(&auth).await;
        for action in ["auth.signup", "auth.email.verify"] {
            assert!(log.contains(action), "{action} is not in the audit log");
        }
    })
    .await;
}

#[tokio::test]
async fn sign_up_answers_alike_for_every_address() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        let mut client = auth.client();
        for email in ["verified@example.com", "unverified@example.com", "disabled@example.com"] {
            answer(client.sign_up(sign_up(email)).await).unwrap();
        }
        execute(&auth, "UPDATE users SET email_verified_at = 1 WHERE email LIKE 'verified%'").await;
        execute(
            &auth,
            "UPDATE users SET email_verified_at = 1, disabled_at = 1 WHERE email LIKE 'disabled%'",
        )
        .await;
        letters(&auth, 3).await;
        let emails =
            ["unknown@example.com", "verified@example.com", "unverified@example.com", "disabled@example.com"];
        for email in emails {
            let response = client.sign_up(sign_up(email)).await.unwrap();
            let mut names: Vec<String> = response.metadata().keys().map(|key| format!("{key:?}")).collect();
            names.sort();
            assert_eq!(response.into_inner(), as_given(email));
            let other = client.sign_up(sign_up("another@example.com")).await.unwrap();
            let mut others: Vec<String> = other.metadata().keys().map(|key| format!("{key:?}")).collect();
            others.sort();
            assert_eq!(names, others, "{email}");
        }
        // The owner learns more: but for the disabled one, who gets nothing.
        let sent = letters(&auth, 3 + 3 + 4).await;
        let to = |email: &str| -> Vec<&str> {
            sent.iter().filter(|letter| letter.to == email).map(|letter| letter.subject.as_str()).collect()
        };
        let confirm = "Confirm your e-mail address";
        assert_eq!(to("unknown@example.com"), [confirm]);
        assert_eq!(to("unverified@example.com"), [confirm, confirm]);
        assert_eq!(to("verified@example.com"), [confirm, "You have an account already"]);
        assert_eq!(to("disabled@example.com"), [confirm]);
        // Nothing was changed for the one who has proven the address.
        assert!(!sent.iter().any(|letter| letter.subject != confirm && letter.text.contains("token")));
        login(&auth.client(), "verified@example.com", PASSWORD).await.unwrap();
    })
    .await;
}

/// The least of several times is compared, because noise only adds.
#[tokio::test]
async fn sign_up_takes_alike_for_every_address() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        answer(auth.client().sign_up(sign_up("taken@example.com")).await).unwrap();
        execute(&auth, "UPDATE users SET email_verified_at = 1").await;
        let mut least = [Duration::MAX; 2];
        for n in 0..12 {
            for (least, email) in
                least.iter_mut().zip(["taken@example.com", &format!("free-{n}@example.com")])
            {
                let begin = Instant::now();
                answer(auth.client().sign_up(sign_up(email)).await).unwrap();
                *least = begin.elapsed().min(*least);
            }
        }
        let [taken, free] = least;
        assert!(free > taken / 2 && taken > free / 2, "{taken:?} and {free:?}");
    })
    .await;
}

#[tokio::test]
async fn of_sign_ups_with_different_passwords_none_counts_until_the_owner_chooses() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        let thief = || SignUpRequest { password: "thief-of-addresses".into(), ..sign_up("jane@EXAMPLE.com") };
        // Whether the thief comes first or last.
        for (at, [first, last]) in
            [[sign_up(JANE), thief()], [thief(), sign_up(JANE)]].into_iter().enumerate()
        {
            execute(&auth, "DELETE FROM users").await;
            let before = at * 4;
            for request in [first, last] {
                assert_eq!(
                    answer(auth.client().sign_up(request.clone()).await).unwrap(),
                    as_given(&request.email)
                );
            }
            let [one, two] = letters(&auth, before + 2).await.split_off(before).try_into().unwrap();
            assert_eq!(two.subject, "Confirm your e-mail address and choose a password");
            assert_eq!(fields(verify(&auth, &one.token()).await), ["token"], "its password does not count");
            // A stranger can ask for another link; it proves the address, and no password.
            ask_again(&auth, JANE).await.unwrap();
            verify(&auth, &letter(&auth, before + 3).await.token()).await.unwrap();
            for password in [PASSWORD, "thief-of-addresses"] {
                assert_eq!(refusal(login(&auth.client(), JANE, password).await), invalid_credentials());
            }
            choose(&auth, &two.token(), "canary-0f-her-own").await.unwrap();
            login(&auth.client(), JANE, "canary-0f-her-own").await.unwrap();
            letters(&auth, before + 4).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_sign_up_that_comes_again_is_the_same_one() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        for _ in 0..3 {
            answer(auth.client().sign_up(sign_up(JANE)).await).unwrap();
        }
        verify(&auth, &letter(&auth, 3).await.token()).await.unwrap();
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_letters_proves_no_password_of_a_stranger() {
    on_both(async |auth: Auth| {
        let auth = strict(auth).await;
        for _ in 0..5 {
            answer(auth.client().sign_up(sign_up(JANE)).await).unwrap();
        }
        for _ in 0..5 {
            forgot(&auth, JANE).await.unwrap();
        }
        let links = letters(&auth, 10).await;
        // There are no more letters of either kind, and no stranger's password either.
        let thief = SignUpRequest { password: "thief-of-addresses".into(), ..sign_up(JANE) };
        assert_eq!(answer(auth.client().sign_up(thief).await).unwrap(), as_given(JANE));
        assert_eq!(fields(verify(&auth, &links[4].token()).await), ["token"]);
        assert_eq!(refusal(login(&auth.client(), JANE, "thief-of-addresses").await), invalid_credentials());
        choose(&auth, &links[9].token(), "canary-0f-her-own").await.unwrap();
        login(&auth.client(), JANE, "canary-0f-her-own").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn accounts_that_nobody_proves_are_gone_after_a_week() {
    on_both(async |auth: Auth| {
        // In use since addresses needed no proof: its session is over, and it stays.
        auth.user("used@example.com").await;
        execute(&auth, "DELETE FROM sessions").await;
        execute(&auth, "DELETE FROM known_devices").await;
        answer(auth.client().sign_up(sign_up(JANE)).await).unwrap();
        answer(auth.client().sign_up(sign_up("proven@example.com")).await).unwrap();
        execute(&auth, "UPDATE users SET email_verified_at = 1 WHERE email LIKE 'proven%'").await;
        auth.clock.advance_ms(7 * DAY_MS);
        // Where they need no proof they stay.
        let auth = strict(auth).await;
        answer(auth.client().sign_up(sign_up("late@example.com")).await).unwrap();
        auth.clock.advance_ms(1);
        let auth = strict(auth).await;
        let left = "SELECT email FROM users ORDER BY email";
        while texts(&auth, left).await.len() > 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(texts(&auth, left).await, ["late@example.com", "proven@example.com", "used@example.com"]);
        let log = texts(&auth, "SELECT body FROM audit_events WHERE body LIKE '%auth.account.expire%'").await;
        assert_eq!(log.len(), 1, "{log:?}");
        // The address is free again.
        answer(auth.client().sign_up(sign_up(JANE)).await).unwrap();
        assert_eq!(texts(&auth, left).await.len(), 4);
    })
    .await;
}

#[tokio::test]
async fn an_account_in_use_gives_way_to_nobody() {
    on_both(async |auth: Auth| {
        // Made, and used, while addresses needed no proof.
        auth.user(JANE).await;
        auth.clock.advance_ms(1);
        let auth = strict(auth).await;
        let request = SignUpRequest { password: "thief-of-accounts".into(), ..sign_up(JANE) };
        assert_eq!(answer(auth.client().sign_up(request).await).unwrap(), as_given(JANE));
        verify(&auth, &letter(&auth, 2).await.token()).await.unwrap();
        assert_eq!(refusal(login(&auth.client(), JANE, "thief-of-accounts").await), invalid_credentials());
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn links_expire_and_are_good_for_one_thing() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let request = RequestPasswordResetRequest { email: JANE.into() };
        answer(auth.client().request_password_reset(request).await).unwrap();
        let [verification, reset] = letters(&auth, 2).await.try_into().unwrap();
        let long = "A".repeat(500_000);
        for token in ["", "x", "'; DROP TABLE users; --", &long, &"A".repeat(43), &reset.token()] {
            let refused = verify(&auth, token).await.unwrap_err();
            let [violation] = refused.violations() else { panic!("{refused:?}") };
            let told = (violation.field.as_str(), violation.message.as_str());
            assert_eq!(told, ("token", "is not valid or has expired"));
        }
        auth.clock.advance_ms(DAY_MS);
        assert_eq!(fields(verify(&auth, &verification.token()).await), ["token"]);
        ask_again(&auth, JANE).await.unwrap();
        let again = letter(&auth, 3).await.token();
        auth.clock.advance_ms(DAY_MS - 1);
        verify(&auth, &again).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_disabled_account_is_not_verified() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        execute(&auth, "UPDATE users SET disabled_at = 1").await;
        assert_eq!(fields(verify(&auth, &letter(&auth, 1).await.token()).await), ["token"]);
        ask_again(&auth, JANE).await.unwrap();
        letters(&auth, 1).await;
        assert_eq!(refusal(login(&auth.client(), JANE, PASSWORD).await), invalid_credentials());
    })
    .await;
}

#[tokio::test]
async fn asking_for_a_link_tells_nothing_and_has_a_limit() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        auth.user("verified@example.com").await;
        let sent = letters(&auth, 2).await;
        verify(&auth, &sent[1].token()).await.unwrap();
        for email in [JANE, "unknown@example.com", "verified@example.com"] {
            ask_again(&auth, email).await.unwrap();
        }
        assert_eq!(fields(ask_again(&auth, "no address").await), ["email"]);
        // The sign-up was the first of five.
        for _ in 0..6 {
            ask_again(&auth, JANE).await.unwrap();
        }
        let sent = letters(&auth, 2 + 4).await;
        assert!(sent[2..].iter().all(|letter| letter.to == JANE));
        // A flood kills no link: the last one that was sent is good.
        verify(&auth, &sent[5].token()).await.unwrap();

        auth.user("joan@example.com").await;
        auth.clock.advance_ms(3_600 * 1_000);
        ask_again(&auth, "joan@example.com").await.unwrap();
        assert_eq!(letter(&auth, 8).await.to, "joan@example.com");
    })
    .await;
}

#[tokio::test]
async fn no_header_says_where_a_link_leads() {
    on_both(async |auth: Auth| {
        let auth = auth
            .restart(|config| config.account.public_url = "https://app.example.com/portal/".to_owned())
            .await;
        let mut request = Request::new(sign_up(JANE));
        for name in ["host", "x-forwarded-host", "x-forwarded-proto", "forwarded", "origin", "referer"] {
            request.metadata_mut().insert(name, "host=evil.example".parse().unwrap());
        }
        answer(auth.client().sign_up(request).await).unwrap();
        let letter = letter(&auth, 1).await;
        assert!(letter.link().starts_with("https://app.example.com/portal/verify-email#token="));
        assert!(!letter.raw.contains("evil"), "{}", letter.raw);
    })
    .await;
}
