//! The event bus: hints that something happened, to everybody who listens. Never the truth: that is in
//! the databases, and whoever listens must survive the loss of any message.

mod announce;
mod memory;
mod redis;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use crate::shutdown::Tasks;

pub use self::{
    announce::{Announcer, announcement},
    memory::MemoryBus,
    redis::RedisBus,
};

/// How many messages may wait for one subscriber.
const CAPACITY: usize = 4_096;

/// What the name of a bus in memory follows.
const NAMED: &str = "memory:";

/// Which bus.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusConfig {
    /// `memory`, `memory:NAME` for one that all of this process share who name it, or the URL of a Redis, which
    /// may hold a password.
    pub url: SecretString,
}

/// A message on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about, with dots: `gateway.events`.
    pub subject: String,
    /// What the subject says it is.
    pub payload: Bytes,
}

/// What a subscriber finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Message),
    /// Messages may be lost: look at the database.
    Lost,
    /// The bus is gone.
    Closed,
}

/// A bus.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Tells everybody who listens now, in order. Never takes long: an error when the bus is away or slow.
    async fn publish_all(&self, messages: Vec<Message>) -> anyhow::Result<()>;
    /// The same for one message.
    async fn publish(&self, message: Message) -> anyhow::Result<()> {
        self.publish_all(vec![message]).await
    }
    /// Listens to every message whose subject starts with `prefix`, from now on; to those of other processes
    /// from the first [`Received::Lost`] on.
    async fn subscribe(&self, prefix: &str) -> anyhow::Result<Subscription>;
}

/// The bus that the settings name. Its tasks end last; a Redis need not be there yet.
pub fn connect(config: &BusConfig, tasks: &Tasks) -> anyhow::Result<Arc<dyn Bus>> {
    match config.url.expose_secret() {
        "memory" => Ok(MemoryBus::shared()),
        url if url.starts_with(NAMED) => Ok(MemoryBus::named(&url[NAMED.len()..])),
        url => Ok(Arc::new(RedisBus::start(url, tasks)?)),
    }
}

/// Messages with a prefix.
#[derive(Debug)]
pub struct Subscription {
    receiver: mpsc::Receiver<Message>,
    lost: Arc<Lost>,
}

/// Says that messages were lost, once for any number of them.
#[derive(Debug, Default)]
struct Lost {
    is_set: AtomicBool,
    news: Notify,
}

/// A subscriber, as the bus sees it.
#[derive(Debug)]
struct Subscriber {
    prefix: String,
    sender: mpsc::Sender<Message>,
    lost: Arc<Lost>,
}

/// The subscribers in this process.
#[derive(Debug, Default)]
struct Fan(Mutex<Vec<Subscriber>>);

impl Subscription {
    /// The next message.
    pub async fn next(&mut self) -> Received {
        tokio::select! {
            biased;
            () = self.lost.wait() => Received::Lost,
            message = self.receiver.recv() => message.map_or(Received::Closed, Received::Message),
        }
    }
}

impl Lost {
    fn set(&self, why: &'static str) {
        metrics::counter!("tollgate_bus_lost_total", "why" => why).increment(1);
        self.is_set.store(true, Ordering::SeqCst);
        self.news.notify_one();
    }

    async fn wait(&self) {
        while !self.is_set.swap(false, Ordering::SeqCst) {
            self.news.notified().await;
        }
    }
}

impl Fan {
    /// Another subscriber.
    fn subscribe(&self, prefix: &str) -> Subscription {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let lost = Arc::<Lost>::default();
        let subscriber = Subscriber { prefix: prefix.to_owned(), sender, lost: lost.clone() };
        self.with(|subscribers| subscribers.push(subscriber));
        Subscription { receiver, lost }
    }

    /// Gives a message to those whose prefix is `of`, or fits the subject when there is none. Waits for
    /// nobody: who is too slow learns that something is lost.
    fn send(&self, message: &Message, of: Option<&str>) {
        let fits = |prefix: &str| of.map_or(message.subject.starts_with(prefix), |of| of == prefix);
        self.with(|subscribers| {
            subscribers.retain(|subscriber| {
                if !fits(&subscriber.prefix) {
                    return !subscriber.sender.is_closed();
                }
                match subscriber.sender.try_send(message.clone()) {
                    Ok(()) => true,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        subscriber.lost.set("overflow");
                        true
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => false,
                }
            });
        });
    }

    /// Tells those with a prefix that messages may be lost.
    fn lost(&self, prefix: &str, why: &'static str) {
        self.with(|subscribers| {
            let of_prefix = subscribers.iter().filter(|subscriber| subscriber.prefix == prefix);
            of_prefix.for_each(|subscriber| subscriber.lost.set(why));
        });
    }

    /// The prefixes that somebody listens to, each once.
    fn prefixes(&self) -> Vec<String> {
        self.with(|subscribers| {
            subscribers.retain(|subscriber| !subscriber.sender.is_closed());
            let mut prefixes: Vec<String> = subscribers.iter().map(|one| one.prefix.clone()).collect();
            prefixes.sort();
            prefixes.dedup();
            prefixes
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Subscriber>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{BusConfig, CAPACITY, MemoryBus, Message, Received, connect};
    use crate::shutdown::Tasks;

    fn message(subject: &str) -> Message {
        Message { subject: subject.to_owned(), payload: Bytes::from_static(b"x") }
    }

    #[tokio::test]
    async fn a_slow_subscriber_learns_that_it_lost_something_and_goes_on() {
        let bus = MemoryBus::shared();
        let mut all = bus.subscribe("").await.unwrap();
        let mut some = bus.subscribe("b.").await.unwrap();
        for _ in 0..=CAPACITY {
            bus.publish(message("a.1")).await.unwrap();
        }
        bus.publish(message("b.1")).await.unwrap();
        assert_eq!(some.next().await, Received::Message(message("b.1")));
        assert_eq!(all.next().await, Received::Lost);
        for _ in 0..CAPACITY {
            assert_eq!(all.next().await, Received::Message(message("a.1")));
        }
        bus.publish(message("b.2")).await.unwrap();
        assert_eq!(all.next().await, Received::Message(message("b.2")));
        drop(bus);
        assert_eq!(all.next().await, Received::Closed);
    }

    #[tokio::test]
    async fn a_bad_address_is_refused_without_repeating_it() {
        for url in
            ["", "canary", "redis//canary", "http://u:canary@h", "redis://u:canary@h:x/", "redis://h/canary"]
        {
            let error = connect(&BusConfig { url: url.into() }, &Tasks::new()).unwrap_err().to_string();
            assert!(error.starts_with("bus.url must be `memory`") && !error.contains("canary"), "{error}");
        }
    }
}
