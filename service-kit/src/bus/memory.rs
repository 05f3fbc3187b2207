//! The bus of one process.

use std::sync::Arc;

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
