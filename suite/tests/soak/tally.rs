//! The figures of a soak run: what was called, what came of it, and what the process was like at rest.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use super::vitals::{Held, Vitals};

/// So many problems are kept for the message.
const KEPT: usize = 20;

/// What came of the calls; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    calls: u64,
    outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    unexpected: u64,
    problems: Vec<String>,
}

impl Tally {
    /// Notes a call and what came of it.
    pub(crate) fn note(&self, kind: &str, outcome: anyhow::Result<String>) {
        let mut counts = self.0.lock().unwrap();
        counts.calls += 1;
        let outcome = outcome.unwrap_or_else(|problem| {
            counts.unexpected += 1;
            if counts.problems.len() < KEPT {
                counts.problems.push(format!("{kind}: {problem:#}"));
            }
            "unexpected".to_owned()
        });
        *counts.outcomes.entry(kind.to_owned()).or_default().entry(outcome).or_default() += 1;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.lock().unwrap().calls
    }

    /// How many answers were not what they must be.
    pub(crate) fn unexpected(&self) -> u64 {
        self.0.lock().unwrap().unexpected
    }

    /// The first answers that were not.
    pub(crate) fn problems(&self) -> String {
        self.0.lock().unwrap().problems.join("\n  ")
    }

    /// Whether calls of this kind were made and came to something.
    pub(crate) fn has(&self, kind: &str) -> bool {
        let counts = self.0.lock().unwrap();
        counts.outcomes.get(kind).is_some_and(|outcomes| outcomes.keys().any(|name| name != "unexpected"))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().unwrap();
        for (kind, outcomes) in &counts.outcomes {
            let list: Vec<String> = outcomes.iter().map(|(name, count)| format!("{name}: {count}")).collect();
            writeln!(f, "  {kind:<26} {:>7}   {}", outcomes.values().sum::<u64>(), list.join(", "))?;
        }
        writeln!(f, "  {:<26} {:>7}   unexpected: {}", "all", counts.calls, counts.unexpected)?;
        if counts.problems.is_empty() { Ok(()) } else { writeln!(f, "  {}", counts.problems.join("\n  ")) }
    }
}

/// The process at rest after one part of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Calls until then.
    pub(crate) calls: u64,
    pub(crate) vitals: Vitals,
    pub(crate) held: Held,
}

/// The process at rest after each part of the run, the warm-up first.
#[derive(Debug, Default)]
pub(crate) struct Course(pub(crate) Vec<Look>);

#[allow(clippy::cast_precision_loss, reason = "KiB of a process, calls of a run: far below 2^52")]
impl Course {
    /// The median of these looks.
    pub(crate) fn median(&self, looks: Range<usize>, what: impl Fn(&Look) -> u64) -> f64 {
        let mut values: Vec<u64> = self.0[looks].iter().map(what).collect();
        values.sort_unstable();
        let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
        (values[low] + values[high]) as f64 / 2.0
    }

    /// Thousands of calls from a look on.
    pub(crate) fn thousands(&self, from: usize) -> f64 {
        let (first, last) = (&self.0[from], &self.0[self.0.len() - 1]);
        (last.calls - first.calls) as f64 / 1e3
    }

    /// What is added for each 1,000 calls from a look on, by least squares.
    pub(crate) fn slope(&self, from: usize, what: impl Fn(&Look) -> u64) -> f64 {
        let points: Vec<(f64, f64)> =
            self.0[from..].iter().map(|look| (look.calls as f64 / 1e3, what(look) as f64)).collect();
        let count = points.len() as f64;
        let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        let (x, y) = (x / count, y / count);
        let rise: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let run: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        rise / run
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  at rest     calls   RSS KiB  anon KiB  threads  descriptors  sockets  tasks  at the door  present  past  answers"
        )?;
        for (at, Look { calls, vitals, held }) in self.0.iter().enumerate() {
            let at = if at == 0 { "warm".to_owned() } else { format!("{at}/{}", self.0.len() - 1) };
            writeln!(
                f,
                "  {at:<7} {calls:>9} {:>9} {:>9} {:>8} {:>12} {:>8} {:>6} {:>12} {:>8} {:>5} {:>8}",
                vitals.rss,
                vitals.rss_anon,
                vitals.threads,
                vitals.descriptors,
                vitals.sockets,
                held.tasks,
                vitals.at_the_door,
                held.of_the_present,
                held.of_the_past,
                held.answers
            )?;
        }
        Ok(())
    }
}
