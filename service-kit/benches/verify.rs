//! What it costs to verify an access token, beside what the bare signature costs: CPU time per token,
//! measured in turns in one thread. Prints rows of the table of `make bench`; ROUNDS=n turns (15).
#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::{
    fs,
    future::Future as _,
    io::Write as _,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt as _, stream};
use proto::auth::{Jwks, RevocationUpdate};
use serde_json::json;
use service_kit::{
    Clock, Error, Result,
    shutdown::Tasks,
    testing::Signer,
    token::{Authority, Claims, Feed, Verifier},
};

/// How many tokens one turn verifies for the first time.
const NEW: usize = 2_000;
/// How many times one turn verifies known ones.
const CACHED: usize = 200_000;

/// Tells the keys, and once that nothing is revoked. Is never asked about a token.
#[derive(Debug)]
struct Quiet(Jwks);

#[async_trait]
impl Authority for Quiet {
    async fn jwks(&self) -> Result<Jwks> {
        Ok(self.0.clone())
    }

    async fn is_active(&self, _: &str, _: &Claims) -> Result<bool> {
        Err(Error::internal(anyhow::anyhow!("the feed is not heard")))
    }

    async fn revocations(&self, _: u64) -> Result<Feed> {
        let key_ids = self.0.keys.iter().map(|key| key.kid.clone()).collect();
        let update = RevocationUpdate { position: 0, revocations: Vec::new(), key_ids };
        Ok(stream::iter([Ok(update)]).chain(stream::pending()).boxed())
    }
}

/// CPU time of this thread; the time of the wall where the kernel does not tell it.
fn cpu_time(begin: Instant) -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| begin.elapsed(), Duration::from_nanos)
}

/// Verifies without a runtime: what is known waits for nothing.
fn verify(verifier: &Verifier, token: &str) -> Arc<Claims> {
    match pin!(verifier.verify(token)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(claims) => claims.unwrap(),
        Poll::Pending => panic!("it waits for something"),
    }
}

/// A verifier that knows the keys and hears the feed.
async fn verifier(signer: &Signer, clock: &Clock, tasks: &Tasks, first: &str) -> Verifier {
    let verifier = Verifier::new(Signer::config(), Arc::new(Quiet(signer.key_set())), clock.clone());
    verifier.follow(tasks);
    while verifier.verify(first).await.is_err() {
        tokio::task::yield_now().await;
    }
    verifier
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let (signer, tasks) = (Signer::new(), Tasks::new());
    let clock = Clock::fixed(Clock::system().now_ms());
    let first = signer.token("first", "*");
    let tokens: Vec<String> = (0..NEW)
        .map(|at| {
            // As auth-service makes them: ids are UUIDs.
            let mut claims = Signer::claims("0199a5c0-7f9b-7c1e-8a2b-3c4d5e6f7081", "*");
            claims["jti"] = json!(format!("0199a5c0-7f9b-7c1e-8a2b-{at:012x}"));
            claims["sid"] = json!("0199a5c0-7f9b-7c1e-8a2b-3c4d5e6f7082");
            signer.sign(&Signer::header(), &claims)
        })
        .collect();
    let signed: Vec<(&[u8], Vec<u8>)> = tokens
        .iter()
        .map(|token| token.rsplit_once('.').unwrap())
        .map(|(body, signature)| (body.as_bytes(), URL_SAFE_NO_PAD.decode(signature).unwrap()))
        .collect();
    let jwk = signer.key_set().keys.remove(0);
    let half = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let point = [&[4][..], &half(&jwk.x), &half(&jwk.y)].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);

    let begin = Instant::now();
    let time = |count: usize, work: &mut dyn FnMut()| {
        let before = cpu_time(begin);
        work();
        (cpu_time(begin) - before).as_secs_f64() * 1e6 / count as f64
    };
    let known = verifier(&signer, &clock, &tasks, &first).await;
    let some = &tokens[..100];
    let (mut bare, mut new, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(time(NEW, &mut || {
            for (body, signature) in &signed {
                key.verify(body, signature).unwrap();
            }
        }));
        let stranger = verifier(&signer, &clock, &tasks, &first).await;
        new.push(time(NEW, &mut || {
            for token in &tokens {
                verify(&stranger, token);
            }
        }));
        some.iter().for_each(|token| drop(verify(&known, token)));
        cached.push(time(CACHED, &mut || {
            for at in 0..CACHED {
                std::hint::black_box(verify(&known, &some[at % some.len()]));
            }
        }));
    }
    let ratio = median(new.iter().zip(&bare).map(|(new, bare)| new / bare).collect());
    let mut out = std::io::stdout().lock();
    let mut row = |what: &str, measured: String, goal: &str| {
        writeln!(out, "| {what:<58} | {measured:>14} | {goal:<10} |").unwrap();
    };
    row("CPU of verifying an access token, known", format!("{:.2} us", median(cached)), "<= 1 us");
    row("CPU of verifying an access token, new", format!("{:.1} us", median(new)), "-");
    row("CPU of the bare ES256 verification of the same bytes", format!("{:.1} us", median(bare)), "-");
    row("  new token / bare verification", format!("{ratio:.3}"), "<= 1.2");
}
