//! Forgets what no rule needs any more: sessions past their end with their tokens, old failures, devices
//! that nobody logs in from any more, and accounts that nobody has proven to be theirs.

use std::time::Duration;

use service_kit::{ClientInfo, Clock, Result, shutdown::Tasks};

use super::{
    audit::{Action, Chain, Journal},
    known_devices, opaque_tokens,
    throttle::Rules,
};
use crate::{config::Config, store::Stores};

const EVERY: Duration = Duration::from_secs(600);
/// How long an account waits for the proof of its address, in milliseconds.
const UNVERIFIED_MS: i64 = 7 * 24 * 3_600 * 1_000;
/// How many of them go in one round.
const UNVERIFIED_A_ROUND: i64 = 1_000;

/// Prunes now and every ten minutes until the service drains.
pub(crate) fn spawn(tasks: &Tasks, stores: Stores, config: &Config, journal: Journal, clock: Clock) {
    let (rules, stop) = (Rules::new(&config.throttle), tasks.stopping());
    let verify_email = config.account.verify_email;
    tasks.spawn("pruning", async move {
        loop {
            // Nothing depends on it: the next round makes up for one that failed.
            match prune(&stores, &rules, clock.now_ms()).await {
                Ok((sessions, failures, devices)) => tracing::debug!(sessions, failures, devices, "pruned"),
                Err(error) => tracing::warn!(%error, "cannot prune"),
            }
            if verify_email && let Err(error) = prune_accounts(&stores, &journal, clock.now_ms()).await {
                tracing::warn!(%error, "cannot prune accounts");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

/// Deletes accounts whose addresses were not verified in time, and with which nobody ever did anything.
async fn prune_accounts(stores: &Stores, journal: &Journal, now: i64) -> Result<()> {
    for id in stores.accounts.unproven(now - UNVERIFIED_MS, UNVERIFIED_A_ROUND).await? {
        let chain = Chain::User(id.clone());
        let event = journal.event(chain, Action::AccountExpire, &ClientInfo::default()).on(&id);
        if stores.accounts.expire(&id, &event).await? {
            tracing::info!(user_id = id, "account deleted: its address was not verified");
        }
    }
    Ok(())
}

async fn prune(stores: &Stores, rules: &Rules, now: i64) -> Result<(u64, u64, u64)> {
    let sessions = stores.sessions.prune(now).await?;
    stores.revocations.prune(now).await?;
    let failures = stores.throttles.prune(rules.forgotten_before(now)).await?;
    stores.devices.prune(now).await?;
    stores.pending.prune(now).await?;
    stores.opaque_tokens.prune(opaque_tokens::forgotten_before(now)).await?;
    let devices = stores.known_devices.prune(known_devices::known_since(now)).await?;
    Ok((sessions, failures, devices))
}
