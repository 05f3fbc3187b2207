//! How long the logs remember what is done.

use std::{sync::Arc, time::Duration};

use service_kit::{Clock, Result, opaque, shutdown::Tasks};

use crate::store::RetentionStore;

/// How often each instance looks, at least; up to half as long again, so that not all look at once.
const EVERY: Duration = Duration::from_secs(3_600);

/// How much one transaction deletes: the logs are locked meanwhile.
const BATCH: i64 = 500;

/// Lets go of what is done and older than a time.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) store: Arc<dyn RetentionStore>,
    pub(crate) clock: Clock,
    pub(crate) hours: u32,
}

impl Retention {
    /// Starts to look until the service drains.
    pub(crate) fn start(self, tasks: &Tasks) {
        let stop = tasks.stopping();
        tasks.spawn("retention", async move {
            loop {
                let share = f64::from(u16::from_be_bytes(opaque::random())) / f64::from(u16::MAX);
                tokio::select! {
                    () = tokio::time::sleep(EVERY + EVERY.mul_f64(share / 2.0)) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                if let Err(error) = self.run().await {
                    tracing::warn!(%error, "old events not deleted, will try again");
                }
            }
        });
    }

    /// Deletes everything that is old.
    pub(crate) async fn run(&self) -> Result<()> {
        let before = self.clock.now_ms() - i64::from(self.hours) * 3_600_000;
        let (mut events, mut instances, mut failures) = (0, 0, 0);
        loop {
            let gone = self.store.prune_events(before, BATCH).await?;
            events += gone;
            if gone == 0 {
                break;
            }
        }
        loop {
            let gone = self.store.prune_instances(before, BATCH).await?;
            instances += gone;
            if gone == 0 {
                break;
            }
        }
        loop {
            let gone = self.store.prune_failures(before, BATCH).await?;
            failures += gone;
            if gone == 0 {
                break;
            }
        }
        if events + instances + failures > 0 {
            tracing::info!(events, instances, failures, "old events, instances and failures deleted");
        }
        Ok(())
    }
}
