//! Second factors: their secrets, and what waits for them.

use serde_json::{Value, json};
use suite::client::{Client, text_at};

use super::{Canaries, post, posted};
use crate::{
    identity::code,
    support::{PASSWORD, authenticator, signed_up, unique},
};

const FACTOR: &str = "login/second-factor";

/// Logs in as far as a second factor is asked for; the challenge.
async fn challenge(anybody: &Client, email: &str, canaries: &mut Canaries) -> String {
    let asked = posted(anybody, "login", &json!({"email": email, "password": PASSWORD})).await;
    canaries.keep_at("a challenge", &asked, "/secondFactor/challenge")
}

fn keep_pair(pair: &Value, canaries: &mut Canaries) {
    for (name, pointer) in [("an access token", "/accessToken"), ("a refresh token", "/refreshToken")] {
        canaries.keep_at(name, pair, pointer);
    }
}

/// The step of one-time passwords that it is.
fn step() -> u64 {
    u64::try_from(service_kit::Clock::system().now_ms()).unwrap() / 30_000
}

/// One-time passwords and recovery codes. Six digits are too few to be looked for; the wrong ones here are
/// longer.
pub(super) async fn totp(anybody: &Client, canaries: &mut Canaries) {
    let (client, email, _, _) = signed_up(anybody).await;
    let wrong = unique("canary-code");
    canaries.keep("a wrong code", &wrong);
    let made = posted(&client, "second-factors/totp", &json!({})).await;
    let secret = canaries.keep_at("a secret of one-time passwords", &made, "/secret");
    canaries.keep_at("the same as URI", &made, "/uri");
    // Of tries there are three a step, here and at the login below.
    for body in [json!({"code": wrong}), json!({"code": [secret]}), json!({"secret": secret})] {
        canaries.refused(&post(&client, "second-factors/totp/confirm", &body).await);
    }
    let body = json!({"code": code(&secret, step())});
    let confirmed = posted(&client, "second-factors/totp/confirm", &body).await;
    let codes = keep_codes(&confirmed, "/codes", canaries);
    // Once on, there is no other secret to be had.
    canaries.answered(&client.get("/api/v1/auth/second-factors").await.unwrap());

    let challenge_1 = challenge(anybody, &email, canaries).await;
    let answer = async |body: Value| post(anybody, FACTOR, &body).await;
    for body in [
        json!({"challenge": challenge_1, "totpCode": wrong}),
        json!({"challenge": challenge_1, "totpCode": [wrong]}),
        json!({"challenge": codes[0], "recoveryCode": challenge_1}),
        json!({"challenge": challenge_1, "recoveryCode": codes[0], "totpCode": wrong}),
        json!({"challenge": challenge_1, "recoveryCode": wrong}),
    ] {
        canaries.refused(&answer(body).await);
    }
    let good = json!({"challenge": challenge_1, "totpCode": code(&secret, step() + 1)});
    keep_pair(&answer(good.clone()).await.expect(200).unwrap(), canaries);
    canaries.refused(&answer(good).await);
    for (used, status) in [(false, 200), (true, 401)] {
        let challenge = challenge(anybody, &email, canaries).await;
        let reply = answer(json!({"challenge": challenge, "recoveryCode": codes[1]})).await;
        let answered = reply.expect(status).unwrap();
        match used {
            false => keep_pair(&answered, canaries),
            true => canaries.refused(&reply),
        }
    }
    let renewed = posted(&client, "second-factors/recovery-codes", &json!({})).await;
    keep_codes(&renewed, "/codes", canaries);
}

/// Recovery codes as they are shown, and without their hyphen.
fn keep_codes(answer: &Value, pointer: &str, canaries: &mut Canaries) -> Vec<String> {
    let codes = suite::client::list_at(answer, pointer).unwrap();
    let codes: Vec<String> = codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
    assert_eq!(codes.len(), 10);
    for code in &codes {
        canaries.keep("a recovery code", code);
        canaries.keep("a recovery code", &code.replace('-', ""));
    }
    codes
}

/// Registration, login and second factor with a passkey.
pub(super) async fn passkeys(anybody: &Client, canaries: &mut Canaries) {
    let (client, email, _, _) = signed_up(anybody).await;
    let mut phone = authenticator(anybody);
    let path = "second-factors/passkeys";
    let started = start(&client, &format!("{path}/start"), canaries).await;
    let body = json!({"ceremony": started.ceremony, "credential": phone.create(&started), "name": "A phone"});
    let other = unique("canary-of-no-ceremony");
    canaries.keep("what is no ceremony", &other);
    for (field, wrong) in [
        ("credential", json!({"id": other})),
        ("credential", json!(started.ceremony)),
        ("ceremony", json!(other)),
        ("ceremony", json!([started.ceremony])),
    ] {
        let mut body = body.clone();
        body[field] = wrong;
        canaries.refused(&post(&client, path, &body).await);
    }
    keep_codes(&posted(&client, path, &body).await, "/recoveryCodes", canaries);
    canaries.refused(&post(&client, path, &body).await);

    let started = start(anybody, "passkeys/login/start", canaries).await;
    let finish = async |body: Value| post(anybody, "passkeys/login", &body).await;
    let body = json!({"ceremony": started.ceremony, "credential": phone.get(&started)});
    canaries.refused(&finish(json!({"ceremony": other, "credential": body["credential"]})).await);
    keep_pair(&finish(body.clone()).await.expect(200).unwrap(), canaries);
    canaries.refused(&finish(body).await);
    let started = start(anybody, "passkeys/login/start", canaries).await;
    let mut stranger = authenticator(anybody);
    stranger.handle = Some(other.clone().into_bytes());
    let body = json!({"ceremony": started.ceremony, "credential": stranger.get(&started)});
    canaries.refused(&finish(body).await);

    let challenge = challenge(anybody, &email, canaries).await;
    let asked = posted(anybody, &format!("{FACTOR}/passkey"), &json!({"challenge": challenge})).await;
    canaries.refused(&post(anybody, &format!("{FACTOR}/passkey"), &json!({"challenge": other})).await);
    canaries.refused(&post(anybody, &format!("{FACTOR}/passkey"), &json!({"ceremony": challenge})).await);
    let asked = ceremony(&asked);
    let proof = phone.get(&asked);
    canaries.refused(&post(anybody, FACTOR, &json!({"challenge": other, "passkey": proof})).await);
    let answer = json!({"challenge": challenge, "passkey": proof});
    keep_pair(&posted(anybody, FACTOR, &answer).await, canaries);
    canaries.refused(&post(anybody, FACTOR, &answer).await);
}

async fn start(client: &Client, path: &str, canaries: &mut Canaries) -> proto::auth::PasskeyCeremony {
    let started = posted(client, path, &json!({})).await;
    canaries.keep_at("a ceremony", &started, "/ceremony");
    ceremony(&started)
}

fn ceremony(started: &Value) -> proto::auth::PasskeyCeremony {
    proto::auth::PasskeyCeremony {
        ceremony: text_at(started, "/ceremony").unwrap_or_default().to_owned(),
        options: serde_json::from_value(started["options"].clone()).unwrap(),
    }
}
