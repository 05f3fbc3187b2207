//! What is revoked: the sessions whose tokens are dead although they have not expired, kept up to date by
//! the feed of auth-service. A feed that is silent for too long is no knowledge.

use std::{
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use proto::auth::RevocationUpdate;

use super::{Verifier, unreachable};
use crate::{error::Result, shutdown::Tasks};

/// After so long without an update every token is asked about.
const LOST_MS: i64 = 30_000;
/// After so long without an update the feed is opened anew; there is one every five seconds.
const SILENCE: Duration = Duration::from_secs(12);
/// How long an update may wait for the one before it to fetch keys.
const FETCH: Duration = Duration::from_secs(2);
/// How long to wait before the feed is opened again; it doubles up to two seconds.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// What is known of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Its tokens are good.
    Live,
    /// They are dead.
    Revoked,
    /// Nobody has told for too long.
    Unknown,
}

/// The revoked sessions.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    /// By `sid`: when the last token of the session has expired, in Unix milliseconds.
    sessions: RwLock<HashMap<String, i64>>,
    position: AtomicU64,
    heard_at: AtomicI64,
}

impl Revocations {
    pub(super) fn judge(&self, sid: &str, now: i64) -> Judgement {
        if self.sessions.read().unwrap_or_else(PoisonError::into_inner).contains_key(sid) {
            return Judgement::Revoked;
        }
        let heard_at = self.heard_at.load(Ordering::Acquire);
        // A clock that was put back knows no better than a feed that was lost.
        let known = heard_at != 0 && (now - heard_at).abs() <= LOST_MS;
        if known { Judgement::Live } else { Judgement::Unknown }
    }

    fn count(&self) -> usize {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn apply(&self, update: &RevocationUpdate, now: i64) {
        {
            let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|_, expires_at| *expires_at > now);
            for revocation in &update.revocations {
                sessions.insert(revocation.session_id.clone(), revocation.expires_at);
            }
        }
        self.position.store(update.position, Ordering::Release);
        self.heard_at.store(now, Ordering::Release);
    }
}

impl Verifier {
    /// How many sessions are known to be revoked before their tokens have expired.
    pub fn revoked(&self) -> usize {
        self.0.revocations.count()
    }

    /// Follows the feed of revocations until the service drains. Without it every token is asked about.
    pub fn follow(&self, tasks: &Tasks) {
        let (verifier, stop) = (self.clone(), tasks.stopping());
        tasks.spawn("revocation feed", async move {
            let mut backoff = FIRST_BACKOFF;
            loop {
                tokio::select! {
                    lost = verifier.listen(&mut backoff) => {
                        if let Err(error) = lost {
                            tracing::warn!(%error, "the feed of revocations is lost");
                        }
                    }
                    () = stop.cancelled() => return Ok(()),
                }
                metrics::counter!("tollgate_revocation_feed_lost_total").increment(1);
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                backoff = (backoff * 2).min(Duration::from_secs(2));
            }
        });
    }

    /// Applies updates until there are none for too long.
    async fn listen(&self, backoff: &mut Duration) -> Result<()> {
        let inner = &self.0;
        let after = inner.revocations.position.load(Ordering::Acquire);
        let opened = tokio::time::timeout(SILENCE, inner.authority.revocations(after)).await;
        let mut feed = opened.map_err(unreachable)??;
        while let Ok(Some(update)) = tokio::time::timeout(SILENCE, feed.next()).await {
            let update = update?;
            *backoff = FIRST_BACKOFF;
            // Keys first: once the feed counts as heard, tokens of dead keys must be dead.
            let fresh = inner.keys.keep(&update.key_ids);
            inner.revocations.apply(&update, inner.clock.now_ms());
            if fresh {
                self.fetch_ahead().await;
            }
        }
        Ok(())
    }

    /// Fetches the keys that are new, before their first use. The next update tries again.
    async fn fetch_ahead(&self) {
        match tokio::time::timeout(FETCH, self.fetch_keys()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot fetch the key set"),
            Err(_) => tracing::warn!("the key set did not come in time"),
        }
    }
}
