//! The one public door: TLS, authentication, routing and transcoding, limits, WebSocket.
//!
//! It owns nothing durable and knows no message by type: routes, policies and codecs come from the
//! descriptors, so that adding an RPC needs no line here. It must never answer an error that did not
//! pass `rescue`, and never reach a SERVICE method.

mod access;
mod body;
mod client;
mod config;
mod cookies;
mod edge;
mod exchange;
mod grpc;
mod grpc_web;
mod health;
mod layers;
mod listener;
mod openapi;
mod patience;
mod rate;
mod rescue;
mod routes;
mod stack;
mod transcode;
mod ws;

pub use config::{Config, CorsConfig, GatewayLinkConfig, LimitsConfig, PublicTlsConfig, UpstreamsConfig};

use std::sync::Arc;

use service_kit::{
    Clock,
    server::{Listeners, Running},
    shutdown::Tasks,
};
pub(crate) use tonic::body::Body;

pub(crate) use client::Client;
pub(crate) use edge::Edge;

/// The service's name.
pub const NAME: &str = "edge-proxy";

/// The defaults, which document the settings.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Serves on the sockets; returns at once.
pub async fn start(config: Config, listeners: Listeners) -> anyhow::Result<Running> {
    start_at(config, listeners, Clock::system()).await
}

/// As [`start`], in the time of `clock`: tests move it.
pub async fn start_at(config: Config, listeners: Listeners, clock: Clock) -> anyhow::Result<Running> {
    let (addr, admin_addr) = (listeners.main.local_addr()?, listeners.admin.local_addr()?);
    let tasks = Tasks::new();
    let edge = Arc::new(Edge::new(config, tasks.clone(), clock)?);
    let readiness = edge.readiness();
    service_kit::admin::spawn(&tasks, listeners.admin, readiness.clone());
    listener::spawn(&edge, listeners.main).await?;
    tracing::info!(service = NAME, %addr, %admin_addr, "serving");
    Ok(Running::new(NAME, addr, admin_addr, tasks, readiness))
}
