//! The settings of limits that several edges share.

use secrecy::SecretString;
use serde::Deserialize;

/// Where the counts of several edges meet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedLimitsConfig {
    /// A Redis; empty when each edge counts alone.
    pub url: SecretString,
    /// Milliseconds that a call waits for Redis at most.
    pub timeout_ms: u64,
    /// Limits that refuse (503) while Redis is away; the others go on with what this edge has counted.
    pub closed: Vec<String>,
}
