//! Forgets what no rule needs any more: sessions past their end with their tokens, and old failures.

use std::time::Duration;

use service_kit::{Clock, Result, shutdown::Tasks};

use super::throttle::Rules;
use crate::{config::Config, store::Stores};

const EVERY: Duration = Duration::from_secs(600);

/// Prunes now and every ten minutes until the service drains.
pub(crate) fn spawn(tasks: &Tasks, stores: Stores, config: &Config, clock: Clock) {
    let (rules, stop) = (Rules::new(&config.throttle), tasks.stopping());
    tasks.spawn("pruning", async move {
        loop {
            // Nothing depends on it: the next round makes up for one that failed.
            match prune(&stores, &rules, clock.now_ms()).await {
                Ok((sessions, failures)) => tracing::debug!(sessions, failures, "pruned"),
                Err(error) => tracing::warn!(%error, "cannot prune"),
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

async fn prune(stores: &Stores, rules: &Rules, now: i64) -> Result<(u64, u64)> {
    let sessions = stores.sessions.prune(now).await?;
    let failures = stores.throttles.prune(rules.forgotten_before(now)).await?;
    Ok((sessions, failures))
}
