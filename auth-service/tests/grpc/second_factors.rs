//! One-time passwords, recovery codes, and challenges of logins.

use proto::auth::{
    ReauthenticateRequest, RemoveTotpRequest, TokenPair, VerifySecondFactorRequest,
    session_service_client::SessionServiceClient, verify_second_factor_request::Proof,
};
use service_kit::{Error, Kind};

use crate::{
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refresh, refusal, with_token},
    second_factors_support::{App, Factors, JANE, STEP_MS, challenge, claims, refused, totp_on},
    secrets::{dump, hex},
};

fn recovery(code: &str) -> Proof {
    Proof::RecoveryCode(code.to_owned())
}

async fn remove_totp(factors: &Factors, token: &str) -> Result<(), Error> {
    answer(factors.0.clone().remove_totp(with_token(token, RemoveTotpRequest {})).await)
}

/// How many answers succeeded; all others were refused as they should be.
async fn successes(answers: Vec<tokio::task::JoinHandle<Result<TokenPair, Error>>>) -> usize {
    let mut won = 0;
    for answer in answers {
        match answer.await.unwrap() {
            Ok(_) => won += 1,
            refusal => assert_eq!(self::refusal(refusal), refused()),
        }
    }
    won
}

#[tokio::test]
async fn a_login_waits_for_the_second_factor() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        assert_eq!(factors.get(&pair.access_token).await, Default::default());
        let (app, codes) = totp_on(&auth, &pair.access_token).await;
        assert_eq!(codes.len(), 10);
        let set_up = factors.get(&pair.access_token).await;
        assert_eq!((set_up.totp, set_up.recovery_codes_left), (true, 10));

        let waiting = login(&auth.client(), JANE, PASSWORD).await.unwrap();
        let asked = waiting.second_factor.unwrap();
        assert_eq!((asked.methods, asked.expires_in), (vec!["TOTP".into(), "RECOVERY_CODE".into()], 300));
        assert!(waiting.access_token.is_empty() && waiting.refresh_token.is_empty());
        // The code that confirmed the secret is used up.
        let again = factors.verify(&asked.challenge, app.proof(&auth, 0)).await;
        assert_eq!(refusal(again), refused());
        let pair = factors.verify(&asked.challenge, app.proof(&auth, 1)).await.unwrap();
        assert_eq!(claims(&pair.access_token)["amr"], serde_json::json!(["pwd", "otp", "mfa"]));
        assert!(factors.get(&pair.access_token).await.totp);
        refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        // A wrong password is no way to a challenge.
        let wrong = login(&auth.client(), JANE, "not-her-password").await;
        assert_eq!(refusal(wrong).1, "INVALID_CREDENTIALS");
    })
    .await;
}

#[tokio::test]
async fn a_secret_counts_once_it_is_confirmed() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        assert_eq!(
            refusal(factors.confirm_totp(token, "000000").await),
            (Kind::FailedPrecondition, "TOTP_NOT_STARTED".into())
        );
        let first = factors.start_totp(token).await.unwrap();
        let second = factors.start_totp(token).await.unwrap();
        assert!(first.secret != second.secret && second.secret.len() == 32);
        assert!(
            second.uri.contains(&second.secret) && second.uri.contains("jane%40example.com"),
            "{second:?}"
        );
        // Nothing is set up yet, and the first secret is void.
        assert!(!login(&auth.client(), JANE, PASSWORD).await.unwrap().access_token.is_empty());
        let app = App::new(&second);
        for bad in ["", "12345", "1234567", "abcdef"] {
            assert_eq!(fields(factors.confirm_totp(token, bad).await), ["code"], "{bad}");
            auth.clock.advance_ms(STEP_MS);
        }
        let old = App::new(&first).code(&auth, 0);
        assert_eq!(fields(factors.confirm_totp(token, &old).await), ["code"]);
        assert_eq!(factors.confirm_totp(token, &app.code(&auth, 0)).await.unwrap().len(), 10);
        for again in [
            refusal(factors.confirm_totp(token, &app.code(&auth, 1)).await),
            refusal(factors.start_totp(token).await),
        ] {
            assert_eq!(again, (Kind::AlreadyExists, "TOTP_EXISTS".into()));
        }
    })
    .await;
}

#[tokio::test]
async fn confirming_is_no_way_to_guess() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let app = App::new(&factors.start_totp(&pair.access_token).await.unwrap());
        for code in [app.wrong(&auth), app.wrong(&auth), app.wrong(&auth), app.code(&auth, 0)] {
            assert_eq!(fields(factors.confirm_totp(&pair.access_token, &code).await), ["code"]);
        }
        auth.clock.advance_ms(STEP_MS);
        factors.confirm_totp(&pair.access_token, &app.code(&auth, 0)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_step_before_and_after_count_and_no_other() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (app, _) = totp_on(&auth, &pair.access_token).await;
        for (steps, right) in [(-2, false), (2, false), (-1, true), (1, true), (0, true)] {
            auth.clock.advance_ms(10 * STEP_MS);
            let challenge = challenge(&auth, JANE).await;
            let answer = factors.verify(&challenge, app.proof(&auth, steps)).await;
            assert_eq!(answer.is_ok(), right, "{steps}: {answer:?}");
        }
        // A step is used up together with all before it.
        auth.clock.advance_ms(10 * STEP_MS);
        factors.verify(&challenge(&auth, JANE).await, app.proof(&auth, 1)).await.unwrap();
        let challenge = challenge(&auth, JANE).await;
        for steps in [1, 0, -1] {
            assert_eq!(refusal(factors.verify(&challenge, app.proof(&auth, steps)).await), refused());
        }
    })
    .await;
}

/// Twenty uses of one code, for several challenges, at two instances.
#[tokio::test]
async fn of_twenty_uses_of_one_code_one_counts() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let (app, _) = totp_on(&auth, &pair.access_token).await;
        let second = auth.launch().await;
        let instances = [Factors::of(&auth), Factors::at(&auth, &second)];
        let mut challenges = Vec::new();
        for _ in 0..4 {
            challenges.push(challenge(&auth, JANE).await);
        }
        let answers = (0..20)
            .map(|n| {
                let (factors, challenge) = (instances[n % 2].clone(), challenges[n / 2 % 4].clone());
                let proof = app.proof(&auth, 1);
                tokio::spawn(async move { factors.verify(&challenge, proof).await })
            })
            .collect();
        assert_eq!(successes(answers).await, 1);
        second.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn three_wrong_codes_close_a_step() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (app, _) = totp_on(&auth, &pair.access_token).await;
        let first = challenge(&auth, JANE).await;
        let wrong = || Proof::TotpCode(app.wrong(&auth));
        for _ in 0..2 {
            assert_eq!(refusal(factors.verify(&first, wrong()).await), refused());
        }
        // Two wrong ones do no harm.
        factors.verify(&first, app.proof(&auth, 1)).await.unwrap();
        auth.clock.advance_ms(2 * STEP_MS);
        let (first, second) = (challenge(&auth, JANE).await, challenge(&auth, JANE).await);
        for challenge in [&first, &first, &second] {
            assert_eq!(refusal(factors.verify(challenge, wrong()).await), refused());
        }
        for challenge in [&first, &second] {
            assert_eq!(refusal(factors.verify(challenge, app.proof(&auth, 0)).await), refused());
        }
        auth.clock.advance_ms(STEP_MS);
        factors.verify(&second, app.proof(&auth, 0)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_challenge_dies_of_tries_of_age_and_of_use() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (app, codes) = totp_on(&auth, &pair.access_token).await;
        let mut answers = Vec::new();

        let tried = challenge(&auth, JANE).await;
        for _ in 0..5 {
            answers.push(factors.verify(&tried, recovery("WRNGC-DE234")).await);
            auth.clock.advance_ms(1_000);
        }
        answers.push(factors.verify(&tried, recovery(&codes[0])).await);

        let old = challenge(&auth, JANE).await;
        auth.clock.advance_ms(300_000 - 1);
        let late = challenge(&auth, JANE).await;
        factors.verify(&old, recovery(&codes[0])).await.unwrap();
        auth.clock.advance_ms(300_000);
        answers.push(factors.verify(&late, recovery(&codes[1])).await);

        answers.push(factors.verify(&old, recovery(&codes[1])).await);
        for garbage in ["", "x", &"A".repeat(43), &late[1..], &pair.refresh_token] {
            answers.push(factors.verify(garbage, app.proof(&auth, 0)).await);
        }
        let texts: Vec<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
        assert_eq!(refusal(answers.remove(0)), refused());

        let none = VerifySecondFactorRequest { challenge: late, ..Default::default() };
        assert_eq!(fields(answer(factors.0.clone().verify_second_factor(none).await)), ["proof"]);
    })
    .await;
}

#[tokio::test]
async fn a_challenge_is_met_once_also_side_by_side() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let (_, codes) = totp_on(&auth, &pair.access_token).await;
        let second = auth.launch().await;
        let instances = [Factors::of(&auth), Factors::at(&auth, &second)];
        let challenge = challenge(&auth, JANE).await;
        let answers = (0..5)
            .map(|n| {
                let (factors, challenge) = (instances[n % 2].clone(), challenge.clone());
                let proof = recovery(&codes[n]);
                tokio::spawn(async move { factors.verify(&challenge, proof).await })
            })
            .collect();
        assert_eq!(successes(answers).await, 1);
        second.shutdown().await;
        // The codes that lost are not used up.
        assert_eq!(Factors::of(&auth).get(&pair.access_token).await.recovery_codes_left, 9);
    })
    .await;
}

#[tokio::test]
async fn wrong_codes_wait_like_wrong_passwords_and_challenges_do_not_help() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (_, codes) = totp_on(&auth, &pair.access_token).await;
        let (first, second) = (challenge(&auth, JANE).await, challenge(&auth, JANE).await);
        for challenge in [&first, &first, &first, &first, &first, &second] {
            assert_eq!(refusal(factors.verify(challenge, recovery("WRNGC-DE234")).await), refused());
        }
        // Six wrong: now the right one waits too, without using up tries of the challenge.
        for _ in 0..6 {
            assert_eq!(refusal(factors.verify(&second, recovery(&codes[0])).await), refused());
        }
        auth.clock.advance_ms(1_000);
        factors.verify(&second, recovery(&codes[0])).await.unwrap();
        // Right, and forgiven.
        let third = challenge(&auth, JANE).await;
        for _ in 0..4 {
            assert_eq!(refusal(factors.verify(&third, recovery("WRNGC-DE234")).await), refused());
        }
        factors.verify(&third, recovery(&codes[1])).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn recovery_codes_count_once_in_any_order_as_one_types_them() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (_, codes) = totp_on(&auth, &pair.access_token).await;
        let typed = [
            codes[7].clone(),
            codes[0].to_lowercase(),
            codes[9].replace('-', ""),
            codes[3].to_lowercase().replace('-', " "),
        ];
        for (left, typed) in (0..10).rev().zip(&typed) {
            let (first, second) = (challenge(&auth, JANE).await, challenge(&auth, JANE).await);
            let pair = factors.verify(&first, recovery(typed)).await.unwrap();
            assert_eq!(claims(&pair.access_token)["amr"], serde_json::json!(["pwd", "otp", "mfa"]));
            assert_eq!(factors.get(&pair.access_token).await.recovery_codes_left, left);
            assert_eq!(refusal(factors.verify(&second, recovery(typed)).await), refused());
        }
    })
    .await;
}

#[tokio::test]
async fn of_twenty_uses_of_one_recovery_code_one_counts() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        let (_, codes) = totp_on(&auth, &pair.access_token).await;
        let second = auth.launch().await;
        let instances = [Factors::of(&auth), Factors::at(&auth, &second)];
        let mut challenges = Vec::new();
        for _ in 0..4 {
            challenges.push(challenge(&auth, JANE).await);
        }
        // Few at a time: each is hashed, and more than there are places would be turned away.
        let mut won = 0;
        for round in 0..5 {
            let answers = (0..4)
                .map(|n| {
                    let factors = instances[(n + round) % 2].clone();
                    let (challenge, proof) = (challenges[n].clone(), recovery(&codes[0]));
                    tokio::spawn(async move { factors.verify(&challenge, proof).await })
                })
                .collect();
            won += successes(answers).await;
        }
        assert_eq!(won, 1);
        second.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn new_recovery_codes_void_the_old_ones() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        let none = (Kind::FailedPrecondition, "NO_SECOND_FACTOR".to_owned());
        assert_eq!(refusal(factors.renew(token).await), none);
        // A secret that is not confirmed is no factor.
        factors.start_totp(token).await.unwrap();
        assert_eq!(refusal(factors.renew(token).await), none);
        let (_, old) = totp_on(&auth, token).await;
        factors.verify(&challenge(&auth, JANE).await, recovery(&old[0])).await.unwrap();
        let new = factors.renew(token).await.unwrap().codes;
        assert_eq!((new.len(), factors.get(token).await.recovery_codes_left), (10, 10));
        let challenge = challenge(&auth, JANE).await;
        assert_eq!(refusal(factors.verify(&challenge, recovery(&old[1])).await), refused());
        factors.verify(&challenge, recovery(&new[9])).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_last_factor_takes_the_recovery_codes_with_it() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        let (_, codes) = totp_on(&auth, token).await;
        let waiting = challenge(&auth, JANE).await;
        for _ in 0..2 {
            remove_totp(&factors, token).await.unwrap();
        }
        assert_eq!(factors.get(token).await, Default::default());
        assert_eq!(refusal(factors.verify(&waiting, recovery(&codes[0])).await), refused());
        assert!(!login(&auth.client(), JANE, PASSWORD).await.unwrap().access_token.is_empty());
        // Set up again, with new codes.
        let (_, again) = totp_on(&auth, token).await;
        assert!(again.len() == 10 && again != codes);
    })
    .await;
}

#[tokio::test]
async fn settings_need_a_recent_proof() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        auth.clock.advance_ms(601_000);
        let pair = refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        let token = &pair.access_token;
        assert_eq!(factors.get(token).await, Default::default());
        for refused in [
            refusal(factors.start_totp(token).await),
            refusal(factors.confirm_totp(token, "000000").await),
            refusal(remove_totp(&factors, token).await),
            refusal(factors.renew(token).await),
            refusal(factors.start_registration(token).await),
        ] {
            assert_eq!(refused, (Kind::Unauthenticated, "STEP_UP_REQUIRED".into()));
        }
    })
    .await;
}

/// Each change makes one letter and one entry; what changes nothing makes none.
#[tokio::test]
async fn the_owner_is_told_of_every_change() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let token = &pair.access_token;
        // How many letters were posted, and how often the log tells of an action.
        let seen = async |action: &str| {
            let dump = dump(&auth).await;
            let letters =
                dump.lines().find(|line| line.starts_with("outbox_heads: ") && !line.contains("aside"));
            let letters: String =
                letters.unwrap_or("0").chars().filter(char::is_ascii_digit).collect::<String>();
            let entries = dump.lines().filter(|line| line.starts_with("audit_events: "));
            let told = entries.filter(|line| line.contains(action)).count();
            (letters.parse::<usize>().unwrap(), told)
        };
        let before = seen("auth.totp.add").await.0;
        let (app, codes) = totp_on(&auth, token).await;
        assert_eq!(seen("auth.totp.add").await, (before + 1, 1));
        factors.renew(token).await.unwrap();
        assert_eq!(seen("auth.recovery-codes.renew").await, (before + 2, 1));
        let proven = challenge(&auth, JANE).await;
        assert_eq!(refusal(factors.verify(&proven, recovery(&codes[0])).await), refused());
        factors.verify(&proven, app.proof(&auth, 1)).await.unwrap();
        // One entry for the wrong code, one for the right one.
        assert_eq!(seen("auth.login.second-factor").await, (before + 2, 2));
        for _ in 0..2 {
            remove_totp(&factors, token).await.unwrap();
        }
        assert_eq!(seen("auth.totp.remove").await, (before + 3, 1));
        let (_, codes) = totp_on(&auth, token).await;
        factors.verify(&challenge(&auth, JANE).await, recovery(&codes[0])).await.unwrap();
        assert_eq!(seen("auth.recovery-codes.use").await, (before + 5, 1));
    })
    .await;
}

#[tokio::test]
async fn the_database_holds_no_second_factor_in_clear() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let secret = factors.start_totp(&pair.access_token).await.unwrap();
        let app = App::new(&secret);
        let codes = factors.confirm_totp(&pair.access_token, &app.code(&auth, 0)).await.unwrap();
        let challenge = challenge(&auth, JANE).await;
        factors.verify(&challenge, recovery("WRNGC-DE234")).await.unwrap_err();

        let dump = dump(&auth).await;
        for there in ["totp: ", "recovery_codes: ", "pending: ", "audit_events: "] {
            assert!(dump.contains(there), "the dump is not one: {there}");
        }
        let raw = totp_rs::Secret::try_from_base32(&secret.secret).unwrap();
        let mut hidden = vec![secret.secret.clone(), hex(raw.as_bytes()), challenge.clone()];
        hidden.push("throttle_key".to_owned());
        hidden.extend(["WRNGC-DE234".to_owned(), "WRNGCDE234".to_owned()]);
        hidden.extend(codes.iter().flat_map(|code| [code.clone(), code.replace('-', "")]));
        for text in hidden {
            let forms = [text.to_lowercase(), hex(text.as_bytes()), hex(text.to_lowercase().as_bytes())];
            assert!(forms.iter().all(|form| !dump.contains(form)), "{text} is stored");
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_proof_of_the_caller_needs_the_second_factor_too() {
    on_both(async |auth: Auth| {
        let (factors, (_, pair)) = (Factors::of(&auth), auth.user(JANE).await);
        let (app, _) = totp_on(&auth, &pair.access_token).await;
        auth.clock.advance_ms(601_000);
        let pair = refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        let old = refusal(factors.renew(&pair.access_token).await);
        assert_eq!(old, (Kind::Unauthenticated, "STEP_UP_REQUIRED".into()));

        let mut sessions = SessionServiceClient::new(auth.upstream("edge-proxy"));
        let request = with_token(&pair.access_token, ReauthenticateRequest { password: PASSWORD.into() });
        let waiting = sessions.reauthenticate(request).await.unwrap().into_inner();
        assert!(waiting.access_token.is_empty());
        let challenge = waiting.second_factor.unwrap().challenge;
        let wrong = Proof::TotpCode(app.wrong(&auth));
        assert_eq!(refusal(factors.verify(&challenge, wrong).await), refused());
        let proven = factors.verify(&challenge, app.proof(&auth, 0)).await.unwrap();
        assert!(proven.refresh_token.is_empty());
        let (before, after) = (claims(&pair.access_token), claims(&proven.access_token));
        assert_eq!(
            (&after["sid"], &after["amr"]),
            (&before["sid"], &serde_json::json!(["pwd", "otp", "mfa"]))
        );
        assert_eq!(after["auth_time"], auth.clock.now_ms() / 1_000);
        factors.renew(&proven.access_token).await.unwrap();
        // The session goes on as it was.
        refresh(&auth.client(), &pair.refresh_token).await.unwrap();
    })
    .await;
}
