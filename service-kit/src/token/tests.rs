//! Tokens one by one; beside this file: attacks, and what the feed of revocations changes.

mod attacks;
mod authority;
mod feed;

use std::sync::{Arc, atomic::Ordering};

use serde_json::{Value, json};

use super::{TokenConfig, Verifier};
use crate::{Clock, Kind, testing::Signer};
use authority::Told;

const NOW: i64 = 1_766_000_000;

fn header() -> Value {
    json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"})
}

fn claims() -> Value {
    json!({"iss": "https://tollgate.test", "aud": "tollgate", "sub": "u", "exp": NOW + 600, "iat": NOW,
        "jti": "j", "client_id": "web", "sid": "s", "scope": "*", "auth_time": NOW, "amr": ["pwd"]})
}

fn with(mut base: Value, key: &str, value: Value) -> Value {
    if value.is_null() {
        base.as_object_mut().unwrap().remove(key);
    } else {
        base[key] = value;
    }
    base
}

fn config() -> TokenConfig {
    TokenConfig { issuer: "https://tollgate.test".into(), audience: "tollgate".into() }
}

fn verifier(signer: &Signer, clock: &Clock) -> Verifier {
    Verifier::new(config(), Arc::new(signer.clone()), clock.clone())
}

#[tokio::test]
async fn a_good_token_is_good_until_it_expires() {
    let (signer, clock) = (Signer::new(), Clock::fixed(NOW * 1_000));
    let verifier = verifier(&signer, &clock);
    let token = signer.sign(&header(), &claims());
    assert_eq!(verifier.verify(&token).await.unwrap().sub, "u");
    clock.advance_ms(604_999);
    assert!(verifier.verify(&token).await.is_ok());
    clock.advance_ms(1);
    assert_eq!(verifier.verify(&token).await.unwrap_err().reason(), "TOKEN_EXPIRED");
}

#[tokio::test]
async fn every_deviation_is_refused() {
    let (signer, clock) = (Signer::new(), Clock::fixed(NOW * 1_000));
    let verifier = verifier(&signer, &clock);
    let headers = [
        ("alg", json!("none")),
        ("alg", json!("nOnE")),
        ("alg", json!("HS256")),
        ("typ", json!("JWT")),
        ("typ", json!("refresh+jwt")),
        ("typ", Value::Null),
        ("kid", json!("k2")),
        ("kid", json!("../k1")),
        ("kid", Value::Null),
        ("crit", json!(["x"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("cty", json!("JWT")),
        ("jwk", json!({"kty": "EC"})),
        ("jku", json!("https://evil/jwks")),
        ("x5u", json!("https://evil")),
        ("x5c", json!(["a"])),
    ];
    for (key, value) in headers {
        let token = signer.sign(&with(header(), key, value.clone()), &claims());
        let error = verifier.verify(&token).await.expect_err(key);
        assert_eq!(error.kind(), Kind::Unauthenticated, "{key}: {value}");
    }
    let bad_claims = [
        ("iss", json!("https://evil")),
        ("iss", json!(["https://tollgate.test", "https://evil"])),
        ("iss", Value::Null),
        ("aud", json!("other")),
        ("aud", json!(["tollgate"])),
        ("aud", Value::Null),
        ("sub", Value::Null),
        ("exp", Value::Null),
        ("exp", json!(NOW - 6)),
        ("exp", json!(NOW + 901)),
        ("exp", json!("soon")),
        ("exp", json!(i64::MAX)),
        ("exp", json!(1.0e18)),
        ("exp", json!((NOW + 600) as f64)),
        ("iat", json!(NOW + 6)),
        ("iat", json!(NOW + 864_000)),
        ("iat", json!(i64::MIN)),
        ("iat", Value::Null),
        ("nbf", json!(NOW + 3_600)),
        ("nbf", json!(i64::MAX)),
        ("sub", json!("")),
        ("jti", Value::Null),
        ("jti", json!("")),
        ("sid", Value::Null),
        ("sid", json!("")),
        ("auth_time", Value::Null),
        ("auth_time", json!(NOW + 6)),
        ("auth_time", json!(i64::MAX)),
        ("scope", Value::Null),
        ("client_id", Value::Null),
        ("amr", Value::Null),
        ("amr", json!("pwd")),
        ("amr", json!([])),
        ("role", json!("admin")),
    ];
    for (key, value) in bad_claims {
        let token = signer.sign(&header(), &with(claims(), key, value.clone()));
        let error = verifier.verify(&token).await.expect_err(key);
        assert_eq!(error.kind(), Kind::Unauthenticated, "{key}: {value}");
    }
    let other = Signer::new().sign(&header(), &claims());
    let good = signer.sign(&header(), &claims());
    let truncated = &good[..good.rfind('.').unwrap() + 1];
    let long = "a".repeat(9_000);
    for token in [&other, truncated, &format!("{good}."), &format!("{good}.x"), "", "a.b.c", "....", &long] {
        assert!(verifier.verify(token).await.is_err(), "{token}");
    }
}

#[tokio::test]
async fn doubt_is_no_proof_and_unknown_keys_ask_rarely() {
    let (signer, clock) = (Signer::new(), Clock::fixed(NOW * 1_000));
    let (source, _feeds) = Told::new(&[("k1", &signer)]);
    let verifier = Verifier::new(config(), source.clone(), clock.clone());
    let good = signer.sign(&header(), &claims());
    let stranger = signer.sign(&with(header(), "kid", json!("k2")), &claims());

    source.is_up.store(false, Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(verifier.verify(&good).await.unwrap_err().kind(), Kind::Unavailable);
    }
    assert_eq!(source.fetched.load(Ordering::SeqCst), 1, "a source that is down is left alone for a second");
    source.is_up.store(true, Ordering::SeqCst);
    clock.advance_ms(1_000);
    assert!(verifier.verify(&good).await.is_ok());
    for _ in 0..5 {
        assert_eq!(verifier.verify(&stranger).await.unwrap_err().reason(), "INVALID_TOKEN");
    }
    assert_eq!(source.fetched.load(Ordering::SeqCst), 2);
    clock.advance_ms(30_000);
    assert!(verifier.verify(&stranger).await.is_err());
    assert_eq!(source.fetched.load(Ordering::SeqCst), 3);
}
