//! Channels to other services: a few HTTP/2 connections each under mutual TLS 1.3, made when first
//! needed, made again when lost; trace context and a deadline on every call. Of several addresses those that
//! cannot be reached are left alone until they can.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use http::{HeaderValue, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use proto::Contract;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status, TimeoutExpired,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt as _, service_fn};

use crate::tls::Identity;

/// Where a service is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `HOST:PORT` of its gRPC port; of several instances all of them, with commas between.
    pub address: String,
    /// How many connections to keep to each.
    pub connections: usize,
}

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// How often an address that cannot be reached is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// What calls and long streams need of HTTP/2.
struct Shape {
    stream_window: u32,
    connection_window: u32,
    ping_interval: Duration,
    ping_timeout: Duration,
}

/// Where one instance is.
#[derive(Debug)]
struct Address {
    text: String,
    is_away: AtomicBool,
}

/// One connection.
#[derive(Debug)]
struct Line {
    address: Arc<Address>,
    channel: Channel,
}

/// A pool of connections to one service; generated clients take it as their transport.
#[derive(Debug, Clone)]
pub struct Upstream {
    service: &'static str,
    lines: Arc<[Line]>,
    next: Arc<AtomicUsize>,
}

impl Upstream {
    /// A pool to `service`. Connects when first used.
    pub fn new(identity: &Identity, service: &'static str, config: &UpstreamConfig) -> anyhow::Result<Self> {
        let shape = Shape {
            stream_window: 256 * 1024,
            connection_window: 4 * 1024 * 1024,
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
        };
        Self::shaped(identity, service, config, &shape)
    }

    /// A pool for thousands of long streams. What a stream has not read counts against its connection
    /// too: with these windows, 4,096 streams that are stuck leave room for the one that is not. An instance
    /// that stands still is noticed in 10 s, so that whoever hangs on it goes elsewhere.
    pub fn for_streams(
        identity: &Identity,
        service: &'static str,
        config: &UpstreamConfig,
    ) -> anyhow::Result<Self> {
        let shape = Shape {
            stream_window: 32 * 1024,
            connection_window: 160 * 1024 * 1024,
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
        };
        Self::shaped(identity, service, config, &shape)
    }

    fn shaped(
        identity: &Identity,
        service: &'static str,
        config: &UpstreamConfig,
        shape: &Shape,
    ) -> anyhow::Result<Self> {
        let tls = TlsConnector::from(identity.client(service)?);
        let mut lines = Vec::new();
        for text in config.address.split(',').map(str::trim) {
            let is_address = text
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            let endpoint = is_address.then(|| Endpoint::from_shared(format!("http://{text}")).ok()).flatten();
            let endpoint = endpoint
                .with_context(|| {
                    format!(
                        "the address of {service} must be HOST:PORT, or several with commas between: {text:?}"
                    )
                })?
                .tcp_nodelay(true)
                .http2_keep_alive_interval(shape.ping_interval)
                .keep_alive_timeout(shape.ping_timeout)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(shape.stream_window)
                .initial_connection_window_size(shape.connection_window);
            let address = Arc::new(Address { text: text.to_owned(), is_away: AtomicBool::new(false) });
            lines.extend((0..config.connections.max(1)).map(|_| {
                let (tls, to) = (tls.clone(), address.clone());
                let connector = service_fn(move |_: Uri| connect(tls.clone(), to.clone()));
                Line { address: address.clone(), channel: endpoint.connect_with_connector_lazy(connector) }
            }));
        }
        Ok(Self { service, lines: lines.into(), next: Arc::default() })
    }

    /// The connection for the next call: each in turn, as far as it is known that they can be had.
    fn line(&self) -> &Line {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let lines = (0..self.lines.len()).map(|at| &self.lines[(first + at) % self.lines.len()]);
        let mut there = lines.filter(|line| !line.address.is_away.load(Ordering::Relaxed));
        there.next().unwrap_or(&self.lines[first % self.lines.len()])
    }

    /// The service at the other end.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Whether the service says that it serves (`grpc.health.v1`), within a second.
    pub async fn check(&self) -> anyhow::Result<()> {
        let mut client = tonic_health::pb::health_client::HealthClient::new(self.clone());
        let check = client.check(tonic_health::pb::HealthCheckRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(1), check).await??.into_inner();
        anyhow::ensure!(
            answer.status() == tonic_health::pb::health_check_response::ServingStatus::Serving,
            "{} is not serving",
            self.service
        );
        Ok(())
    }
}

/// Connects for a channel. While an address cannot be reached, calls go to the others.
async fn connect(tls: TlsConnector, to: Arc<Address>) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
    let connected = dial(&tls, &to.text).await;
    let is_away = connected.is_err();
    if is_away && !to.is_away.swap(true, Ordering::Relaxed) {
        let to = Arc::downgrade(&to);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                let Some(to) = to.upgrade() else { return };
                if dial(&tls, &to.text).await.is_ok() {
                    to.is_away.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }
    connected.map(TokioIo::new)
}

async fn dial(tls: &TlsConnector, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let dialled = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        // The name is not what is verified: the SPIFFE name in the certificate is.
        let name =
            rustls::pki_types::ServerName::try_from("tollgate.internal").map_err(std::io::Error::other)?;
        tls.connect(name, socket).await
    };
    tokio::time::timeout(CONNECT, dialled).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut channel = self.line().channel.clone();
        crate::telemetry::inject(request.headers_mut());
        if !request.headers().contains_key("grpc-timeout") {
            let cap = Contract::get().method(request.uri().path()).and_then(|method| method.max_deadline);
            if let Some(value) =
                cap.and_then(|cap| HeaderValue::from_str(&format!("{}m", cap.as_millis())).ok())
            {
                request.headers_mut().insert("grpc-timeout", value);
            }
        }
        Box::pin(async move {
            match channel.ready().await?.call(request).await {
                // tonic reports the passed deadline as CANCELLED.
                Err(error) if is_timeout(&error) => {
                    Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http())
                }
                answer => answer,
            }
        })
    }
}

fn is_timeout(error: &tonic::transport::Error) -> bool {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .any(|error| error.is::<TimeoutExpired>())
}
