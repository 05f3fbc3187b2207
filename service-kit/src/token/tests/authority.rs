//! An authority that answers as it is told, and counts.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use proto::auth::{Jwk, Jwks, Revocation, RevocationUpdate};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{
    error::Result,
    testing::Signer,
    token::{Authority, Claims, Feed, unreachable},
};

/// A feed that a verifier has opened: after which position, and where its updates go.
pub(super) struct Opened {
    pub(super) after: u64,
    pub(super) updates: UnboundedSender<Result<RevocationUpdate>>,
}

impl Opened {
    pub(super) fn tell(&self, position: u64, revoked: &[&str], key_ids: &[&str]) {
        let revoked =
            revoked.iter().map(|sid| Revocation { session_id: (*sid).to_owned(), expires_at: i64::MAX });
        let key_ids = key_ids.iter().map(|kid| (*kid).to_owned()).collect();
        let update = RevocationUpdate { position, revocations: revoked.collect(), key_ids };
        self.updates.send(Ok(update)).unwrap();
    }
}

#[derive(Debug)]
pub(super) struct Told {
    pub(super) jwks: Mutex<Jwks>,
    pub(super) is_up: AtomicBool,
    pub(super) is_active: AtomicBool,
    /// Whether it takes the call for the feed and never answers.
    pub(super) hangs: AtomicBool,
    /// How often the keys were asked for.
    pub(super) fetched: AtomicU32,
    /// How often it was asked about a token.
    pub(super) asked: AtomicU32,
    feeds: UnboundedSender<Opened>,
}

impl Told {
    pub(super) fn new(keys: &[(&str, &Signer)]) -> (Arc<Self>, UnboundedReceiver<Opened>) {
        let (feeds, opened) = unbounded_channel();
        let told = Self {
            jwks: Mutex::default(),
            is_up: AtomicBool::new(true),
            is_active: AtomicBool::new(true),
            hangs: AtomicBool::new(false),
            fetched: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            feeds,
        };
        told.publish(keys);
        (Arc::new(told), opened)
    }

    pub(super) fn publish(&self, keys: &[(&str, &Signer)]) {
        let key = |(kid, signer): &(&str, &Signer)| Jwk {
            kid: (*kid).to_owned(),
            ..signer.key_set().keys.remove(0)
        };
        self.jwks.lock().unwrap().keys = keys.iter().map(key).collect();
    }

    fn answer<T>(&self, answer: T) -> Result<T> {
        if self.is_up.load(Ordering::SeqCst) { Ok(answer) } else { Err(unreachable(anyhow::anyhow!("test"))) }
    }
}

#[async_trait]
impl Authority for Told {
    async fn jwks(&self) -> Result<Jwks> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        let jwks = self.jwks.lock().unwrap().clone();
        self.answer(jwks)
    }

    async fn is_active(&self, _: &str, _: &Claims) -> Result<bool> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answer(self.is_active.load(Ordering::SeqCst))
    }

    async fn revocations(&self, after: u64) -> Result<Feed> {
        let (updates, receiver) = unbounded_channel();
        self.feeds.send(Opened { after, updates }).unwrap();
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.answer(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver).boxed())
    }
}
