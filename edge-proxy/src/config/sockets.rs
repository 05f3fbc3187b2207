//! The settings of WebSockets that carry calls.

use serde::Deserialize;

/// The rhythm of WebSockets that carry calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketsConfig {
    /// Seconds between two pings; browsers answer them by themselves.
    pub ping_seconds: u64,
    /// Seconds after the last byte of a client at which it counts as gone.
    pub dead_seconds: u64,
}

impl SocketsConfig {
    /// Fails with the name of a setting that makes no sense.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.ping_seconds > 0, "sockets.ping_seconds must be more than 0");
        anyhow::ensure!(
            self.dead_seconds > self.ping_seconds,
            "sockets.dead_seconds must be more than ping_seconds: a quiet client only answers pings"
        );
        Ok(())
    }
}
