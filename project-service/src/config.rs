//! The service's settings; `config.default.toml` documents each of them.

use std::path::PathBuf;

use serde::Deserialize;
use service_kit::{
    bus::BusConfig, client::UpstreamConfig, db::DatabaseConfig, idempotency::IdempotencyConfig,
    telemetry::TelemetryConfig, tls::TlsConfig, token::TokenConfig,
};

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
    /// Who the service is towards others.
    pub tls: TlsConfig,
    /// Where its data is.
    pub database: DatabaseConfig,
    /// Its keys.
    pub keys: KeysConfig,
    /// The keys of callers.
    pub idempotency: IdempotencyConfig,
    /// What access tokens must say.
    pub token: TokenConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Who hears of changes.
    pub bus: BusConfig,
    /// The services that it calls.
    pub upstreams: UpstreamsConfig,
}

/// The `[keys]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// The file with the key that encrypts private keys at rest; made when it is not there.
    pub sealing_key_file: PathBuf,
}

/// The `[upstreams]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamsConfig {
    /// auth-service.
    pub auth: UpstreamConfig,
    /// gateway-service.
    pub gateway: UpstreamConfig,
}
