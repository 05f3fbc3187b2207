//! The one public door: TLS, authentication, routing and transcoding, limits, WebSocket.
//!
//! It owns nothing durable and knows no message by type: routes, policies and codecs come from the
//! descriptors, so that adding an RPC needs no line here. It must never answer an error that did not
//! pass `rescue`, and never reach a SERVICE method.

mod access;
mod admin;
mod batch;
mod batched;
mod body;
mod cache;
mod client;
mod codings;
mod composite;
mod config;
mod connect;
mod cookies;
mod edge;
mod envelope;
mod exchange;
mod grpc;
mod grpc_web;
mod health;
mod held;
mod http2;
mod incoming;
mod layers;
mod listener;
mod live;
mod load;
mod openapi;
mod patience;
mod rate;
mod reload;
mod requests;
mod rescue;
mod routes;
mod sockets;
mod stack;
mod subcall;
mod switches;
mod transcode;
mod upstream;
mod ws;

pub use cache::CacheConfig;
pub use config::{
    ConcurrencyConfig, Config, CorsConfig, GatewayLinkConfig, LimitsConfig, PublicTlsConfig, ReloadConfig,
    ResilienceConfig, RestartConfig, RoutesConfig, SharedLimitsConfig, SocketsConfig, UpstreamConfig,
    UpstreamsConfig,
};

use std::sync::Arc;

use service_kit::{
    Clock,
    config::Source,
    server::{Listeners, Running},
    shutdown::Tasks,
};
pub(crate) use tonic::body::Body;

pub(crate) use client::Client;
pub(crate) use edge::Edge;
use reload::Reload;

/// The service's name.
pub const NAME: &str = "edge-proxy";

/// The defaults, which document the settings.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Serves on the sockets; returns at once. Reads its settings again when they change.
pub async fn start(source: Source, listeners: Listeners) -> anyhow::Result<Running> {
    start_at(source, listeners, Clock::system()).await
}

/// As [`start`], in the time of `clock`: tests move it.
pub async fn start_at(source: Source, listeners: Listeners, clock: Clock) -> anyhow::Result<Running> {
    let (addr, admin_addr) = (listeners.main.local_addr()?, listeners.admin.local_addr()?);
    let tasks = Tasks::new();
    let layers = source.read()?;
    let edge = Arc::new(Edge::new(layers.extract()?, tasks.clone(), clock)?);
    let readiness = edge.readiness();
    let reload = Reload::start(&edge, source, layers)?;
    let more = admin::router(&edge, &reload).merge(upstream::report::routes(&edge));
    service_kit::admin::spawn_with(&tasks, listeners.admin, readiness.clone(), more);
    edge.follow_changes().await?;
    listener::spawn(&edge, listeners.main).await?;
    tracing::info!(service = NAME, %addr, %admin_addr, "serving");
    Ok(Running::new(NAME, addr, admin_addr, tasks, readiness))
}
