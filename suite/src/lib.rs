//! The whole of Tollgate in one process: binds every socket, starts the services in order, stops them
//! in reverse. Also the clients that try it: one of the public API, one that behaves like a gateway.
//!
//! The services still talk to each other over real sockets under mutual TLS; nothing here reaches into
//! them, so development and production take the same path.

pub mod cli;
pub mod client;
pub mod controller;
pub mod demo;
pub mod gateway;
pub mod grpc;
pub mod settings;
pub mod transport;
pub mod trust;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use service_kit::{
    config::Source,
    server::{Listeners, Running},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::settings::Plan;

/// How long the services may take to become ready.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// How to run the suite.
#[derive(Debug, Clone)]
pub struct SuiteConfig {
    /// The folder for databases, keys and the development CA; made when it is not there.
    pub data_dir: PathBuf,
    /// `HOST:PORT` of the edge. With port 0 every internal listener takes a free port too.
    pub listen: String,
    /// A TOML file with sections `[auth]`, `[project]`, `[gateway]`, `[edge]` over the services' defaults.
    pub file: Option<PathBuf>,
}

/// All services, running.
#[derive(Debug)]
pub struct Suite {
    auth: Running,
    project: Running,
    gateway: Running,
    edge: Running,
    url: String,
    ca_file: PathBuf,
}

impl Suite {
    /// Starts all services and waits until they are ready.
    ///
    /// # Errors
    /// When the configuration is not valid, a socket is taken, or a service does not become ready in 30 s.
    pub async fn start(config: SuiteConfig) -> anyhow::Result<Self> {
        service_kit::tls::install_provider();
        let mut plan = Plan::read(&config)?;
        let auth = plan.auth.bind().await?;
        let project = plan.project.bind().await?;
        let gateway = plan.gateway.bind().await?;
        let edge = plan.edge.bind().await?;
        let bound = [("auth", &auth), ("project", &project), ("gateway", &gateway)];
        let mut upstreams = Vec::new();
        for (name, listeners) in bound {
            upstreams.push((name, listeners.main.local_addr()?));
        }
        for (name, address) in &upstreams {
            plan.connect(name, *address);
        }
        let url = public_url(&config.listen, edge.main.local_addr()?);
        plan.publish(&url)?;
        plan.share_bus()?;

        // Channels connect when first used, so the order is that of the arrows and nothing more.
        let auth = Box::pin(start(&plan.auth, auth, auth_service::start)).await?;
        let project = Box::pin(start(&plan.project, project, project_service::start)).await?;
        let gateway = Box::pin(start(&plan.gateway, gateway, gateway_service::start)).await?;
        let settings = edge_settings(config.clone(), upstreams);
        let edge = Box::pin(edge_proxy::start(settings, edge)).await;
        let edge = edge.with_context(|| format!("cannot start {}", plan.edge.name))?;

        let ca_file = ca_file(&config.data_dir);
        let suite = Self { auth, project, gateway, edge, url, ca_file };
        tokio::select! {
            ready = suite.ready() => ready?,
            reason = suite.failure() => anyhow::bail!("{reason}"),
        }
        Ok(suite)
    }

    /// Where clients come in: `https://localhost:8443`.
    pub fn edge_url(&self) -> &str {
        &self.url
    }

    /// The file with the CA that clients are to believe.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// auth-service.
    pub fn auth(&self) -> &Running {
        &self.auth
    }

    /// project-service.
    pub fn project(&self) -> &Running {
        &self.project
    }

    /// gateway-service.
    pub fn gateway(&self) -> &Running {
        &self.gateway
    }

    /// edge-proxy.
    pub fn edge(&self) -> &Running {
        &self.edge
    }

    /// Completes when a service has died; says which and why.
    pub async fn failure(&self) -> String {
        tokio::select! {
            reason = self.auth.failure() => format!("auth-service died: {reason}"),
            reason = self.project.failure() => format!("project-service died: {reason}"),
            reason = self.gateway.failure() => format!("gateway-service died: {reason}"),
            reason = self.edge.failure() => format!("edge-proxy died: {reason}"),
        }
    }

    /// Drains: the edge first, so that nothing new comes in, then the services behind it.
    pub async fn shutdown(self) {
        self.edge.shutdown().await;
        self.gateway.shutdown().await;
        self.project.shutdown().await;
        self.auth.shutdown().await;
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let services = [&self.auth, &self.project, &self.gateway, &self.edge];
        let all = async {
            for service in services {
                while !is_ready(service.admin_addr).await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        tokio::time::timeout(READY_PATIENCE, all).await.context("the services did not become ready in 30 s")
    }
}

/// The CA file of a data folder.
pub fn ca_file(data_dir: &Path) -> PathBuf {
    data_dir.join("tls").join("ca.pem")
}

/// The settings of the edge, read again from the suite's file when that changes.
fn edge_settings(config: SuiteConfig, upstreams: Vec<(&'static str, SocketAddr)>) -> Source {
    Source::new(move || {
        let mut plan = Plan::read(&config)?;
        for (name, address) in &upstreams {
            plan.connect(name, *address);
        }
        Ok(plan.edge.layers)
    })
}

async fn start<C, F>(
    service: &settings::Service,
    listeners: Listeners,
    start: fn(C, Listeners) -> F,
) -> anyhow::Result<Running>
where
    C: serde::de::DeserializeOwned,
    F: Future<Output = anyhow::Result<Running>>,
{
    let config = service.layers.extract().with_context(|| format!("[{}]", service.section))?;
    start(config, listeners).await.with_context(|| format!("cannot start {}", service.name))
}

/// Asks `/readyz` of an admin port.
async fn is_ready(admin: SocketAddr) -> bool {
    let ask = async {
        let mut socket = TcpStream::connect(admin).await?;
        socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: tollgate\r\nconnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        socket.read_exact(&mut status).await?;
        std::io::Result::Ok(&status == b"HTTP/1.1 200")
    };
    ask.await.unwrap_or(false)
}

/// The URL to tell people: a loopback address is `localhost`, which the development certificate names.
fn public_url(listen: &str, bound: SocketAddr) -> String {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let host = match address {
        Some(address) if address.is_loopback() || address.is_unspecified() => "localhost",
        _ => host,
    };
    format!("https://{host}:{}", bound.port())
}

#[cfg(test)]
mod tests {
    use super::public_url;

    #[test]
    fn loopback_is_called_localhost() {
        let bound = "127.0.0.1:8443".parse().unwrap();
        for (listen, url) in [
            ("127.0.0.1:8443", "https://localhost:8443"),
            ("[::1]:0", "https://localhost:8443"),
            ("0.0.0.0:0", "https://localhost:8443"),
            ("localhost:0", "https://localhost:8443"),
            ("tollgate.example:8443", "https://tollgate.example:8443"),
            ("192.0.2.7:8443", "https://192.0.2.7:8443"),
        ] {
            assert_eq!(public_url(listen, bound), url);
        }
    }
}
