//! What is revoked, as other services are told: sessions and opaque tokens whose access tokens are dead, and
//! the keys that verify. One task looks at the database; whoever follows is told by it.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use service_kit::{
    Clock, Error, Result,
    shutdown::Tasks,
    token::{Claims, LEEWAY, MAX_LIFETIME},
};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::keys::KeyRing;
use crate::store::revocations::RevocationStore;

/// How often the database is asked whether something was revoked, by this instance or another.
const LOOK: Duration = Duration::from_millis(250);
/// How long a look may take: a database whose host died without a word would be waited for without end.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the signing keys are read again.
const READ_KEYS: Duration = Duration::from_secs(1);
/// How long followers hear nothing when nothing happens. The contract says five seconds.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// How many revocations one update holds at most: a message stays far below what gRPC takes.
const PAGE: u32 = 1_000;
/// How many updates a follower may be behind before it asks the database.
const BEHIND: usize = 256;

/// A session, or an opaque token, whose access tokens are dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Its place among all, in the order of commits.
    pub(crate) position: i64,
    /// The `sid` of the tokens.
    pub(crate) session_id: String,
    /// When all of them have expired by themselves, in Unix milliseconds.
    pub(crate) expires_at: i64,
}

/// Revocations in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) revocations: Vec<Revocation>,
    /// Where to go on.
    pub(crate) position: i64,
    /// Whether there were no more.
    pub(crate) is_last: bool,
    /// Whether positions began anew, because the database is an older one: everything is told again.
    pub(crate) is_anew: bool,
}

/// What a follower is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    /// Revocations that it has not been told yet.
    pub(crate) revocations: Vec<Revocation>,
    /// Where to go on.
    pub(crate) position: i64,
    /// The names of the keys that verify now, or will.
    pub(crate) key_ids: Vec<String>,
}

/// Until when something that is revoked at `now` must be remembered: one that was being issued at this
/// moment may begin a little later.
pub(crate) fn remembered_until(now: i64) -> i64 {
    now + (MAX_LIFETIME + 2 * LEEWAY + 60) * 1_000
}

/// The feed of revocations. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct RevocationFeed {
    store: Arc<dyn RevocationStore>,
    keys: Arc<KeyRing>,
    clock: Clock,
    news: broadcast::Sender<Arc<Page>>,
    stop: CancellationToken,
}

/// Looks at the database, and tells what it finds.
struct Watch {
    feed: RevocationFeed,
    position: i64,
    key_ids: Vec<String>,
    keys_read: Instant,
    told: Instant,
}

/// One who is told.
struct Follower {
    feed: RevocationFeed,
    news: broadcast::Receiver<Arc<Page>>,
    position: i64,
    /// There may be more in the database than what is still to come from the watch.
    is_behind: bool,
}

impl RevocationFeed {
    /// Starts the task that looks, for keys too, until the service drains: then what followers hear ends.
    pub(crate) async fn spawn(
        tasks: &Tasks,
        store: Arc<dyn RevocationStore>,
        keys: Arc<KeyRing>,
        clock: Clock,
    ) -> Result<Self> {
        let (news, stop) = (broadcast::channel(BEHIND).0, tasks.stopping());
        let feed = Self { store, keys, clock, news, stop };
        let now = Instant::now();
        // Followers are told from here on; what was before they read themselves.
        let position = feed.store.head().await?;
        let key_ids = feed.keys.names();
        let mut watch = Watch { feed: feed.clone(), position, key_ids, keys_read: now, told: now };
        tasks.spawn("revocations", async move {
            let mut failing = false;
            loop {
                let looked = tokio::time::timeout(PATIENCE, watch.look()).await;
                let looked =
                    looked.unwrap_or_else(|late| Err(Error::unavailable("the database is late", late)));
                // Whoever follows hears nothing meanwhile, and asks about each token before long.
                match &looked {
                    Err(error) if !failing => tracing::warn!(%error, "cannot look for revocations"),
                    Ok(()) if failing => tracing::info!("looking for revocations again"),
                    _ => {}
                }
                failing = looked.is_err();
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = watch.feed.stop.cancelled() => return Ok(()),
                }
            }
        });
        Ok(feed)
    }

    /// What was revoked after a position, at once, then what comes, as it comes. There is an update every
    /// few seconds, as long as the database answers: silence means that nobody knows.
    pub(crate) fn follow(&self, after: i64) -> impl Stream<Item = Result<Update>> + Send + use<> {
        let news = self.news.subscribe();
        let follower = Follower { feed: self.clone(), news, position: after, is_behind: true };
        stream::try_unfold(follower, |mut follower| async move {
            Ok(follower.next().await?.map(|update| (update, follower)))
        })
    }

    /// Whether a token that verified is good now, as the database has it.
    pub(crate) async fn is_live(&self, claims: &Claims) -> Result<bool> {
        self.store.is_live(&claims.sid, &claims.sub, self.clock.now_ms()).await
    }
}

impl Watch {
    async fn look(&mut self) -> Result<()> {
        let feed = &self.feed;
        if self.keys_read.elapsed() >= READ_KEYS {
            feed.keys.refresh().await?;
            self.keys_read = Instant::now();
        }
        loop {
            let key_ids = feed.keys.names();
            let page = if feed.store.head().await? != self.position {
                feed.store.after(self.position, PAGE).await?
            } else if key_ids != self.key_ids || self.told.elapsed() >= HEARTBEAT {
                Page { revocations: Vec::new(), position: self.position, is_last: true, is_anew: false }
            } else {
                return Ok(());
            };
            (self.position, self.key_ids, self.told) = (page.position, key_ids, Instant::now());
            let is_last = page.is_last;
            // An error says that nobody follows, which is fine.
            let _ = feed.news.send(Arc::new(page));
            if is_last {
                return Ok(());
            }
        }
    }
}

impl Follower {
    /// The next update; `None` when the service drains.
    async fn next(&mut self) -> Result<Option<Update>> {
        while !self.is_behind {
            let news = tokio::select! {
                news = self.news.recv() => news,
                () = self.feed.stop.cancelled() => return Ok(None),
            };
            match news {
                Ok(page) => {
                    if page.is_anew {
                        self.position = 0;
                    }
                    let fresh = page.revocations.iter().filter(|one| one.position > self.position);
                    let fresh = fresh.cloned().collect();
                    return Ok(Some(self.update(fresh, self.position.max(page.position))));
                }
                Err(RecvError::Lagged(_)) => self.is_behind = true,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
        let page = tokio::select! {
            page = self.feed.store.after(self.position, PAGE) => page?,
            () = self.feed.stop.cancelled() => return Ok(None),
        };
        self.is_behind = !page.is_last;
        Ok(Some(self.update(page.revocations, page.position)))
    }

    fn update(&mut self, revocations: Vec<Revocation>, position: i64) -> Update {
        self.position = position;
        Update { revocations, position, key_ids: self.feed.keys.names() }
    }
}

#[cfg(test)]
mod tests;
