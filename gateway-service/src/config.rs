//! The settings of the service; `config.default.toml` documents and defaults them.

use std::time::Duration;

use serde::Deserialize;
use service_kit::{
    bus::BusConfig, client::UpstreamConfig, db::DatabaseConfig, idempotency::IdempotencyConfig,
    telemetry::TelemetryConfig, tls::TlsConfig, token::TokenConfig,
};

/// How often an instance gives a sign of life, unless the others are told to be less patient.
const BEAT: Duration = Duration::from_secs(2);
const MIN_NODE_TIMEOUT_MS: u64 = 1_000;

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
    /// The keys of callers.
    pub idempotency: IdempotencyConfig,
    /// What access tokens must say.
    pub token: TokenConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// The services that it calls.
    pub upstreams: Upstreams,
    /// The gateway link.
    pub link: LinkConfig,
    /// Hints between instances.
    pub bus: BusConfig,
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
    /// The most connections of one organization, over all instances.
    pub max_connections_per_organization: u32,
    /// When what was not acknowledged is sent again.
    pub redeliver_ms: u64,
    /// How often what a gateway could not do is sent once more by itself; 0 leaves it to an operator.
    pub refused_retries: u32,
    /// When what is not as it should be is drift.
    pub drift_ms: u64,
    /// How often what a gateway is to run is compared with what is wanted.
    pub reconcile_ms: u64,
    /// When an instance without a sign of life is dead.
    pub node_timeout_ms: u64,
    /// How many hours what is done stays in the log.
    pub retention_hours: u32,
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

    /// When what was not acknowledged is sent again for the first time.
    pub(crate) fn redeliver(&self) -> Duration {
        Duration::from_millis(self.redeliver_ms.max(1))
    }

    /// How often this instance gives a sign of life: often enough for the others to see several of them before
    /// they give up.
    pub(crate) fn beat(&self) -> Duration {
        BEAT.min(self.node_timeout() / 4)
    }

    /// How long an instance may go without a sign of life.
    pub(crate) fn node_timeout(&self) -> Duration {
        Duration::from_millis(self.node_timeout_ms)
    }

    /// An error that names the setting, for what cannot work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let positive = [
            ("max_connections", self.max_connections > 0),
            ("max_connections_per_organization", self.max_connections_per_organization > 0),
            ("hello_ms", self.hello_ms > 0),
            ("heartbeat_ms", self.heartbeat_ms > 0),
            ("poll_ms", self.poll_ms > 0),
        ];
        for (name, holds) in positive {
            anyhow::ensure!(holds, "link.{name} must be more than 0");
        }
        anyhow::ensure!(
            self.silence_ms > self.heartbeat_ms,
            "link.silence_ms must be more than link.heartbeat_ms: gateways may only answer signs of life"
        );
        anyhow::ensure!(
            self.node_timeout_ms >= MIN_NODE_TIMEOUT_MS,
            "link.node_timeout_ms must be at least {MIN_NODE_TIMEOUT_MS}: an instance that lives must not be taken for dead"
        );
        anyhow::ensure!(
            self.node_timeout_ms <= 10 * 60 * 1_000,
            "link.node_timeout_ms must be at most 600000: until then the gateways of a dead instance count as connected"
        );
        Ok(())
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

    #[test]
    fn a_setting_that_cannot_work_is_named() {
        let layers = Layers::new(crate::DEFAULTS, None, "TOLLGATE_NOTHING__").unwrap();
        layers.extract::<Config>().unwrap().link.check().unwrap();
        let bad = [
            ("link.node_timeout_ms", "999"),
            ("link.node_timeout_ms", "600001"),
            ("link.silence_ms", "20000"),
            ("link.poll_ms", "0"),
            ("link.max_connections", "0"),
            ("link.max_connections_per_organization", "0"),
        ];
        for (key, value) in bad {
            let config: Config = layers.clone().set(key, value).extract().unwrap();
            let error = config.link.check().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
