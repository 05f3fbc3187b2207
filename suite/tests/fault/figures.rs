//! The figures of a fault test.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use suite::controller::State;

use super::{faults::Fault, fleet::Fleet, orders::Book};

/// What happened.
#[derive(Debug)]
pub(crate) struct Figures {
    kinds: BTreeMap<String, usize>,
    injected: BTreeMap<Fault, usize>,
    accepted: usize,
    failed_orders: usize,
    events: usize,
    performed: usize,
    stale: usize,
    failed: usize,
    mismatches: usize,
    snapshots: usize,
    connects: usize,
    restarts: usize,
    faults: usize,
    quiet: Duration,
    latencies: Vec<Duration>,
}

impl Figures {
    pub(crate) fn of(fleet: &Fleet, book: &Book, injected: &BTreeMap<Fault, usize>, quiet: Duration) -> Self {
        let states = fleet.states();
        let sum = |count: fn(&State) -> usize| states.iter().map(|(_, state)| count(state)).sum();
        Self {
            kinds: fleet.kinds(),
            injected: injected.clone(),
            accepted: book.accepted.len(),
            failed_orders: book.failed,
            events: sum(|state| state.events),
            performed: sum(|state| state.performed.len()),
            stale: sum(|state| state.stale),
            failed: sum(|state| state.failed),
            mismatches: sum(|state| state.mismatches),
            snapshots: sum(|state| state.snapshots),
            connects: sum(|state| state.connects),
            restarts: fleet.past.len(),
            faults: sum(|state| state.faults.len()),
            quiet,
            latencies: latencies(&states, book),
        }
    }

    fn latency(&self, share: f64) -> Duration {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list of thousands"
        )]
        let at = (self.latencies.len().saturating_sub(1) as f64 * share) as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// From the order to the gateway that did it, for every order that was not overtaken by a newer one; sorted.
fn latencies(states: &[(String, State)], book: &Book) -> Vec<Duration> {
    let mut done = HashMap::new();
    for (gateway, state) in states {
        for performed in &state.performed {
            let key = (gateway, performed.deployment_id.as_str(), performed.kind == "api.deployed");
            let at = done.entry(key).or_insert(performed.at);
            *at = performed.at.min(*at);
        }
    }
    let orders = book.accepted.iter();
    let mut latencies: Vec<Duration> = orders
        .filter_map(|(gateway, order)| {
            let at = done.get(&(gateway, order.deployment_id.as_str(), order.deployed))?;
            Some(at.saturating_duration_since(order.asked))
        })
        .collect();
    latencies.sort_unstable();
    latencies
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "  {name:<34} {value}");
        for (kind, count) in &self.kinds {
            row(&format!("controllers, {kind}"), count)?;
        }
        for (fault, count) in &self.injected {
            row(&format!("fault {fault:?}"), count)?;
        }
        row("orders accepted", &self.accepted)?;
        row("calls without an outcome", &self.failed_orders)?;
        row("events received", &self.events)?;
        row("events performed", &self.performed)?;
        row("stale (not acknowledged)", &self.stale)?;
        row("artifacts not to be had", &self.failed)?;
        row("deployment id mismatches", &self.mismatches)?;
        row("snapshots", &self.snapshots)?;
        row("connections", &self.connects)?;
        row("controllers started again", &self.restarts)?;
        row("faults of the contract", &self.faults)?;
        let ms = |duration: Duration| format!("{} ms", duration.as_millis());
        row("orders seen through", &self.latencies.len())?;
        row("  until performed, p50", &ms(self.latency(0.5)))?;
        row("  until performed, p99", &ms(self.latency(0.99)))?;
        row("  until performed, longest", &ms(self.latency(1.0)))?;
        row("quiet until desired = reported", &ms(self.quiet))
    }
}
