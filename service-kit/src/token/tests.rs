use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{Jwk, Jwks};
use serde_json::{Value, json};

use super::{KeySource, TokenConfig, Verifier};
use crate::{Clock, Kind, error::Result};

const NOW: i64 = 1_766_000_000;

#[derive(Debug)]
struct Fixed(Jwks);

#[async_trait]
impl KeySource for Fixed {
    async fn jwks(&self) -> Result<Jwks> {
        Ok(self.0.clone())
    }
}

struct Signer {
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new() -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn jwks(&self) -> Jwks {
        let point = self.pair.public_key().as_ref();
        Jwks {
            keys: vec![Jwk {
                kty: "EC".into(),
                crv: "P-256".into(),
                x: URL_SAFE_NO_PAD.encode(&point[1..33]),
                y: URL_SAFE_NO_PAD.encode(&point[33..65]),
                r#use: "sig".into(),
                alg: "ES256".into(),
                kid: "k1".into(),
            }],
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let body = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(&aws_lc_rs::rand::SystemRandom::new(), body.as_bytes()).unwrap();
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"})
}

fn claims() -> Value {
    json!({"iss": "https://tollgate.test", "aud": "tollgate", "sub": "u", "exp": NOW + 600, "iat": NOW,
        "jti": "j", "client_id": "web", "sid": "s", "scope": "*", "auth_time": NOW})
}

fn with(mut base: Value, key: &str, value: Value) -> Value {
    if value.is_null() {
        base.as_object_mut().unwrap().remove(key);
    } else {
        base[key] = value;
    }
    base
}

fn verifier(signer: &Signer, clock: &Clock) -> Verifier {
    let config = TokenConfig { issuer: "https://tollgate.test".into(), audience: "tollgate".into() };
    Verifier::new(config, Arc::new(Fixed(signer.jwks())), clock.clone())
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
        ("iat", json!(NOW + 6)),
        ("iat", Value::Null),
        ("nbf", json!(NOW + 3_600)),
        ("jti", Value::Null),
        ("sid", Value::Null),
        ("scope", Value::Null),
        ("client_id", Value::Null),
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

/// Answers as told, and counts.
#[derive(Debug)]
struct Moody {
    jwks: Jwks,
    up: AtomicBool,
    asked: AtomicU32,
}

#[async_trait]
impl KeySource for Moody {
    async fn jwks(&self) -> Result<Jwks> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.up.load(Ordering::SeqCst) {
            Ok(self.jwks.clone())
        } else {
            Err(super::unreachable(anyhow::anyhow!("test")))
        }
    }
}

#[tokio::test]
async fn doubt_is_no_proof_and_unknown_keys_ask_rarely() {
    let (signer, clock) = (Signer::new(), Clock::fixed(NOW * 1_000));
    let source =
        Arc::new(Moody { jwks: signer.jwks(), up: AtomicBool::new(false), asked: AtomicU32::new(0) });
    let config = TokenConfig { issuer: "https://tollgate.test".into(), audience: "tollgate".into() };
    let verifier = Verifier::new(config, source.clone(), clock.clone());
    let good = signer.sign(&header(), &claims());
    let stranger = signer.sign(&with(header(), "kid", json!("k2")), &claims());

    for _ in 0..5 {
        assert_eq!(verifier.verify(&good).await.unwrap_err().kind(), Kind::Unavailable);
    }
    assert_eq!(source.asked.load(Ordering::SeqCst), 1, "a source that is down is left alone for a second");
    source.up.store(true, Ordering::SeqCst);
    clock.advance_ms(1_000);
    assert!(verifier.verify(&good).await.is_ok());
    for _ in 0..5 {
        assert_eq!(verifier.verify(&stranger).await.unwrap_err().reason(), "INVALID_TOKEN");
    }
    assert_eq!(source.asked.load(Ordering::SeqCst), 2);
    clock.advance_ms(30_000);
    assert!(verifier.verify(&stranger).await.is_err());
    assert_eq!(source.asked.load(Ordering::SeqCst), 3);
}
