//! The settings of one process that takes the place of another, and of settings that change.

use serde::Deserialize;

/// How the edge ends, and how another takes its place.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartConfig {
    /// Whether another process may listen on the same ports.
    pub reuse_port: bool,
    /// Milliseconds for which connections are still taken after readiness is off.
    pub linger_ms: u64,
}

/// When settings are read again.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadConfig {
    /// Milliseconds between two looks at the files; 0 = only at SIGHUP or when asked.
    pub check_ms: u64,
}
