//! What is counted now and then, for the metrics: how far connections lag, and what has drifted.

use std::{sync::Arc, time::Duration};

use service_kit::{Clock, Result, shutdown::Tasks};

use crate::{config::LinkConfig, domain::states::DriftRule, store::OperationsStore};

/// The longest pause between two counts: what is shown is never older.
const SLOWEST: Duration = Duration::from_secs(30);

/// Where all gateways stand, of every instance of this service together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// The largest lag of any connection, in revisions.
    pub(crate) lag: i64,
    /// How many artifacts have drifted.
    pub(crate) drifted: i64,
}

/// Counts until the service stops.
pub(crate) fn follow(tasks: &Tasks, store: Arc<dyn OperationsStore>, link: LinkConfig, clock: Clock) {
    let stopping = tasks.stopping();
    tasks.spawn("link figures", async move {
        let mut before = Figures::default();
        loop {
            match count(&*store, &link, &clock).await {
                Ok(now) => {
                    if now.drifted > 0 && now.drifted != before.drifted {
                        tracing::warn!(artifacts = now.drifted, "gateways do not run what they are to run");
                    }
                    before = now;
                }
                Err(error) => tracing::warn!(%error, "figures not counted, will try again"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause(&link)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    });
}

/// Counts an event that a gateway has now performed or refused, and how long it has been in the log. Says which.
pub(crate) fn count_settled(failed: bool, created_at: i64, now: i64) -> &'static str {
    let outcome = if failed { "failed" } else { "success" };
    // Clocks of instances differ.
    let age = Duration::from_millis(u64::try_from((now - created_at).max(0)).unwrap_or(0));
    metrics::histogram!("tollgate_gateway_convergence_seconds").record(age.as_secs_f64());
    metrics::counter!("tollgate_gateway_acks_total", "outcome" => outcome).increment(1);
    outcome
}

async fn count(store: &dyn OperationsStore, link: &LinkConfig, clock: &Clock) -> Result<Figures> {
    let figures = store.figures(DriftRule::at(clock.now_ms(), link.drift_ms)).await?;
    metrics::gauge!("tollgate_gateway_largest_lag_revisions").set(shown(figures.lag));
    metrics::gauge!("tollgate_gateway_drifted_artifacts").set(shown(figures.drifted));
    Ok(figures)
}

/// Ten times in the time after which something is drift, within limits.
fn pause(link: &LinkConfig) -> Duration {
    Duration::from_millis(link.drift_ms / 10).clamp(link.poll().min(SLOWEST), SLOWEST)
}

fn shown(figure: i64) -> f64 {
    f64::from(i32::try_from(figure).unwrap_or(i32::MAX))
}
