//! When which gateway is looked at: those that are connected here, once they are, and then again and again.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use service_kit::{opaque, shutdown::Tasks};

use super::{Reconciliation, drift::Watch};
use crate::link::Hub;

/// How many gateways are looked at at once.
const AT_ONCE: usize = 8;
/// How often it is looked who is connected.
const BEAT: Duration = Duration::from_millis(500);
/// How far apart gateways are looked at that come together: a fleet must not be a burst.
const SPACING: Duration = Duration::from_millis(20);
/// Drift takes minutes: it is not looked for more often than this.
const DRIFT_BEAT: Duration = Duration::from_secs(30);

/// When each gateway is due.
#[derive(Debug, Default)]
struct Schedule(HashMap<String, Instant>);

impl Schedule {
    /// Takes over who is connected; those that are due now are due again after about `pause`.
    fn due(&mut self, connected: &[String], now: Instant, pause: Duration) -> Vec<String> {
        let here: HashSet<&String> = connected.iter().collect();
        self.0.retain(|gateway, _| here.contains(gateway));
        let new: Vec<&String> = connected.iter().filter(|gateway| !self.0.contains_key(*gateway)).collect();
        let count = u32::try_from(new.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let spread = SPACING.saturating_mul(count).min(pause);
        for gateway in new {
            self.0.insert(gateway.clone(), now + part(spread));
        }
        let mut due = Vec::new();
        for (gateway, at) in self.0.iter_mut().filter(|(_, at)| **at <= now) {
            due.push(gateway.clone());
            // Three to five quarters.
            *at = now + pause * 3 / 4 + part(pause / 2);
        }
        due
    }
}

/// A random part of a duration.
fn part(of: Duration) -> Duration {
    of.mul_f64(f64::from(u16::from_be_bytes(opaque::random())) / f64::from(u16::MAX))
}

impl Reconciliation {
    /// Looks at the gateways of `hub` until the service stops.
    pub(crate) fn start(self, hub: Hub, tasks: &Tasks) {
        let stop = tasks.stopping();
        tasks.spawn("reconciliation", async move {
            let (mut schedule, mut watch) = (Schedule::default(), Watch::default());
            let mut unavailable = false;
            let beat = BEAT.min(self.pause());
            loop {
                tokio::select! {
                    () = tokio::time::sleep(beat) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                let connected = hub.gateways();
                let due = schedule.due(&connected, Instant::now(), self.pause());
                self.suspects().retain(|gateway, _| schedule.0.contains_key(gateway));
                let round = stream::iter(due).map(|gateway| self.one(gateway)).buffer_unordered(AT_ONCE);
                let round = round.collect::<Vec<_>>();
                tokio::select! {
                    looked = round => {
                        let failed = looked.iter().flatten().next();
                        if let Some(error) = failed.filter(|_| !unavailable) {
                            tracing::warn!(error, "gateways cannot be reconciled right now, will try again");
                        }
                        unavailable = if looked.is_empty() { unavailable } else { failed.is_some() };
                    }
                    () = stop.cancelled() => return Ok(()),
                }
                if let Err(error) = self.watch_drift(&mut watch, &connected, DRIFT_BEAT).await {
                    tracing::warn!(%error, "drift cannot be looked for, will try again");
                }
            }
        });
    }

    /// Looks at a gateway; what is in the way.
    async fn one(&self, gateway_id: String) -> Option<String> {
        let error = self.look(&gateway_id, false).await.err()?;
        tracing::debug!(gateway = gateway_id, %error, "not reconciled");
        Some(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Schedule;

    #[test]
    fn who_comes_is_due_soon_and_then_after_the_pause() {
        let (mut schedule, pause, begin) = (Schedule::default(), Duration::from_secs(100), Instant::now());
        let one = ["a".to_owned()];
        assert_eq!(schedule.due(&one, begin, pause), ["a"], "alone: at once");
        assert!(schedule.due(&one, begin + Duration::from_secs(74), pause).is_empty());
        assert_eq!(schedule.due(&one, begin + Duration::from_secs(126), pause), ["a"]);
        assert!(schedule.due(&[], begin, pause).is_empty());
        assert_eq!(schedule.due(&one, begin, pause), ["a"], "back: at once");
    }

    #[test]
    fn a_fleet_is_spread() {
        let (mut schedule, pause, begin) = (Schedule::default(), Duration::from_secs(100), Instant::now());
        let fleet: Vec<String> = (0..1_000).map(|at| at.to_string()).collect();
        assert!(schedule.due(&fleet, begin, pause).len() < 100);
        let half = schedule.due(&fleet, begin + Duration::from_secs(10), pause).len();
        assert!((200..800).contains(&half), "{half}");
        schedule.due(&fleet, begin + Duration::from_secs(20), pause);
        assert!(schedule.due(&fleet, begin + Duration::from_secs(21), pause).is_empty(), "each once");
    }
}
