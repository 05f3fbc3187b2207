//! Every way to log in and to stay so, right and wrong, but second factors.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use suite::client::{Client, Reply, text_at};

use super::{Canaries, post, posted};
use crate::{
    identity::token_in_mail,
    support::{Account, Provider, origin, signed_up, unique, wait_for},
};

const PROVIDER: &str = "providers/local";

/// A password that nobody else has, kept.
fn password(name: &'static str, canaries: &mut Canaries) -> String {
    let password = unique("canary-password");
    canaries.keep(name, &password);
    password
}

/// Keeps what a login answered; the client of its access token.
fn keep_pair(anybody: &Client, pair: &Value, canaries: &mut Canaries) -> Client {
    let access = text_at(pair, "/accessToken").unwrap();
    canaries.keep_token("an access token", access, '.');
    for (name, pointer) in [("a refresh token", "/refreshToken"), ("a device token", "/deviceToken")] {
        // After a refresh, and where they are cookies, there is none.
        if !text_at(pair, pointer).unwrap().is_empty() {
            canaries.keep_at(name, pair, pointer);
        }
    }
    anybody.with_token(access)
}

/// Sign-up, login, refresh, reuse, logout; the password changed, forgotten, reset; the address verified.
pub(super) async fn passwords(anybody: &Client, mail: &Path, canaries: &mut Canaries) {
    let (first, wrong) = (password("a password", canaries), password("a wrong password", canaries));
    let email = format!("{}@example.com", unique("u"));
    let body = json!({"email": email, "password": first, "name": "U"});
    posted(anybody, "signup", &body).await;
    canaries.refused(&post(anybody, "signup", &body).await);
    let short = json!({"email": format!("x{email}"), "password": first.repeat(8), "name": "U"});
    canaries.refused(&post(anybody, "signup", &short).await);
    canaries.refused(&post(anybody, "login", &json!({"email": email, "password": wrong})).await);
    // In the wrong place, in the wrong shape, and broken off.
    for body in [
        json!({"email": email, "password": [wrong]}),
        json!({"email": email, "password": {"value": wrong}}),
        json!({"email": email, "password": first, "remember": wrong}),
        json!(wrong),
    ] {
        canaries.refused(&post(anybody, "login", &body).await);
    }
    let half = format!("{{\"password\": \"{first}\", \"email\": ");
    let broken = anybody.send(Method::POST, "/api/v1/auth/login", "application/json", half).await.unwrap();
    canaries.refused(&broken);

    let right = json!({"email": email, "password": first});
    let pair = posted(anybody, "login", &right).await;
    let client = keep_pair(anybody, &pair, canaries);
    // A device that is known, one that is not, and a token that is none of a device.
    for device in [text_at(&pair, "/deviceToken").unwrap(), &wrong] {
        let body = json!({"email": email, "password": first, "deviceToken": device});
        keep_pair(anybody, &posted(anybody, "login", &body).await, canaries);
    }
    let rotate = async |token: &str| post(anybody, "refresh", &json!({"refreshToken": token})).await;
    let refresh = text_at(&pair, "/refreshToken").unwrap();
    let next = rotate(refresh).await.expect(200).unwrap();
    keep_pair(anybody, &next, canaries);
    let forged = format!("{}x", client.token().unwrap());
    canaries.refused(&anybody.with_token(&forged).get("/api/v1/auth/profile").await.unwrap());
    canaries.refused(&rotate(refresh).await);
    canaries.refused(&rotate(text_at(&next, "/refreshToken").unwrap()).await);

    changed(anybody, mail, &email, &first, canaries).await;
}

/// The password of an account, changed in every way.
async fn changed(anybody: &Client, mail: &Path, email: &str, first: &str, canaries: &mut Canaries) {
    let (second, third) = (password("a new password", canaries), password("a reset password", canaries));
    let nonsense = unique("canary-token-that-was-never-mailed");
    canaries.keep("a token that was never mailed", &nonsense);
    let pair = posted(anybody, "login", &json!({"email": email, "password": first})).await;
    let client = keep_pair(anybody, &pair, canaries);
    canaries.refused(&post(&client, "reauthenticate", &json!({"password": second})).await);
    keep_pair(anybody, &posted(&client, "reauthenticate", &json!({"password": first})).await, canaries);
    for (current, new) in [(&*second, &*third), (first, first), (first, &first.repeat(8)), (first, email)] {
        let body = json!({"currentPassword": current, "newPassword": new});
        canaries.refused(&post(&client, "password", &body).await);
    }
    posted(&client, "password", &json!({"currentPassword": first, "newPassword": second})).await;
    posted(&client, "logout", &json!({})).await;

    // The first one came with the sign-up.
    let mut letters = 1;
    canaries.keep("a token in a letter", &token_in_mail(mail, email, 0).unwrap());
    let mut mailed = async |path: &str, canaries: &mut Canaries| {
        posted(anybody, path, &json!({"email": email})).await;
        let token = wait_for(path, async || token_in_mail(mail, email, letters)).await;
        letters += 1;
        canaries.keep("a token in a letter", &token);
        token
    };
    let token = mailed("email/verification", canaries).await;
    for body in [json!({"token": nonsense}), json!({"token": {"is": token}}), json!({"email": token})] {
        canaries.refused(&post(anybody, "email/verify", &body).await);
    }
    posted(anybody, "email/verify", &json!({"token": token})).await;
    canaries.refused(&post(anybody, "email/verify", &json!({"token": token})).await);

    let old = mailed("password/forgot", canaries).await;
    let token = mailed("password/forgot", canaries).await;
    let reset = async |token: &Value, password: &Value| {
        post(anybody, "password/reset", &json!({"token": token, "newPassword": password})).await
    };
    for (token, password) in [
        (json!(nonsense), json!(third)),
        (json!(old), json!(third)),
        (json!([token]), json!(third)),
        (json!(third), json!(token)),
        (json!(token), json!(third.repeat(8))),
    ] {
        canaries.refused(&reset(&token, &password).await);
    }
    reset(&json!(token), &json!(third)).await.expect(204).unwrap();
    canaries.refused(&reset(&json!(token), &json!(third)).await);
}

/// A browser's login, in which refresh token and device token are cookies.
pub(super) async fn cookies(anybody: &Client, canaries: &mut Canaries) {
    let (_, email, _, _) = signed_up(anybody).await;
    let browser = anybody.with_header("origin", origin(anybody)).unwrap();
    let body = json!({"email": email, "password": crate::support::PASSWORD, "cookie": true});
    let reply = post(&browser, "login", &body).await;
    keep_pair(anybody, &reply.expect(200).unwrap(), canaries);
    let jar = keep_cookies(&reply, canaries);
    assert_eq!(jar.split("; ").count(), 2, "a refresh token and a device token");
    let with = |client: &Client, jar: &str| client.with_header("cookie", jar).unwrap();
    // From elsewhere, with a cookie twice, and in the wrong place.
    canaries.refused(&post(&with(anybody, &jar), "refresh", &json!({})).await);
    canaries.refused(&post(&with(&browser, &format!("{jar}; {jar}")), "refresh", &json!({})).await);
    let secret = jar.split(['=', ';']).nth(1).unwrap();
    canaries.refused(&post(&browser, "refresh", &json!({"cookie": secret})).await);
    let next = post(&with(&browser, &jar), "refresh", &json!({})).await;
    let client = keep_pair(&browser, &next.expect(200).unwrap(), canaries);
    let last = keep_cookies(&next, canaries);
    canaries.refused(&post(&with(&browser, &jar), "refresh", &json!({})).await);
    canaries.answered(&post(&with(&client, &last), "logout", &json!({})).await);
}

/// The cookies that an answer sets, their values kept; as a browser sends them.
fn keep_cookies(reply: &Reply, canaries: &mut Canaries) -> String {
    let set = reply.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap());
    let pairs: Vec<&str> = set.map(|cookie| cookie.split(';').next().unwrap()).collect();
    for pair in &pairs {
        canaries.keep("a cookie", pair.split_once('=').unwrap().1);
    }
    pairs.join("; ")
}

/// A login with a provider, and its failures.
pub(super) async fn providers(anybody: &Client, provider: &Provider, canaries: &mut Canaries) {
    let start = async |canaries: &mut Canaries| {
        let started = posted(anybody, &format!("{PROVIDER}/start"), &json!({})).await;
        for (name, pointer) in [("a state", "/state"), ("a binding", "/binding")] {
            canaries.keep_at(name, &started, pointer);
        }
        let url: reqwest::Url = text_at(&started, "/authorizationUrl").unwrap().parse().unwrap();
        let nonce = url.query_pairs().find(|(key, _)| key == "nonce").unwrap().1.into_owned();
        canaries.keep("a nonce", &nonce);
        let (code, state) = provider.browse(&started).await;
        canaries.keep("an authorization code", &code);
        json!({"state": state, "code": code, "binding": started["binding"]})
    };
    let finish = async |body: &Value| post(anybody, &format!("{PROVIDER}/finish"), body).await;
    let good = start(canaries).await;
    keep_pair(anybody, &finish(&good).await.expect(200).unwrap(), canaries);
    canaries.refused(&finish(&good).await);
    let nonsense = unique("canary-of-no-provider");
    canaries.keep("what no provider said", &nonsense);
    for field in ["state", "code", "binding"] {
        for wrong in [json!(nonsense), json!([good["code"]]), json!("")] {
            let mut body = start(canaries).await;
            body[field] = wrong;
            canaries.refused(&finish(&body).await);
        }
    }
    // A provider that fails, or says what it must not.
    for fault in provider.faults() {
        let body = start(canaries).await;
        let reply = provider.with_fault(fault, finish(&body)).await;
        assert!(reply.status >= 400, "{fault:?}: {}", reply.status);
        canaries.answered(&reply);
    }
}

/// Personal tokens and keys of service accounts.
pub(super) async fn programs(account: &Account, anybody: &Client, canaries: &mut Canaries) {
    let (owner, organization) = (&account.client, &account.organization);
    let path = format!("/api/v1/organizations/{organization}/service-accounts");
    let made = owner.post(&path, &json!({"name": "ci", "role": "viewer"})).await.unwrap();
    let robot = text_at(&made.expect(201).unwrap(), "/id").unwrap().to_owned();
    let keys = format!("/api/v1/service-accounts/{robot}/keys");
    for (name, path) in [("a personal token", "/api/v1/auth/tokens"), ("a service account's key", &*keys)] {
        let key = unique("canary-idempotency-key");
        canaries.keep("an idempotency key", &key);
        let keyed = owner.with_header("idempotency-key", &key).unwrap();
        let made = async || {
            keyed.post(path, &json!({"name": "n", "scopes": ["*"]})).await.unwrap().expect(201).unwrap()
        };
        let (made, again) = (made().await, made().await);
        assert_eq!(made["token"], again["token"]);
        let (id, token) = (text_at(&made, "/id").unwrap(), text_at(&made, "/token").unwrap());
        canaries.keep_token(name, token, '_');
        let program = anybody.with_token(token);
        program.get(&format!("{path}?limit=1")).await.unwrap();
        canaries.refused(&program.post(path, &json!({"name": token})).await.unwrap());
        canaries.refused(&owner.post(path, &json!({"name": "n", "scopes": [token]})).await.unwrap());
        // A checksum that is wrong, and a token like it that does not exist.
        canaries.refused(&anybody.with_token(&format!("{token}0")).get(path).await.unwrap());
        let (other, _) = service_kit::opaque::issue(&token[2..5]);
        let other = secrecy::ExposeSecret::expose_secret(&other);
        canaries.keep_token("a token of nobody", other, '_');
        canaries.refused(&anybody.with_token(other).get(path).await.unwrap());
        for shown in [owner.get(path).await.unwrap(), owner.get("/api/v1/auth/audit").await.unwrap()] {
            canaries.answered(&shown);
        }
        owner.delete(&format!("{path}/{id}")).await.unwrap().expect(204).unwrap();
        wait_for("the token is dead", async || {
            let reply = program.get(path).await.unwrap();
            (reply.status == 401).then(|| canaries.refused(&reply))
        })
        .await;
    }
}

/// A device that is let in, and one that is not.
pub(super) async fn devices(account: &Account, anybody: &Client, canaries: &mut Canaries) {
    for approve in [true, false] {
        let asked = posted(anybody, "device", &json!({"clientId": "canary"})).await;
        let device = canaries.keep_at("a device code", &asked, "/deviceCode");
        let user_code = text_at(&asked, "/userCode").unwrap();
        // Whoever reads the database learns nothing by it: it only counts for who has logged in.
        let typed = user_code.replace('-', " ");
        for shape in [user_code, &typed, &typed.replace(' ', "")] {
            canaries.keep_stored("a user code", shape);
        }
        let exchange = async |body: Value| post(anybody, "device/token", &body).await;
        canaries.refused(&exchange(json!({"deviceCode": device})).await);
        canaries.refused(&exchange(json!({"deviceCode": user_code})).await);
        canaries.refused(&exchange(json!({"deviceCode": [device]})).await);
        canaries.refused(&exchange(json!({"userCode": device})).await);
        canaries.refused(&post(anybody, "device", &json!({"clientId": device})).await);
        canaries.refused(&post(anybody, "device", &json!({"clientId": "c", "scope": device})).await);
        let decision = format!("device/{}/decision", typed.replace(' ', "%20"));
        canaries.refused(&post(anybody, &decision, &json!({"approve": approve})).await);
        canaries.refused(&post(&account.client, &decision, &json!({"approve": user_code})).await);
        posted(&account.client, &decision, &json!({"approve": approve})).await;
        canaries.refused(&post(&account.client, &decision, &json!({"approve": approve})).await);
        let answer = wait_for("an answer to the device", async || {
            let reply = exchange(json!({"deviceCode": device})).await;
            (reply.status != 429).then_some(reply)
        })
        .await;
        match approve {
            true => drop(keep_pair(anybody, &answer.expect(200).unwrap(), canaries)),
            false => canaries.refused(&answer),
        }
        canaries.refused(&exchange(json!({"deviceCode": device})).await);
    }
}
