//! Passkeys: registration, logins with one alone, and as a second factor, with an authenticator that cheats.

use proto::auth::{
    DeletePasskeyRequest, FinishPasskeyRegistrationRequest, TokenPair, verify_second_factor_request::Proof,
};
use serde_json::json;
use service_kit::{Error, Kind};

use crate::{
    authenticator::{Authenticator, credential, options, text},
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refresh, refusal, with_token},
    second_factors_support::{Factors, JANE, challenge, claims, execute, refused, totp_on},
    secrets::dump,
};

const PASSKEY: [&str; 3] = ["hwk", "user", "mfa"];

fn invalid_credentials() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned())
}

async fn delete(factors: &Factors, token: &str, id: &str) -> Result<(), Error> {
    let request = with_token(token, DeletePasskeyRequest { passkey_id: id.into() });
    answer(factors.0.clone().delete_passkey(request).await)
}

/// Answers a challenge with an authenticator.
async fn verify(
    factors: &Factors,
    challenge: &str,
    authenticator: &mut Authenticator,
) -> Result<TokenPair, Error> {
    let started = factors.start_verification(challenge).await?;
    factors.verify(challenge, Proof::Passkey(authenticator.get(&started))).await
}

#[tokio::test]
async fn a_passkey_is_asked_for_made_and_listed() {
    on_both(async |auth: Auth| {
        let (factors, (user, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        let mut phone = Authenticator::new();
        let started = factors.start_registration(token).await.unwrap();
        let asked = options(&started);
        assert_eq!(asked["rp"], json!({"id": "localhost", "name": "Tollgate"}));
        assert_eq!((&asked["user"]["name"], &asked["excludeCredentials"]), (&json!(JANE), &json!([])));
        let selection = &asked["authenticatorSelection"];
        assert_eq!(
            (&selection["residentKey"], &selection["userVerification"]),
            (&json!("required"), &json!("required"))
        );
        let made = phone.create(&started);
        let added = factors.finish_registration(token, &started.ceremony, made).await.unwrap();
        assert_eq!(phone.handle.as_deref().map(hex), Some(user.id.replace('-', "")));
        assert_eq!(added.recovery_codes.len(), 10);

        let started = factors.start_registration(token).await.unwrap();
        let others = json!([{"type": "public-key", "id": text(&phone.credential_id)}]);
        assert_eq!(options(&started)["excludeCredentials"], others);
        let second = factors.register(token, &mut Authenticator::new()).await.unwrap();
        assert!(second.recovery_codes.is_empty());
        let list = factors.get(token).await.passkeys;
        assert_eq!(list, [added.passkey.unwrap(), second.passkey.unwrap()]);
        assert_eq!((list[0].name.as_str(), list[0].last_used_at.is_none()), ("Her phone", true));
        factors.login(&mut phone).await.unwrap();
        assert!(factors.get(token).await.passkeys[0].last_used_at.is_some());
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_passkey_alone_opens_a_session_however_often_the_password_was_guessed() {
    on_both(async |auth: Auth| {
        let (factors, (user, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let mut phone = Authenticator::new();
        let codes = factors.register(&pair.access_token, &mut phone).await.unwrap().recovery_codes;
        // Both the password and the codes of the second factor are guessed until they are locked.
        let (first, second) = (challenge(&auth, JANE).await, challenge(&auth, JANE).await);
        for challenge in [&first, &first, &first, &first, &first, &second, &second] {
            let guess = Proof::RecoveryCode("WRNGC-DE234".into());
            assert_eq!(refusal(factors.verify(challenge, guess).await), refused());
        }
        for _ in 0..8 {
            login(&auth.client(), JANE, "not-her-password").await.unwrap_err();
        }
        login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        let locked = factors.verify(&second, Proof::RecoveryCode(codes[0].clone())).await;
        assert_eq!(refusal(locked), refused());

        let started = factors.start_login().await;
        let asked = options(&started);
        assert_eq!((&asked["rpId"], &asked["userVerification"]), (&json!("localhost"), &json!("required")));
        assert_eq!(asked["allowCredentials"], json!([]));
        let pair = factors.finish_login(&started.ceremony, phone.get(&started)).await.unwrap();
        let claims = claims(&pair.access_token);
        assert_eq!((&claims["sub"], &claims["amr"]), (&json!(user.id), &json!(PASSKEY)));
        refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        // It is also a second factor that the guesses do not lock.
        verify(&factors, &second, &mut phone).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_passkey_is_a_second_factor() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let mut phone = Authenticator::new();
        factors.register(&pair.access_token, &mut phone).await.unwrap();
        let asked = login(&auth.client(), JANE, PASSWORD).await.unwrap().second_factor.unwrap();
        assert_eq!(asked.methods, ["RECOVERY_CODE", "PASSKEY"]);
        let started = factors.start_verification(&asked.challenge).await.unwrap();
        assert!(started.ceremony.is_empty());
        let allowed = json!([{"type": "public-key", "id": text(&phone.credential_id)}]);
        assert_eq!(options(&started)["allowCredentials"], allowed);

        // An authenticator may leave out whose key it is.
        phone.handle = None;
        let proof = Proof::Passkey(phone.get(&started));
        let pair = factors.verify(&asked.challenge, proof.clone()).await.unwrap();
        assert_eq!(claims(&pair.access_token)["amr"], json!(["pwd", "hwk", "user", "mfa"]));
        assert_eq!(refusal(factors.verify(&asked.challenge, proof).await), refused());
        assert_eq!(refusal(factors.start_verification(&asked.challenge).await), refused());
    })
    .await;
}

#[tokio::test]
async fn each_question_to_a_passkey_counts_once() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let mut phone = Authenticator::new();
        factors.register(&pair.access_token, &mut phone).await.unwrap();
        let (one, two) = (challenge(&auth, JANE).await, challenge(&auth, JANE).await);
        let started = factors.start_verification(&one).await.unwrap();
        let good = Proof::Passkey(phone.get(&started));
        // Nothing was asked for the other challenge; then something else was.
        assert_eq!(refusal(factors.verify(&two, good.clone()).await), refused());
        factors.start_verification(&two).await.unwrap();
        assert_eq!(refusal(factors.verify(&two, good.clone()).await), refused());
        // A wrong answer uses the question up, and so does a newer question.
        let mut other = Authenticator::new();
        let wrong = Proof::Passkey(other.get(&started));
        assert_eq!(refusal(factors.verify(&one, wrong).await), refused());
        assert_eq!(refusal(factors.verify(&one, good).await), refused());
        let replaced = factors.start_verification(&one).await.unwrap();
        let asked = factors.start_verification(&one).await.unwrap();
        assert_eq!(refusal(factors.verify(&one, Proof::Passkey(phone.get(&replaced))).await), refused());
        let asked_again = factors.start_verification(&one).await.unwrap();
        assert_ne!(options(&asked)["challenge"], options(&asked_again)["challenge"]);
        factors.verify(&one, Proof::Passkey(phone.get(&asked_again))).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_second_factor_is_the_accounts_own_passkey_and_honest() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let mut phone = Authenticator::new();
        factors.register(&pair.access_token, &mut phone).await.unwrap();
        let (_, joans) = auth.user("joan@example.com").await;
        let mut foreign = Authenticator::new();
        factors.register(&joans.access_token, &mut foreign).await.unwrap();
        let first = challenge(&auth, JANE).await;
        assert_eq!(refusal(verify(&factors, &first, &mut foreign).await), refused());
        let cheats: [fn(&mut Authenticator); 6] = [
            |phone| phone.verifies = false,
            |phone| phone.origin = "https://localhost.evil.example".into(),
            |phone| phone.rp_id = "evil.example".into(),
            |phone| phone.framed = true,
            |phone| phone.handle = Some(vec![7; 16]),
            |phone| phone.counter = 0,
        ];
        for cheat in cheats {
            let mut honest = (phone.origin.clone(), phone.rp_id.clone(), phone.handle.clone());
            let counter = phone.counter;
            cheat(&mut phone);
            let challenge = challenge(&auth, JANE).await;
            assert_eq!(refusal(verify(&factors, &challenge, &mut phone).await), refused());
            std::mem::swap(&mut phone.origin, &mut honest.0);
            std::mem::swap(&mut phone.rp_id, &mut honest.1);
            std::mem::swap(&mut phone.handle, &mut honest.2);
            (phone.verifies, phone.framed, phone.counter) = (true, false, counter + 1);
            // Honest, it is good; and the login that succeeds forgives those that did not.
            verify(&factors, &challenge, &mut phone).await.unwrap();
        }
        let garbage = Proof::Passkey(credential(json!({"id": 7})));
        assert_eq!(fields(factors.verify(&first, garbage).await), ["passkey"]);
    })
    .await;
}

#[tokio::test]
async fn a_new_passkey_must_be_what_was_asked_for() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        let cheats: [fn(&mut Authenticator); 11] = [
            |key| key.verifies = false,
            |key| key.origin = "https://localhost:8444".into(),
            |key| key.origin = "http://localhost:8443".into(),
            |key| key.origin = "https://app.localhost:8443".into(),
            |key| key.origin = "https://localhost:8443.evil.example".into(),
            |key| key.origin = "null".into(),
            |key| key.rp_id = "evil.example".into(),
            |key| key.rp_id = "app.localhost".into(),
            |key| key.framed = true,
            |key| key.discoverable = false,
            |key| key.credential_id = vec![7; 1_024],
        ];
        for (n, cheat) in cheats.into_iter().enumerate() {
            let mut key = Authenticator::new();
            cheat(&mut key);
            assert_eq!(fields(factors.register(token, &mut key).await), ["credential"], "{n}");
        }
        let started = factors.start_registration(token).await.unwrap();
        let garbage = credential(json!({"id": "x", "response": {}}));
        assert_eq!(
            fields(factors.finish_registration(token, &started.ceremony, garbage).await),
            ["credential"]
        );
        for name in ["", "  ", "a\u{7}b", &"n".repeat(101)] {
            let request = FinishPasskeyRegistrationRequest { name: name.into(), ..Default::default() };
            let request = with_token(token, request);
            assert_eq!(
                fields(answer(factors.0.clone().finish_passkey_registration(request).await)),
                ["name"]
            );
        }
        assert!(factors.get(token).await.passkeys.is_empty());
        let mut longest = Authenticator::new();
        longest.credential_id = vec![7; 1_023];
        factors.register(token, &mut longest).await.unwrap();
        factors.login(&mut longest).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_registration_is_its_starters_and_counts_once_for_five_minutes() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (_, joans) = auth.user("joan@example.com").await;
        let (token, joans) = (&pair.access_token, &joans.access_token);
        let over = (Kind::FailedPrecondition, "INVALID_CEREMONY".to_owned());
        let mut key = Authenticator::new();
        let started = factors.start_registration(token).await.unwrap();
        let (other, made) = (factors.start_registration(token).await.unwrap(), key.create(&started));
        // An answer to another question.
        assert_eq!(
            fields(factors.finish_registration(token, &other.ceremony, made.clone()).await),
            ["credential"]
        );
        factors.finish_registration(token, &started.ceremony, made.clone()).await.unwrap();
        let ended = factors.start_registration(token).await.unwrap();
        let of_a_login = factors.start_login().await.ceremony;
        for ceremony in [started.ceremony.as_str(), &other.ceremony, &of_a_login, "", "x", &"A".repeat(43)] {
            let answer = factors.finish_registration(token, ceremony, made.clone()).await;
            assert_eq!(refusal(answer), over, "{ceremony}");
        }
        let stolen = factors.start_registration(token).await.unwrap();
        let made = Authenticator::new().create(&stolen);
        assert_eq!(refusal(factors.finish_registration(joans, &stolen.ceremony, made).await), over);
        auth.clock.advance_ms(300_000);
        let made = Authenticator::new().create(&ended);
        assert_eq!(refusal(factors.finish_registration(token, &ended.ceremony, made).await), over);
    })
    .await;
}

#[tokio::test]
async fn a_credential_belongs_to_one_account() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (_, joans) = auth.user("joan@example.com").await;
        let mut key = Authenticator::new();
        let id = factors.register(&pair.access_token, &mut key).await.unwrap().passkey.unwrap().id;
        let taken = factors.register(&joans.access_token, &mut key).await;
        assert_eq!(refusal(taken), (Kind::AlreadyExists, "PASSKEY_EXISTS".into()));
        // Nobody else removes it, and it cannot be told from one that is not there.
        for (token, id) in
            [(&joans.access_token, id.as_str()), (&pair.access_token, "0198f0c5-0000-7000-8000-000000000000")]
        {
            assert_eq!(refusal(delete(&factors, token, id).await), (Kind::NotFound, "NOT_FOUND".into()));
        }
        assert_eq!(fields(delete(&factors, &pair.access_token, "x").await), ["passkeyId"]);
        assert_eq!(factors.get(&pair.access_token).await.recovery_codes_left, 10);
        delete(&factors, &pair.access_token, &id).await.unwrap();
        assert_eq!(factors.get(&pair.access_token).await, Default::default());
        assert_eq!(refusal(factors.login(&mut key).await), invalid_credentials());
        factors.register(&joans.access_token, &mut key).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn recovery_codes_stay_while_a_factor_does() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        totp_on(&auth, token).await;
        let added = factors.register(token, &mut Authenticator::new()).await.unwrap();
        assert!(added.recovery_codes.is_empty());
        let methods = login(&auth.client(), JANE, PASSWORD).await.unwrap().second_factor.unwrap().methods;
        assert_eq!(methods, ["TOTP", "RECOVERY_CODE", "PASSKEY"]);
        delete(&factors, token, &added.passkey.unwrap().id).await.unwrap();
        let left = factors.get(token).await;
        assert_eq!((left.totp, left.recovery_codes_left, left.passkeys.len()), (true, 10, 0));
    })
    .await;
}

#[tokio::test]
async fn an_account_has_twenty_passkeys_at_most() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        for _ in 0..18 {
            factors.register(token, &mut Authenticator::new()).await.unwrap();
        }
        // Four that were started in time, finished side by side: two places are left.
        let mut started = Vec::new();
        for _ in 0..4 {
            started.push(factors.start_registration(token).await.unwrap());
        }
        let tries: Vec<_> = started
            .into_iter()
            .map(|started| {
                let (factors, token) = (factors.clone(), token.clone());
                let made = Authenticator::new().create(&started);
                tokio::spawn(
                    async move { factors.finish_registration(&token, &started.ceremony, made).await },
                )
            })
            .collect();
        let full = (Kind::FailedPrecondition, "PASSKEY_LIMIT".to_owned());
        let mut added = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(_) => added += 1,
                refused => assert_eq!(refusal(refused), full),
            }
        }
        assert_eq!((added, factors.get(token).await.passkeys.len()), (2, 20));
        assert_eq!(refusal(factors.start_registration(token).await), full);
    })
    .await;
}

#[tokio::test]
async fn a_login_by_passkey_must_be_what_was_asked_for() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (_, joans) = auth.user("joan@example.com").await;
        let mut foreign = Authenticator::new();
        factors.register(&joans.access_token, &mut foreign).await.unwrap();
        let cheats: [fn(&mut Authenticator); 10] = [
            |key| key.verifies = false,
            |key| key.origin = "https://localhost:8444".into(),
            |key| key.origin = "http://localhost:8443".into(),
            |key| key.origin = "https://app.localhost:8443".into(),
            |key| key.rp_id = "evil.example".into(),
            |key| key.framed = true,
            |key| key.handle = None,
            |key| key.handle = Some(vec![7; 16]),
            |key| key.handle = Some(vec![7; 3]),
            |key| key.credential_id = vec![7; 32],
        ];
        let mut answers = Vec::new();
        for cheat in cheats {
            let mut key = Authenticator::new();
            factors.register(&pair.access_token, &mut key).await.unwrap();
            factors.login(&mut key).await.unwrap();
            cheat(&mut key);
            answers.push(factors.login(&mut key).await);
        }
        // Another key under her credential, and her key under another account's handle.
        let mut key = Authenticator::new();
        factors.register(&pair.access_token, &mut key).await.unwrap();
        let mut forged = Authenticator::new();
        (forged.credential_id, forged.handle) = (key.credential_id.clone(), key.handle.clone());
        answers.push(factors.login(&mut forged).await);
        std::mem::swap(&mut key.handle, &mut foreign.handle);
        answers.push(factors.login(&mut key).await);
        std::mem::swap(&mut key.handle, &mut foreign.handle);
        answers.push(factors.login(&mut Authenticator::new()).await);

        // The same answer again, for its own question and for another.
        let (started, other) = (factors.start_login().await, factors.start_login().await);
        let good = key.get(&started);
        factors.finish_login(&started.ceremony, good.clone()).await.unwrap();
        answers.push(factors.finish_login(&started.ceremony, good.clone()).await);
        answers.push(factors.finish_login(&other.ceremony, good).await);
        // A wrong answer uses the question up.
        answers.push(factors.finish_login(&other.ceremony, key.get(&other)).await);
        // Too late, and the question of a registration.
        let late = factors.start_login().await;
        auth.clock.advance_ms(300_000);
        answers.push(factors.finish_login(&late.ceremony, key.get(&late)).await);
        let registration = factors.start_registration(&pair.access_token).await.unwrap();
        answers.push(factors.finish_login(&registration.ceremony, key.get(&registration)).await);
        for garbage in ["", "x", &"A".repeat(43)] {
            answers.push(factors.finish_login(garbage, key.get(&late)).await);
        }

        let texts: Vec<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
        assert_eq!(refusal(answers.remove(0)), invalid_credentials());
        assert_eq!(fields(factors.finish_login("x", credential(json!({}))).await), ["credential"]);
        factors.login(&mut key).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_counter_that_goes_back_is_refused_and_told() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let told = async || dump(&auth).await.matches("passkey counter went back").count();
        let mut key = Authenticator::new();
        key.counter = 50;
        factors.register(&pair.access_token, &mut key).await.unwrap();
        factors.login(&mut key).await.unwrap();
        assert_eq!(told().await, 0);
        // The same again, and less.
        for counter in [50, 10] {
            key.counter = counter;
            assert_eq!(refusal(factors.login(&mut key).await), invalid_credentials(), "{counter}");
        }
        assert_eq!(told().await, 2);
        let challenge = challenge(&auth, JANE).await;
        key.counter = 49;
        assert_eq!(refusal(verify(&factors, &challenge, &mut key).await), refused());
        assert_eq!(told().await, 3);
        // A question from before is judged by the counter of now.
        let started = factors.start_verification(&challenge).await.unwrap();
        key.counter = 60;
        factors.login(&mut key).await.unwrap();
        key.counter = 60;
        assert_eq!(refusal(factors.verify(&challenge, Proof::Passkey(key.get(&started))).await), refused());
        assert_eq!(told().await, 4);
        verify(&factors, &challenge, &mut key).await.unwrap();
        // Many passkeys do not count at all.
        let mut still = Authenticator::new();
        still.counter = 0;
        factors.register(&pair.access_token, &mut still).await.unwrap();
        for _ in 0..3 {
            factors.login(&mut still).await.unwrap();
        }
        assert_eq!(told().await, 4);
    })
    .await;
}

#[tokio::test]
async fn disabled_and_unverified_accounts_do_not_get_in_with_a_passkey() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let mut key = Authenticator::new();
        factors.register(&pair.access_token, &mut key).await.unwrap();
        execute(&auth, "UPDATE {users} SET disabled_at = 1").await;
        assert_eq!(refusal(factors.login(&mut key).await), invalid_credentials());
        execute(&auth, "UPDATE {users} SET disabled_at = NULL, email_verified_at = NULL").await;
        factors.login(&mut key).await.unwrap();
        let auth = auth.restart(|config| config.account.verify_email = true).await;
        let factors = Factors::of(&auth);
        assert_eq!(refusal(factors.login(&mut key).await), invalid_credentials());
        execute(&auth, "UPDATE {users} SET email_verified_at = 1").await;
        factors.login(&mut key).await.unwrap();
    })
    .await;
}
