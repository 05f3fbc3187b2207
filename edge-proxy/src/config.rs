//! The settings of the edge; `config.default.toml` documents them.

mod concurrency;
mod restart;
mod routes;
mod shared;
mod sockets;

use std::path::PathBuf;

use serde::Deserialize;
use service_kit::{bus::BusConfig, telemetry::TelemetryConfig, tls::TlsConfig, token::TokenConfig};

use crate::cache::CacheConfig;

pub use crate::upstream::config::{ResilienceConfig, UpstreamConfig, UpstreamsConfig};

pub use concurrency::ConcurrencyConfig;
pub use restart::{ReloadConfig, RestartConfig};
pub use routes::RoutesConfig;
pub use shared::SharedLimitsConfig;

pub use sockets::SocketsConfig;

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT` of HTTPS.
    pub listen: String,
    /// `HOST:PORT` of the admin port.
    pub admin_listen: String,
    /// `HOST:PORT` of plain HTTP; none when empty.
    pub plain_listen: String,
    /// Whether to offer gRPC reflection.
    pub reflection: bool,
    /// Networks (`10.0.0.0/8`) of the proxies in front, whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<String>,
    /// Networks whose connections begin with a header of the PROXY protocol: all of them, and no others.
    pub proxy_protocol: Vec<String>,
    /// Who the edge is towards the services.
    pub tls: TlsConfig,
    /// The certificate that clients see.
    pub public_tls: PublicTlsConfig,
    /// What access tokens must say.
    pub token: TokenConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Where the services are.
    pub upstreams: UpstreamsConfig,
    /// Which browser applications may call.
    pub cors: CorsConfig,
    /// The rhythm of gateways' sockets.
    pub gateway_link: GatewayLinkConfig,
    /// The rhythm of WebSockets that carry calls.
    pub sockets: SocketsConfig,
    /// Bounds of everything.
    pub limits: LimitsConfig,
    /// Switches of single methods.
    pub routes: RoutesConfig,
    /// How another process takes the place of this one.
    pub restart: RestartConfig,
    /// When settings are read again.
    pub reload: ReloadConfig,
    /// What services are given at once.
    pub concurrency: ConcurrencyConfig,
    /// Who says what changed.
    pub bus: BusConfig,
    /// Answers that are kept.
    pub cache: CacheConfig,
}

/// The certificate that clients see; a leaf of the development CA when both are empty.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicTlsConfig {
    /// The chain, leaf first, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Which browser applications may call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// Exact origins, `https://app.example.com`; there is no wildcard.
    pub allowed_origins: Vec<String>,
}

/// The rhythm of gateways' sockets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayLinkConfig {
    /// Seconds between two pings. Controllers reconnect when they see none for 35.
    pub ping_seconds: u64,
    /// Seconds after the last byte of a gateway at which it counts as dead.
    pub dead_seconds: u64,
    /// Seconds without a sign of life of gateway-service at which a socket is closed, so that its gateway
    /// comes to another instance.
    pub platform_seconds: u64,
}

/// Bounds of everything that callers could otherwise make as large as they like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Open connections, WebSockets included.
    pub connections: usize,
    /// Open connections of one address.
    pub connections_per_address: usize,
    /// Seconds after which a connection without a request under way is closed.
    pub idle_seconds: u64,
    /// Seconds after which a client is cut that takes nothing of what there is for it.
    pub write_seconds: u64,
    /// Milliseconds within which a request body must have arrived.
    pub request_body_ms: u64,
    /// Calls of CREDENTIAL methods from one address in a minute, failed exchanges of opaque tokens included.
    pub credential_per_minute: u32,
    /// Calls of SIGN_UP methods from one address in an hour.
    pub sign_up_per_hour: u32,
    /// Calls of MAIL methods from one address in an hour.
    pub mail_per_hour: u32,
    /// Calls of REFRESH methods from one address in a minute.
    pub refresh_per_minute: u32,
    /// Connection attempts of gateways from one address in a minute.
    pub gateway_connects_per_minute: u32,
    /// Calls from one address in a minute, before anybody is authenticated.
    pub address_per_minute: u32,
    /// Calls of one user in a minute.
    pub user_per_minute: u32,
    /// Calls with one session, personal token or key, or gateway's token in a minute.
    pub token_per_minute: u32,
    /// Calls of HEAVY methods of one user or gateway in a minute.
    pub heavy_per_minute: u32,
    /// Where several edges count together.
    pub shared: SharedLimitsConfig,
}
