//! The settings of the service; `config.default.toml` documents and defaults them.

use std::time::Duration;

use serde::Deserialize;
use service_kit::{
    client::UpstreamConfig, db::DatabaseConfig, telemetry::TelemetryConfig, tls::TlsConfig,
    token::TokenConfig,
};

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT` of gRPC.
    pub listen: String,
    /// `HOST:PORT` of the admin port.
    pub admin_listen: String,
    /// Whether to offer gRPC reflection.
    pub reflection: bool,
    /// Who the service is, and whom it believes.
    pub tls: TlsConfig,
    /// Where its data is.
    pub database: DatabaseConfig,
    /// What access tokens must say.
    pub token: TokenConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// The services that it calls.
    pub upstreams: Upstreams,
    /// The gateway link.
    pub link: LinkConfig,
}

/// The `[upstreams]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstreams {
    /// auth-service: keys of access tokens.
    pub auth: UpstreamConfig,
    /// project-service: permissions, desired state, artifacts.
    pub project: UpstreamConfig,
}

/// The `[link]` section. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// The most gateway connections of this instance.
    pub max_connections: usize,
    /// How long a peer may take to say hello.
    pub hello_ms: u64,
    /// How often a sign of life is sent.
    pub heartbeat_ms: u64,
    /// A peer that has sent nothing for this long is dead.
    pub silence_ms: u64,
    /// How often the log is looked at for what another instance wrote.
    pub poll_ms: u64,
}

impl LinkConfig {
    /// How long a peer may take to say hello.
    pub(crate) fn hello(&self) -> Duration {
        Duration::from_millis(self.hello_ms)
    }

    /// How often a sign of life is sent.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.max(1))
    }

    /// How long a peer may be silent.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms.max(1))
    }

    /// How often the log is looked at.
    pub(crate) fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms.max(1))
    }
}

#[cfg(test)]
mod tests {
    use service_kit::config::Layers;

    use super::Config;

    #[test]
    fn the_defaults_are_complete_and_an_unknown_key_is_named() {
        let layers = Layers::new(crate::DEFAULTS, None, "TOLLGATE_NOTHING__").unwrap();
        let config: Config = layers.extract().unwrap();
        assert_eq!((config.listen.as_str(), config.link.max_connections), ("127.0.0.1:12000", 1_000));
        let error = layers.set("link.heartbeat", "5").extract::<Config>().unwrap_err();
        assert!(error.to_string().contains("heartbeat"), "{error}");
    }
}
