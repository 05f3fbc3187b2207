//! The settings of auth-service; `config.default.toml` documents them.

use std::{ops::RangeInclusive, path::PathBuf};

use serde::Deserialize;
use service_kit::{db::DatabaseConfig, telemetry::TelemetryConfig, tls::TlsConfig, token::TokenConfig};

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT` of the gRPC port.
    pub listen: String,
    /// `HOST:PORT` of the admin port.
    pub admin_listen: String,
    /// Whether to offer gRPC reflection.
    pub reflection: bool,
    /// Who this process is.
    pub tls: TlsConfig,
    /// Where accounts are kept.
    pub database: DatabaseConfig,
    /// What access tokens say.
    pub token: TokenConfig,
    /// How signing keys are kept.
    pub keys: KeysConfig,
    /// The rules of passwords and the cost of their hashes.
    pub password: PasswordConfig,
    /// The cost of failed logins.
    pub throttle: ThrottleConfig,
    /// How long sessions and their tokens live.
    pub session: SessionConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// The `[keys]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// The file with the key that encrypts signing keys at rest.
    pub sealing_key_file: PathBuf,
}

/// The `[password]` section.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordConfig {
    /// The fewest code points of a new password.
    pub min_length: usize,
    /// argon2id: memory in KiB.
    pub memory_kib: u32,
    /// argon2id: passes over the memory.
    pub iterations: u32,
    /// argon2id: lanes.
    pub parallelism: u32,
}

/// The `[throttle]` section. Times are seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThrottleConfig {
    /// How many failures in a row cost no wait.
    pub free_failures: u32,
    /// The longest wait.
    pub max_wait: u32,
    /// When failures are forgotten, counted from the last.
    pub forget_after: u32,
}

/// The `[session]` section. Times are seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// How long an access token lives.
    pub access_lifetime: u32,
    /// How long an unused refresh token lives.
    pub refresh_idle: u32,
    /// How long a session lives, however busy.
    pub lifetime: u32,
}

impl Config {
    /// Refuses what would weaken passwords, or would make tokens that nobody accepts.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let (password, session) = (&self.password, &self.session);
        let min_length = u32::try_from(password.min_length).unwrap_or(u32::MAX);
        within("password.min_length", min_length, 8..=64)?;
        within("password.memory_kib", password.memory_kib, 19_456..=crate::domain::hashing::MAX_MEMORY_KIB)?;
        within("password.iterations", password.iterations, 2..=crate::domain::hashing::MAX_ITERATIONS)?;
        within("password.parallelism", password.parallelism, 1..=crate::domain::hashing::MAX_PARALLELISM)?;
        // A throttle that forgets before it has locked is none.
        within("throttle.max_wait", self.throttle.max_wait, 1..=86_400)?;
        within("throttle.forget_after", self.throttle.forget_after, self.throttle.max_wait..=604_800)?;
        within("throttle.free_failures", self.throttle.free_failures, 1..=100)?;
        within("session.access_lifetime", session.access_lifetime, 300..=900)?;
        within("session.lifetime", session.lifetime, session.access_lifetime..=31_536_000)?;
        within("session.refresh_idle", session.refresh_idle, session.access_lifetime..=session.lifetime)
    }
}

fn within(key: &str, value: u32, range: RangeInclusive<u32>) -> anyhow::Result<()> {
    let (min, max) = (range.start(), range.end());
    anyhow::ensure!(range.contains(&value), "{key} is {value}, and must be {min} to {max}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use service_kit::config::Layers;

    use super::Config;

    fn with(key: &str, value: &str) -> anyhow::Result<()> {
        let layers = Layers::new(crate::DEFAULTS, None, "TOLLGATE_AUTH_TEST__")?.set(key, value);
        layers.extract::<Config>()?.check()
    }

    #[test]
    fn the_defaults_are_valid() {
        with("listen", "127.0.0.1:0").unwrap();
    }

    #[test]
    fn weak_and_impossible_settings_are_named() {
        for (key, value) in [
            ("password.memory_kib", "19455"),
            ("password.iterations", "1"),
            ("password.parallelism", "17"),
            ("password.min_length", "7"),
            ("throttle.free_failures", "0"),
            ("throttle.forget_after", "10"),
            ("session.access_lifetime", "901"),
            ("session.refresh_idle", "2592001"),
            ("session.lifetime", "3"),
            ("session.unknown", "1"),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            let last = key.rsplit('.').next().unwrap();
            assert!(error.contains(last), "{key}: {error}");
        }
    }
}
