//! The event bus: hints that something happened, to everybody who listens. Never the truth: that is in
//! the databases, and whoever listens must survive the loss of any message.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

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
    /// Messages were lost: look at the database.
    Lost,
    /// The bus is gone.
    Closed,
}

/// A bus. In process now; Redis is a second implementation.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Tells everybody who listens now.
    async fn publish(&self, message: Message) -> anyhow::Result<()>;
    /// Listens to every message whose subject starts with `prefix`, from now on.
    async fn subscribe(&self, prefix: &str) -> anyhow::Result<Subscription>;
}

/// Messages with a prefix.
#[derive(Debug)]
pub struct Subscription {
    prefix: String,
    receiver: broadcast::Receiver<Message>,
}

impl Subscription {
    /// The next message.
    pub async fn next(&mut self) -> Received {
        loop {
            return match self.receiver.recv().await {
                Ok(message) if message.subject.starts_with(&self.prefix) => Received::Message(message),
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(_)) => Received::Lost,
                Err(broadcast::error::RecvError::Closed) => Received::Closed,
            };
        }
    }
}

/// The bus of one process.
#[derive(Debug, Clone)]
pub struct MemoryBus(broadcast::Sender<Message>);

impl MemoryBus {
    /// A bus that keeps the last 4,096 messages for slow subscribers.
    pub fn shared() -> Arc<dyn Bus> {
        Arc::new(Self(broadcast::channel(4_096).0))
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, message: Message) -> anyhow::Result<()> {
        // An error says that nobody listens, which is fine.
        let _ = self.0.send(message);
        Ok(())
    }

    async fn subscribe(&self, prefix: &str) -> anyhow::Result<Subscription> {
        Ok(Subscription { prefix: prefix.to_owned(), receiver: self.0.subscribe() })
    }
}
