use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use service_kit::{Error, Result, shutdown::Tasks, testing::TestDatabase};
use tokio::{sync::broadcast, time::Instant};

use super::{BEHIND, HEARTBEAT, PAGE, Page, Revocation, RevocationFeed, Update, Watch};
use crate::{domain::keys::tests::World, store::revocations::RevocationStore};

/// Revocations in memory. Counts the pages that are read.
#[derive(Debug, Default)]
struct Memory {
    revoked: Mutex<Vec<Revocation>>,
    pages: AtomicU32,
    is_down: AtomicBool,
    /// The next question is never answered.
    is_gone: AtomicBool,
}

impl Memory {
    fn revoke(&self, count: u32) {
        let mut revoked = self.revoked.lock().unwrap();
        for _ in 0..count {
            let position = i64::try_from(revoked.len()).unwrap() + 1;
            let session_id = format!("s{position}");
            revoked.push(Revocation { position, session_id, expires_at: i64::MAX });
        }
    }
}

#[async_trait]
impl RevocationStore for Memory {
    async fn head(&self) -> Result<i64> {
        if self.is_gone.swap(false, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::unavailable("down", anyhow::anyhow!("test")));
        }
        Ok(i64::try_from(self.revoked.lock().unwrap().len()).unwrap())
    }

    async fn after(&self, position: i64, most: u32) -> Result<Page> {
        self.pages.fetch_add(1, Ordering::SeqCst);
        let head = self.head().await?;
        let all = self.revoked.lock().unwrap().clone();
        let is_anew = position > head;
        let position = if is_anew { 0 } else { position };
        let revocations: Vec<_> =
            all.into_iter().filter(|one| one.position > position).take(most as usize).collect();
        let is_last = revocations.len() < most as usize;
        let position = revocations.last().filter(|_| !is_last).map_or(head, |one| one.position);
        Ok(Page { revocations, position, is_last, is_anew })
    }

    async fn is_live(&self, _: &str, _: &str, _: i64) -> Result<bool> {
        unreachable!("nobody asks here")
    }

    async fn prune(&self, _: i64) -> Result<u64> {
        unreachable!("nobody asks here")
    }
}

/// A feed whose watch looks when it is told to.
async fn feed(world: &World, store: &Arc<Memory>) -> (RevocationFeed, Watch) {
    let feed = RevocationFeed {
        store: store.clone(),
        keys: Arc::new(world.instance().await),
        clock: world.clock.clone(),
        news: broadcast::channel(BEHIND).0,
        stop: Tasks::new().stopping(),
    };
    let (now, key_ids) = (Instant::now(), feed.keys.names());
    let watch = Watch { feed: feed.clone(), position: 0, key_ids, keys_read: now, told: now };
    (feed, watch)
}

/// The numbers of the sessions of updates, in the order in which they came.
fn numbers(updates: &[Update]) -> Vec<u32> {
    let all = updates.iter().flat_map(|update| &update.revocations);
    all.map(|one| one.session_id[1..].parse().unwrap()).collect()
}

#[tokio::test]
async fn many_are_told_of_much_without_asking_the_database() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    let (feed, mut watch) = feed(&world, &store).await;
    let mut followers: Vec<_> = (0..200).map(|_| Box::pin(feed.follow(0))).collect();
    for follower in &mut followers {
        assert_eq!(follower.next().await.unwrap().unwrap().position, 0);
    }
    let before = store.pages.load(Ordering::SeqCst);
    store.revoke(2 * PAGE + 500);
    watch.look().await.unwrap();
    assert_eq!(store.pages.load(Ordering::SeqCst) - before, 3);
    for follower in &mut followers {
        let updates: Vec<Update> = follower.take(3).map(Result::unwrap).collect().await;
        assert!(numbers(&updates).into_iter().eq(1..=2 * PAGE + 500));
        assert!(updates.iter().all(|update| update.revocations.len() <= PAGE as usize));
        assert_eq!(updates[2].position, i64::from(2 * PAGE + 500));
    }
    assert_eq!(store.pages.load(Ordering::SeqCst) - before, 3);
}

#[tokio::test]
async fn who_comes_late_or_falls_behind_misses_nothing() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    let (feed, mut watch) = feed(&world, &store).await;
    store.revoke(PAGE + 10);
    // It follows from before the watch has seen them: what it reads itself is not told again.
    let mut late = pin!(feed.follow(5));
    let mut slow = pin!(feed.follow(0));
    watch.look().await.unwrap();
    let total = u32::try_from(BEHIND).unwrap() + 100;
    for _ in 0..total {
        store.revoke(1);
        watch.look().await.unwrap();
    }
    let all = PAGE + 10 + total;
    for (follower, from) in [(&mut late, 6), (&mut slow, 1)] {
        let mut updates = Vec::new();
        while numbers(&updates).last() != Some(&all) {
            updates.push(follower.next().await.unwrap().unwrap());
        }
        assert!(numbers(&updates).into_iter().eq(from..=all));
    }
}

#[tokio::test]
async fn what_happens_between_the_start_and_the_first_look_is_told() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    store.revoke(3);
    let tasks = Tasks::new();
    let ring = Arc::new(world.instance().await);
    let feed = RevocationFeed::spawn(&tasks, store.clone(), ring, world.clock.clone()).await.unwrap();
    let mut follower = pin!(feed.follow(0));
    assert_eq!(numbers(&[follower.next().await.unwrap().unwrap()]), [1, 2, 3]);
    store.revoke(1);
    assert_eq!(numbers(&[follower.next().await.unwrap().unwrap()]), [4]);
    assert!(tasks.drain(HEARTBEAT).await);
    assert!(follower.next().await.is_none());
}

#[tokio::test]
async fn a_change_of_keys_is_told_at_once_and_silence_means_that_nobody_knows() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    let (feed, mut watch) = feed(&world, &store).await;
    let mut follower = pin!(feed.follow(0));
    let first = follower.next().await.unwrap().unwrap();
    world.keys().rotate().await.unwrap();
    feed.keys.refresh().await.unwrap();
    watch.look().await.unwrap();
    let told = follower.next().await.unwrap().unwrap();
    assert_eq!((first.key_ids.len(), told.key_ids.len(), told.revocations.len()), (1, 2, 0));

    let mut news = feed.news.subscribe();
    watch.look().await.unwrap();
    assert!(news.try_recv().is_err(), "nothing happened, and it was told a moment ago");
    watch.told -= HEARTBEAT;
    watch.look().await.unwrap();
    assert!(news.try_recv().is_ok());
    watch.told -= HEARTBEAT;
    store.is_down.store(true, Ordering::SeqCst);
    watch.look().await.unwrap_err();
    assert!(news.try_recv().is_err(), "a heartbeat without a heart");
}

#[tokio::test]
async fn a_database_that_was_put_back_is_told_from_its_beginning() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    let (feed, mut watch) = feed(&world, &store).await;
    store.revoke(5);
    watch.look().await.unwrap();
    let mut follower = pin!(feed.follow(0));
    assert_eq!(follower.next().await.unwrap().unwrap().position, 5);
    // A standby that had not heard of the last three takes over, while the service runs.
    store.revoked.lock().unwrap().truncate(2);
    watch.look().await.unwrap();
    let told = follower.next().await.unwrap().unwrap();
    assert_eq!(told.position, 2);
    assert_eq!(numbers(&[told]), [1, 2]);
    store.revoke(1);
    watch.look().await.unwrap();
    assert_eq!(numbers(&[follower.next().await.unwrap().unwrap()]), [3], "its position was used before");
}

#[tokio::test]
async fn a_question_that_is_never_answered_does_not_end_the_feed() {
    let (world, store) = (World::new(TestDatabase::sqlite()).await, Arc::new(Memory::default()));
    let tasks = Tasks::new();
    let ring = Arc::new(world.instance().await);
    let feed = RevocationFeed::spawn(&tasks, store.clone(), ring, world.clock.clone()).await.unwrap();
    let mut follower = pin!(feed.follow(0));
    follower.next().await.unwrap().unwrap();
    store.is_gone.store(true, Ordering::SeqCst);
    while store.is_gone.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    store.revoke(1);
    let told = tokio::time::timeout(HEARTBEAT * 5, follower.next()).await.expect("it goes on");
    assert_eq!(numbers(&[told.unwrap().unwrap()]), [1]);
    assert!(tasks.drain(HEARTBEAT).await);
}
