//! The bus of one process.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;

use super::{Bus, Fan, Message, Subscription};

/// A bus within one process.
#[derive(Debug, Default)]
pub struct MemoryBus(Fan);

impl MemoryBus {
    /// A bus without subscribers.
    pub fn shared() -> Arc<dyn Bus> {
        Arc::new(Self::default())
    }

    /// The one bus of this name in the process, for as long as somebody has it.
    pub(super) fn named(name: &str) -> Arc<dyn Bus> {
        static NAMED: LazyLock<Mutex<HashMap<String, Weak<MemoryBus>>>> = LazyLock::new(Mutex::default);
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bus) = named.get(name).and_then(Weak::upgrade) {
            return bus;
        }
        named.retain(|_, bus| bus.strong_count() > 0);
        let bus = Arc::new(Self::default());
        named.insert(name.to_owned(), Arc::downgrade(&bus));
        bus
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish_all(&self, messages: Vec<Message>) -> anyhow::Result<()> {
        messages.iter().for_each(|message| self.0.send(message, None));
        Ok(())
    }

    async fn subscribe(&self, prefix: &str) -> anyhow::Result<Subscription> {
        Ok(self.0.subscribe(prefix))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::{
        bus::{BusConfig, Message, Received, connect},
        shutdown::Tasks,
    };

    #[tokio::test]
    async fn those_who_name_one_bus_meet_and_others_do_not() {
        let of = |url: &str| connect(&BusConfig { url: url.into() }, &Tasks::new()).unwrap();
        let (one, same, other) = (of("memory:kit-1"), of("memory:kit-1"), of("memory:kit-2"));
        let (mut heard, mut apart) = (one.subscribe("a").await.unwrap(), other.subscribe("a").await.unwrap());
        let message = Message { subject: "a".into(), payload: Bytes::new() };
        same.publish(message.clone()).await.unwrap();
        of("memory").publish(message.clone()).await.unwrap();
        drop((one, same));
        assert_eq!(heard.next().await, Received::Message(message));
        assert_eq!(heard.next().await, Received::Closed);
        drop(other);
        assert_eq!(apart.next().await, Received::Closed);
    }
}
