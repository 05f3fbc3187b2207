//! Tokens that somebody made who is not us.

use std::{io::ErrorKind, net::TcpListener, sync::Arc, sync::atomic::Ordering};

use aws_lc_rs::hmac;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use proptest::prelude::*;
use proto::auth::Jwk;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{NOW, authority::Told, claims, config, header, verifier, with};
use crate::{
    Clock, Kind,
    opaque::{issue, random},
    testing::{Signer, properties::Tokens},
    token::Verifier,
};

/// Refused as a token that is none of ours, even if something else were possible too.
async fn refused(verifier: &Verifier, token: &str) {
    let error = verifier.verify(token).await.expect_err(token);
    assert_eq!(error.kind(), Kind::Unauthenticated, "{token}: {error}");
    assert!(token.len() < 10 || !error.message().contains(token), "the token is in the message");
}

fn world() -> (Signer, Verifier) {
    let signer = Signer::new();
    let verifier = verifier(&signer, &Clock::fixed(NOW * 1_000));
    (signer, verifier)
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn no_algorithm_is_no_token() {
    let (signer, verifier) = world();
    let good = signer.sign(&header(), &claims());
    verifier.verify(&good).await.unwrap();
    let signature = good.rsplit('.').next().unwrap();
    for alg in
        ["none", "None", "NONE", "nOnE", "", "null", "ES256 ", "es256", "ES384", "RS256", "PS256", "EdDSA"]
    {
        let body = format!("{}.{}", encode(&with(header(), "alg", json!(alg))), encode(&claims()));
        for token in [format!("{body}."), body.clone(), format!("{body}.{signature}")] {
            refused(&verifier, &token).await;
        }
        // Signed properly, and still not ours.
        refused(&verifier, &signer.sign(&with(header(), "alg", json!(alg)), &claims())).await;
    }
    let (body, _) = good.rsplit_once('.').unwrap();
    // r and s of zero, and of the order of the curve, verify anything in a careless implementation.
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&order[at..at + 2], 16).unwrap()).collect();
    for forged in [vec![], vec![0; 64], vec![0; 1], vec![255; 64], order.repeat(2), random::<64>().to_vec()] {
        refused(&verifier, &format!("{body}.{}", URL_SAFE_NO_PAD.encode(forged))).await;
    }
}

/// A verifier that takes the algorithm from the token would take our public key for a shared secret.
#[tokio::test]
async fn the_public_key_is_no_shared_secret() {
    let (signer, verifier) = world();
    let Jwk { kty, crv, x, y, r#use, alg, kid } = signer.key_set().keys.remove(0);
    let point = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let raw = [&[4][..], &point(&x), &point(&y)].concat();
    // SubjectPublicKeyInfo of a P-256 key: a fixed head, then the point.
    let head = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let der = [&STANDARD.decode(head).unwrap()[..26], &raw].concat();
    let base64 = STANDARD.encode(&der);
    let pem = |end: &str| {
        let lines: Vec<&str> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----{end}", lines.join("\n"))
    };
    let jwk = json!({"kty": kty, "crv": crv, "x": x, "y": y, "use": r#use, "alg": alg, "kid": kid});
    let secrets: [Vec<u8>; 12] = [
        pem("").into(),
        pem("\n").into(),
        der.clone(),
        base64.into(),
        raw,
        point(&x),
        point(&y),
        x.clone().into(),
        format!("{x}{y}").into(),
        jwk.to_string().into(),
        json!({"keys": [jwk]}).to_string().into(),
        Vec::new(),
    ];
    for secret in secrets {
        let hashes = [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
            ("ES256", hmac::HMAC_SHA512),
        ];
        for (alg, hash) in hashes {
            let body = format!("{}.{}", encode(&with(header(), "alg", json!(alg))), encode(&claims()));
            let tag = hmac::sign(&hmac::Key::new(hash, &secret), body.as_bytes());
            refused(&verifier, &format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))).await;
        }
    }
}

/// The key is never looked for where the token says that it is.
#[tokio::test]
async fn a_token_does_not_say_where_its_key_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let (ours, theirs) = (Signer::new(), Signer::new());
    let (told, _feeds) = Told::new(&[("k1", &ours)]);
    let verifier = Verifier::new(config(), told.clone(), Clock::fixed(NOW * 1_000));
    let Jwk { x, y, .. } = theirs.key_set().keys.remove(0);
    let own = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "k1", "alg": "ES256", "use": "sig"});
    let baits = [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", own),
        ("x5c", json!(["MIIB"])),
        ("x5t", json!("abc")),
        ("kid", json!(url)),
        ("kid", json!("../../etc/passwd")),
        ("kid", json!("k1' OR '1'='1")),
        ("kid", json!("k".repeat(65))),
        ("kid", json!("")),
        ("kid", json!(["k1"])),
    ];
    for (name, bait) in baits {
        for signer in [&ours, &theirs] {
            refused(&verifier, &signer.sign(&with(header(), name, bait.clone()), &claims())).await;
        }
    }
    let hit = listener.accept().unwrap_err();
    assert_eq!(hit.kind(), ErrorKind::WouldBlock, "somebody came for the key");
    assert_eq!(told.fetched.load(Ordering::SeqCst), 0, "a header that is not ours costs nothing");
    verifier.verify(&ours.sign(&header(), &claims())).await.unwrap();
}

#[tokio::test]
async fn what_is_not_an_access_token_is_none() {
    let (signer, verifier) = world();
    let id_token = json!({"iss": "https://tollgate.test", "aud": "tollgate-web", "sub": "u", "exp": NOW + 600,
        "iat": NOW, "nonce": "n"});
    let mut others = vec![
        signer.sign(&with(header(), "typ", json!("JWT")), &id_token),
        signer.sign(&header(), &id_token),
        URL_SAFE_NO_PAD.encode(random::<32>()),
    ];
    for typ in ["JWT", "jwt", "refresh+jwt", "AT+JWT", "application/at+jwt", "ctx+jwt", "dpop+jwt", "at+jwt "]
    {
        others.push(signer.sign(&with(header(), "typ", json!(typ)), &claims()));
    }
    others.extend(["gw", "pat", "svc"].map(|kind| issue(kind).0.expose_secret().to_owned()));
    for other in others {
        refused(&verifier, &other).await;
    }
}

/// What two readers could read differently.
#[tokio::test]
async fn a_token_has_one_form() {
    let (signer, verifier) = world();
    let good = signer.sign(&header(), &claims());
    let [head, body, signature] = <[&str; 3]>::try_from(good.split('.').collect::<Vec<_>>()).unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let forms = [
        format!(" {good}"),
        format!("{good} "),
        format!("{good}\n"),
        format!("{good}\0"),
        format!("{good}="),
        format!("{good}.{signature}"),
        format!("{head}..{signature}"),
        format!(".{body}.{signature}"),
        format!("{head}.{body}.{signature}."),
        format!("{head}.{body}.{}", URL_SAFE.encode(&raw)),
        format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(&raw[..63])),
        format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode([&raw[..], &[0]].concat())),
        format!("{}=.{body}.{signature}", head),
        json!({"protected": head, "payload": body, "signature": signature}).to_string(),
    ];
    for form in forms {
        refused(&verifier, &form).await;
    }
    let (plain, text) = (header().to_string(), claims().to_string());
    let twice = |json: &str, member: &str| format!("{},{member}}}", &json[..json.len() - 1]);
    for member in [r#""alg":"ES256""#, r#""kid":"k1""#, r#""typ":"at+jwt""#, r#""":1"#] {
        refused(&verifier, &signer.sign_text(&twice(&plain, member), &text)).await;
    }
    for member in [r#""sub":"other""#, r#""exp":1"#, r#""scope":"*""#, r#""sid":"other""#, r#""roles":[]"#] {
        refused(&verifier, &signer.sign_text(&plain, &twice(&text, member))).await;
    }
    for other in ["[]", "null", "\"x\"", "{", "", "{}", "\u{feff}{}"] {
        refused(&verifier, &signer.sign_text(other, &text)).await;
        refused(&verifier, &signer.sign_text(&plain, other)).await;
    }
    verifier.verify(&good).await.unwrap();
}

/// Each part of a good token, changed anywhere.
#[tokio::test]
async fn every_changed_character_is_noticed() {
    let (signer, verifier) = world();
    let good = signer.sign(&header(), &claims());
    verifier.verify(&good).await.unwrap();
    for at in 0..good.len() {
        let mut changed = good.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        refused(&verifier, std::str::from_utf8(&changed).unwrap()).await;
        refused(&verifier, &good[..at]).await;
    }
}

/// One signature over another body, when both have verified before: what is remembered is all of a token.
#[tokio::test]
async fn what_is_remembered_is_the_whole_token() {
    let (signer, verifier) = world();
    let one = signer.sign(&header(), &with(claims(), "sub", json!("one")));
    let two = signer.sign(&header(), &with(claims(), "sub", json!("two")));
    assert_eq!(verifier.verify(&one).await.unwrap().sub, "one");
    assert_eq!(verifier.verify(&two).await.unwrap().sub, "two");
    let (body, _) = one.rsplit_once('.').unwrap();
    let (_, signature) = two.rsplit_once('.').unwrap();
    refused(&verifier, &format!("{body}.{signature}")).await;
}

#[tokio::test]
async fn a_burst_of_unknown_keys_asks_once() {
    let (ours, theirs) = (Signer::new(), Signer::new());
    let (told, _feeds) = Told::new(&[("k1", &ours)]);
    let verifier = Arc::new(Verifier::new(config(), told.clone(), Clock::fixed(NOW * 1_000)));
    let tries: Vec<_> = (0..100)
        .map(|at| {
            let token = theirs.sign(&with(header(), "kid", json!(format!("x{at}"))), &claims());
            let verifier = verifier.clone();
            tokio::spawn(async move { verifier.verify(&token).await.is_err() })
        })
        .collect();
    for attempt in tries {
        assert!(attempt.await.unwrap());
    }
    assert_eq!(told.fetched.load(Ordering::SeqCst), 1);
}

/// JSON that is nearly what it should be: with a piece of other text somewhere.
fn nearly(json: Value) -> impl Strategy<Value = String> {
    let text = json.to_string();
    let length = text.len();
    (0..=length, 0..8_usize, "[ -~]{0,12}").prop_map(move |(at, gone, piece)| {
        let end = (at + gone).min(length);
        format!("{}{piece}{}", &text[..at], &text[end..])
    })
}

fn signed_header() -> Value {
    Signer::header()
}

fn signed_claims() -> Value {
    Tokens::claims()
}

proptest! {
    #[test]
    fn anything_can_be_presented(text in "\\PC{0,200}|[A-Za-z0-9_-]{0,90}\\.[A-Za-z0-9_-]{0,90}\\.[A-Za-z0-9_-]{86}") {
        Tokens::shared().presented(&text);
    }

    #[test]
    fn anything_can_be_signed(header in "\\PC{0,100}", claims in "\\PC{0,200}") {
        Tokens::shared().signed(&header, &claims);
    }

    #[test]
    fn what_is_nearly_right_is_right_or_refused(header in nearly(signed_header()), claims in nearly(signed_claims())) {
        Tokens::shared().signed(&signed_header().to_string(), &claims);
        Tokens::shared().signed(&header, &signed_claims().to_string());
    }
}
