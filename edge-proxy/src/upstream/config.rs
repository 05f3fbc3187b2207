//! The settings of the services behind the edge; `config.default.toml` documents them.

use anyhow::ensure;
use serde::Deserialize;

/// Where the services are, by the middle part of their packages: `tollgate.auth.v1` is `auth`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamsConfig {
    /// auth-service.
    pub auth: UpstreamConfig,
    /// project-service.
    pub project: UpstreamConfig,
    /// gateway-service.
    pub gateway: UpstreamConfig,
    /// What becomes of calls while something of it fails: the same for all.
    pub resilience: ResilienceConfig,
}

/// Where one service is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `HOST:PORT` of its gRPC port, of several instances with commas between; `dns:HOST:PORT`; `file:PATH`.
    pub address: String,
    /// How many connections to keep to each instance.
    pub connections: usize,
    /// How many there may be when those have no stream left.
    pub max_connections: usize,
    /// How many calls may be open on a connection; 0 for as many as the instance takes.
    pub streams_per_connection: usize,
}

/// What becomes of calls while something behind the edge fails.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResilienceConfig {
    /// Milliseconds between two looks at `dns:` names and `file:` lists.
    pub resolve_ms: u64,
    /// Milliseconds between two health checks of an instance.
    pub health_ms: u64,
    /// Seconds after which a connection beyond `connections` that nobody uses is closed.
    pub idle_seconds: u64,
    /// How many calls may wait for a stream of an instance.
    pub queue: usize,
    /// Failures in a row after which an instance is left out for a while; 0 for never.
    pub eject_failures: u32,
    /// Milliseconds of the first time that it is left out; each time is longer by as much.
    pub eject_ms: u64,
    /// The longest such time, in milliseconds.
    pub eject_max_ms: u64,
    /// How many of a service's instances may be left out at a time, in percent.
    pub eject_percent: usize,
    /// With fewer instances none is left out.
    pub eject_min_instances: usize,
    /// Failures within the window after which a service is left alone; 0 for never.
    pub breaker_failures: u32,
    /// How large a part of the calls in the window they must be, in percent.
    pub breaker_percent: u32,
    /// The window, in milliseconds.
    pub breaker_window_ms: u64,
    /// Milliseconds until one call may try again.
    pub breaker_open_ms: u64,
    /// How often a call is tried at most, the first time included.
    pub retry_attempts: u32,
    /// How many retries there may be, in percent of the calls.
    pub retry_percent: u32,
    /// How many retries may come at once.
    pub retry_burst: u32,
    /// Milliseconds before the first retry; each pause is twice the one before, more or less.
    pub retry_pause_ms: u64,
    /// Request bodies up to this size are kept until the answer comes.
    pub retry_body_bytes: usize,
    /// Milliseconds after which a read without an answer is sent to a second instance too; 0 for never.
    pub hedge_ms: u64,
}

/// More than these would be a mistake.
const MOST_CONNECTIONS: usize = 100;

impl UpstreamsConfig {
    /// Refuses what cannot be meant, by the name of the setting.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (name, upstream) in [("auth", &self.auth), ("project", &self.project), ("gateway", &self.gateway)]
        {
            let (min, max) = (upstream.connections, upstream.max_connections);
            ensure!(
                (1..=MOST_CONNECTIONS).contains(&max),
                "upstreams.{name}.max_connections must be from 1 to {MOST_CONNECTIONS}"
            );
            ensure!(
                min <= max,
                "upstreams.{name}.connections must be at most upstreams.{name}.max_connections"
            );
        }
        self.resilience.check()
    }
}

impl ResilienceConfig {
    fn check(&self) -> anyhow::Result<()> {
        let at_least_one = [
            ("resolve_ms", self.resolve_ms),
            ("health_ms", self.health_ms),
            ("idle_seconds", self.idle_seconds),
            ("eject_ms", self.eject_ms),
            ("breaker_window_ms", self.breaker_window_ms),
            ("breaker_open_ms", self.breaker_open_ms),
            ("retry_attempts", u64::from(self.retry_attempts)),
            ("queue", u64::try_from(self.queue).unwrap_or(u64::MAX)),
        ];
        for (name, value) in at_least_one {
            ensure!(value > 0, "upstreams.resilience.{name} must be at least 1");
        }
        ensure!(
            self.eject_max_ms >= self.eject_ms,
            "upstreams.resilience.eject_max_ms must be at least eject_ms"
        );
        ensure!(self.eject_percent <= 100, "upstreams.resilience.eject_percent must be at most 100");
        ensure!(
            (1..=100).contains(&self.breaker_percent),
            "upstreams.resilience.breaker_percent must be from 1 to 100"
        );
        ensure!(self.retry_percent <= 100, "upstreams.resilience.retry_percent must be at most 100");
        ensure!(
            self.retry_attempts <= 5,
            "upstreams.resilience.retry_attempts must be at most 5, the most that gRPC allows"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use service_kit::config::Layers;

    use crate::Config;

    fn check(key: &str, value: &str) -> Result<(), String> {
        let layers = Layers::new(crate::DEFAULTS, None, "NOTHING__").unwrap().set(key, value);
        let config: Config = layers.extract().map_err(|error| format!("{error:#}"))?;
        config.upstreams.check().map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        check("upstreams.auth.connections", "20").unwrap();
        for (key, value) in [
            ("upstreams.auth.connections", "21"),
            ("upstreams.project.max_connections", "0"),
            ("upstreams.gateway.max_connections", "101"),
            ("upstreams.resilience.resolve_ms", "0"),
            ("upstreams.resilience.health_ms", "0"),
            ("upstreams.resilience.idle_seconds", "0"),
            ("upstreams.resilience.queue", "0"),
            ("upstreams.resilience.eject_ms", "0"),
            ("upstreams.resilience.eject_max_ms", "1"),
            ("upstreams.resilience.eject_percent", "101"),
            ("upstreams.resilience.breaker_percent", "0"),
            ("upstreams.resilience.breaker_open_ms", "0"),
            ("upstreams.resilience.retry_percent", "101"),
            ("upstreams.resilience.retry_attempts", "6"),
            ("upstreams.resilience.colour", "1"),
        ] {
            let error = check(key, value).unwrap_err();
            assert!(error.contains(key.rsplit('.').next().unwrap()), "{key}: {error}");
        }
    }
}
