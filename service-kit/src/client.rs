//! Channels to other services: a few HTTP/2 connections each under mutual TLS 1.3, made when first
//! needed, made again when lost; trace context and a deadline on every call.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

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
    /// `HOST:PORT` of its gRPC port.
    pub address: String,
    /// How many connections to keep.
    pub connections: usize,
}

/// A pool of connections to one service; generated clients take it as their transport.
#[derive(Debug, Clone)]
pub struct Upstream {
    service: &'static str,
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
}

impl Upstream {
    /// A pool to `service`. Connects when first used.
    pub fn new(identity: &Identity, service: &'static str, config: &UpstreamConfig) -> anyhow::Result<Self> {
        Self::with_windows(identity, service, config, 256 * 1024, 4 * 1024 * 1024)
    }

    /// A pool for thousands of long streams. What a stream has not read counts against its connection
    /// too: with these windows, 4,096 streams that are stuck leave room for the one that is not.
    pub fn for_streams(
        identity: &Identity,
        service: &'static str,
        config: &UpstreamConfig,
    ) -> anyhow::Result<Self> {
        Self::with_windows(identity, service, config, 32 * 1024, 160 * 1024 * 1024)
    }

    fn with_windows(
        identity: &Identity,
        service: &'static str,
        config: &UpstreamConfig,
        stream_window: u32,
        connection_window: u32,
    ) -> anyhow::Result<Self> {
        let tls = TlsConnector::from(identity.client(service)?);
        let endpoint = Endpoint::from_shared(format!("http://{}", config.address))?
            .connect_timeout(Duration::from_secs(3))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window);
        let channels = (0..config.connections.max(1))
            .map(|_| {
                let (tls, address) = (tls.clone(), config.address.clone());
                endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
                    connect(tls.clone(), address.clone())
                }))
            })
            .collect();
        Ok(Self { service, channels, next: Arc::default() })
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

async fn connect(tls: TlsConnector, address: String) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
    let socket = TcpStream::connect(&address).await?;
    socket.set_nodelay(true)?;
    // The name is not what is verified: the SPIFFE name in the certificate is.
    let name = rustls::pki_types::ServerName::try_from("tollgate.internal").map_err(std::io::Error::other)?;
    Ok(TokioIo::new(tls.connect(name, socket).await?))
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let mut channel = self.channels[at].clone();
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
