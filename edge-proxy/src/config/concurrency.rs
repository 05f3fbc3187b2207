//! The settings of what services are given at once.

use serde::Deserialize;

/// How many calls each service has at once, which the edge finds out by itself.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyConfig {
    /// Calls of the first moment.
    pub initial: usize,
    /// Never fewer.
    pub least: usize,
    /// Never more.
    pub most: usize,
    /// Calls that wait for their turn.
    pub queue: usize,
    /// Milliseconds that they wait.
    pub wait_ms: u64,
}
