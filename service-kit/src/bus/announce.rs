//! From the outbox to the bus: hints that leave only for what was committed. While the bus is away they are
//! dropped, because whoever listens looks by itself sooner or later.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bus, Message};
use crate::{
    error::Result,
    outbox::{Entry, Sink},
};

/// How often a batch of hints is tried before it is dropped.
const TRIES: u32 = 3;

/// A hint as the outbox holds it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    subject: String,
    payload: Value,
}

/// The payload of an outbox entry that says this on the bus.
pub fn announcement(subject: String, payload: Value) -> Vec<u8> {
    // `Value` is JSON already: nothing in it can fail to be written.
    serde_json::to_vec(&Stored { subject, payload }).unwrap_or_default()
}

/// Puts announcements on the bus, and drops those that the bus does not take.
#[derive(Debug)]
pub struct Announcer {
    bus: Arc<dyn Bus>,
    failures: AtomicU32,
}

impl Announcer {
    /// Announces on this bus.
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, failures: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Sink for Announcer {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        let messages = entries.iter().filter_map(message).collect();
        let Err(error) = self.bus.publish_all(messages).await else {
            self.failures.store(0, Ordering::SeqCst);
            return Ok(());
        };
        if self.failures.fetch_add(1, Ordering::SeqCst) + 1 < TRIES {
            return Err(crate::Error::unavailable("the bus is away", error));
        }
        // From now on nothing is tried twice, until the bus is back.
        let count = u64::try_from(entries.len()).unwrap_or(0);
        metrics::counter!("tollgate_web_events_dropped_total").increment(count);
        tracing::warn!(hints = count, %error, "hints dropped: the bus is away");
        Ok(())
    }
}

fn message(entry: &Entry) -> Option<Message> {
    let Stored { subject, payload } = serde_json::from_slice(&entry.payload).ok()?;
    Some(Message { subject, payload: Bytes::from(payload.to_string()) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::{Announcer, TRIES, announcement};
    use crate::{
        bus::{MemoryBus, Message, Received, RedisBus},
        outbox::{Entry, Sink as _},
        shutdown::Tasks,
    };

    fn entry() -> Entry {
        let payload = announcement("org.o.deployment.state".into(), json!({"id": "g:7:failed"}));
        Entry { position: 1, id: "g:7:failed".into(), payload }
    }

    #[tokio::test]
    async fn what_is_announced_reaches_the_bus() {
        let bus = MemoryBus::shared();
        let mut heard = bus.subscribe("org.o.").await.unwrap();
        Announcer::new(bus).deliver(&[entry()]).await.unwrap();
        let Received::Message(Message { subject, payload }) = heard.next().await else {
            panic!("no message")
        };
        assert_eq!((&*subject, &payload[..]), ("org.o.deployment.state", &br#"{"id":"g:7:failed"}"#[..]));
    }

    #[tokio::test]
    async fn while_the_bus_is_away_hints_are_dropped_after_a_few_tries() {
        let bus = RedisBus::start("redis+unix:///nowhere/redis.sock", &Tasks::new()).unwrap();
        let announcer = Announcer::new(Arc::new(bus));
        for _ in 1..TRIES {
            announcer.deliver(&[entry()]).await.unwrap_err();
        }
        for _ in 0..5 {
            announcer.deliver(&[entry()]).await.unwrap();
        }
    }
}
