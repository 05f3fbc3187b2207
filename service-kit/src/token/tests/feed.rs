//! What the feed of revocations changes, and what its loss does.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    NOW,
    authority::{Opened, Told},
    claims, config, header, with,
};
use crate::{Clock, Kind, shutdown::Tasks, testing::Signer, token::Verifier};

/// A verifier that follows, its authority, and one token of each key.
struct World {
    verifier: Verifier,
    told: Arc<Told>,
    feeds: UnboundedReceiver<Opened>,
    clock: Clock,
    tokens: [String; 2],
    signers: [Signer; 2],
    tasks: Tasks,
}

const KEYS: [&str; 2] = ["k1", "k2"];

impl World {
    /// Both keys are published.
    fn new() -> Self {
        let (signers, clock) = ([Signer::new(), Signer::new()], Clock::fixed(NOW * 1_000));
        let (told, feeds) = Told::new(&[("k1", &signers[0]), ("k2", &signers[1])]);
        let verifier = Verifier::new(config(), told.clone(), clock.clone());
        let token = |at: usize| {
            let claims = with(claims(), "sid", json!(format!("s{}", at + 1)));
            signers[at].sign(&with(header(), "kid", json!(KEYS[at])), &claims)
        };
        let (tokens, tasks) = ([token(0), token(1)], Tasks::new());
        verifier.follow(&tasks);
        Self { verifier, told, feeds, clock, tokens, signers, tasks }
    }

    async fn opened(&mut self) -> Opened {
        self.feeds.recv().await.unwrap()
    }

    /// What verifying a token comes to: `ok`, or the reason.
    async fn verdict(&self, at: usize) -> String {
        let verified = self.verifier.verify(&self.tokens[at]).await;
        verified.map_or_else(|error| error.reason().to_owned(), |_| "ok".to_owned())
    }

    /// How often the authority was asked about a token while this one was verified.
    async fn asks(&self, at: usize) -> u32 {
        let before = self.told.asked.load(Ordering::SeqCst);
        self.verifier.verify(&self.tokens[at]).await.unwrap();
        self.told.asked.load(Ordering::SeqCst) - before
    }
}

async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it never holds");
}

#[tokio::test]
async fn a_token_is_asked_about_unless_the_feed_is_heard() {
    let mut world = World::new();
    let feed = world.opened().await;
    assert_eq!((feed.after, world.asks(0).await, world.asks(0).await), (0, 1, 1));
    world.told.is_active.store(false, Ordering::SeqCst);
    assert_eq!(world.verdict(0).await, "TOKEN_REVOKED");
    world.told.is_active.store(true, Ordering::SeqCst);

    feed.tell(1, &[], &KEYS);
    until(async || world.asks(0).await == 0).await;
    world.clock.advance_ms(30_000);
    assert_eq!((world.asks(0).await, world.asks(1).await), (0, 0));
    world.clock.advance_ms(1);
    assert_eq!((world.asks(0).await, world.asks(1).await), (1, 1));
    // Nobody answers: neither good nor bad.
    world.told.is_up.store(false, Ordering::SeqCst);
    let refused = world.verifier.verify(&world.tokens[0]).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::Unavailable, "UNAVAILABLE"));

    feed.tell(1, &[], &KEYS);
    until(async || world.verdict(0).await == "ok").await;
    world.told.is_up.store(true, Ordering::SeqCst);
    assert_eq!(world.asks(0).await, 0);
    // The clock is put back: how long nobody has told cannot be known.
    world.clock.advance_ms(-30_001);
    assert_eq!(world.asks(0).await, 1);
    assert!(world.tasks.drain(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_revoked_session_is_dead_at_once_and_no_other() {
    let mut world = World::new();
    let feed = world.opened().await;
    feed.tell(0, &[], &KEYS);
    until(async || world.asks(0).await == 0).await;
    feed.tell(1, &["s1"], &KEYS);
    until(async || world.verdict(0).await == "TOKEN_REVOKED").await;
    assert_eq!((world.verdict(1).await.as_str(), world.asks(1).await), ("ok", 0));
    // It is not forgotten when the feed goes on, nor when it is lost.
    feed.tell(2, &["s3"], &KEYS);
    world.clock.advance_ms(40_000);
    assert_eq!(world.verdict(0).await, "TOKEN_REVOKED");
}

#[tokio::test]
async fn a_key_that_leaves_is_dead_at_once_and_does_not_come_back() {
    let mut world = World::new();
    let feed = world.opened().await;
    feed.tell(0, &[], &KEYS);
    until(async || world.asks(0).await == 0 && world.asks(1).await == 0).await;
    feed.tell(0, &[], &["k2"]);
    until(async || world.verdict(0).await == "INVALID_TOKEN").await;
    assert_eq!(world.verdict(1).await, "ok");
    // An instance of the authority that lags behind tells the old key again.
    for _ in 0..3 {
        world.clock.advance_ms(30_000);
        let before = world.told.fetched.load(Ordering::SeqCst);
        assert_eq!(world.verdict(0).await, "INVALID_TOKEN");
        assert_eq!(world.told.fetched.load(Ordering::SeqCst) - before, 1);
    }
    assert_eq!(world.verdict(1).await, "ok");
}

#[tokio::test]
async fn a_new_key_is_fetched_before_its_first_use() {
    let mut world = World::new();
    let feed = world.opened().await;
    world.told.publish(&[("k1", &world.signers[0])]);
    feed.tell(0, &[], &["k1"]);
    until(async || world.asks(0).await == 0).await;
    let fetched = || world.told.fetched.load(Ordering::SeqCst);
    let before = fetched();
    world.told.publish(&[("k1", &world.signers[0]), ("k2", &world.signers[1])]);
    feed.tell(0, &[], &KEYS);
    until(async || fetched() == before + 1).await;
    // Nothing more to fetch, whatever is told.
    world.told.is_up.store(false, Ordering::SeqCst);
    feed.tell(1, &["s9"], &KEYS);
    until(async || world.verdict(1).await == "ok").await;
    assert_eq!(fetched(), before + 1);
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_delay_no_revocation() {
    let mut world = World::new();
    let feed = world.opened().await;
    feed.tell(0, &[], &KEYS);
    until(async || world.asks(0).await == 0).await;
    world.told.is_up.store(false, Ordering::SeqCst);
    feed.tell(1, &["s1"], &["k1", "k2", "k3"]);
    until(async || world.verdict(0).await == "TOKEN_REVOKED").await;
    feed.tell(2, &["s2"], &["k1", "k2", "k3"]);
    until(async || world.verdict(1).await == "TOKEN_REVOKED").await;
}

/// In a time of its own, which passes while nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_lost_feed_goes_on_where_it_ended() {
    let mut world = World::new();
    let feed = world.opened().await;
    assert_eq!(feed.after, 0);
    feed.tell(7, &["s1"], &KEYS);
    until(async || world.verdict(0).await == "TOKEN_REVOKED").await;
    // The other side hangs up.
    drop(feed);
    let feed = world.opened().await;
    assert_eq!(feed.after, 7);
    // It fails.
    feed.updates.send(Err(crate::Error::unauthenticated("whatever"))).unwrap();
    let feed = world.opened().await;
    assert_eq!(feed.after, 7);
    // It falls silent, or never answers.
    let mut silent = vec![feed];
    for hangs in [false, true, true] {
        world.told.hangs.store(hangs, Ordering::SeqCst);
        let begin = tokio::time::Instant::now();
        silent.push(world.opened().await);
        assert_eq!(silent.last().unwrap().after, 7);
        assert!((12..16).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    }
    world.told.hangs.store(false, Ordering::SeqCst);
    let feed = world.opened().await;
    // A database that was set back begins anew.
    feed.tell(3, &[], &KEYS);
    drop(feed);
    assert_eq!(world.opened().await.after, 3);
    assert_eq!(world.verdict(0).await, "TOKEN_REVOKED");
}
