//! The server of every service: bind first, then serve gRPC under mutual TLS and the admin port; drain.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto::Contract;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::{body::Body, service::Routes};
use tower::{Layer as _, ServiceExt as _, util::BoxCloneSyncService};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    access::{AccessLayer, Peer},
    admin::Readiness,
    shutdown::Tasks,
    telemetry::TraceLayer,
    tls::Identity,
    token::Verifier,
};

/// How long calls under way may take to finish when a service drains.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many connections may wait to be accepted, as tokio has it.
const BACKLOG: u32 = 1_024;

/// The sockets of a service. Bound before anything else, so that their addresses are known.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC (of the edge: for everything public).
    pub main: TcpListener,
    /// For `/livez`, `/readyz`, `/metrics`.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds `HOST:PORT` twice; port 0 takes a free one.
    pub async fn bind(main: &str, admin: &str) -> anyhow::Result<Self> {
        Self::bind_as(main, admin, false).await
    }

    /// The same; with `reuse_port` other processes that say so too may listen on the same ports.
    pub async fn bind_as(main: &str, admin: &str, reuse_port: bool) -> anyhow::Result<Self> {
        Ok(Self { main: bind(main, reuse_port).await?, admin: bind(admin, reuse_port).await? })
    }
}

/// Binds `HOST:PORT`; with `reuse_port` other processes that say so too may listen there.
pub async fn bind(address: &str, reuse_port: bool) -> anyhow::Result<TcpListener> {
    let context = || format!("cannot listen on {address}");
    if !reuse_port {
        return TcpListener::bind(address).await.with_context(context);
    }
    let found = tokio::net::lookup_host(address).await.with_context(context)?.next();
    let found = found.with_context(context)?;
    let socket = if found.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let listen = |socket: TcpSocket| {
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(found)?;
        socket.listen(BACKLOG)
    };
    socket.and_then(listen).with_context(context)
}

/// A service that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it serves.
    pub addr: SocketAddr,
    /// Where its admin port is.
    pub admin_addr: SocketAddr,
    name: &'static str,
    tasks: Tasks,
    readiness: Readiness,
}

impl Running {
    /// A service whose tasks serve on these sockets.
    pub fn new(
        name: &'static str,
        addr: SocketAddr,
        admin_addr: SocketAddr,
        tasks: Tasks,
        readiness: Readiness,
    ) -> Self {
        Self { addr, admin_addr, name, tasks, readiness }
    }

    /// Completes when a background task has died; says which and why.
    pub async fn failure(&self) -> String {
        self.tasks.failure().await
    }

    /// Drains: readiness off, no new connections, calls under way finish, tasks end.
    pub async fn shutdown(self) {
        self.readiness.set_draining();
        tracing::info!(service = self.name, "draining");
        if !self.tasks.drain(PATIENCE).await {
            tracing::warn!(service = self.name, "some work did not finish in time and was given up");
        }
    }

    /// Runs until a signal, then drains; fails when a background task dies.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            signal = crate::shutdown::signal() => {
                signal?;
                self.shutdown().await;
                Ok(())
            }
            reason = self.tasks.failure() => Err(anyhow::anyhow!("{} died: {reason}", self.name)),
        }
    }
}

/// The largest request that any method of a service takes: for `max_decoding_message_size`.
pub fn max_request_bytes(service: &str) -> usize {
    Contract::get()
        .methods()
        .filter(|method| method.descriptor.parent_service().full_name() == service)
        .map(|method| method.max_request_bytes)
        .max()
        .unwrap_or(proto::policy::DEFAULT_MAX_REQUEST_BYTES)
}

/// What a gRPC service is made of.
#[derive(Debug)]
pub struct GrpcServer {
    /// The service's name: `auth-service`.
    pub name: &'static str,
    /// Who it is.
    pub identity: Identity,
    /// Verifies callers' tokens.
    pub verifier: Verifier,
    /// Its gRPC services.
    pub routes: Routes,
    /// Its background tasks.
    pub tasks: Tasks,
    /// What must answer before it is ready.
    pub readiness: Readiness,
    /// Whether to offer reflection.
    pub reflection: bool,
}

impl GrpcServer {
    /// Serves on the sockets; returns at once.
    pub async fn serve(self, listeners: Listeners) -> anyhow::Result<Running> {
        let (addr, admin_addr) = (listeners.main.local_addr()?, listeners.admin.local_addr()?);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let mut routes = self.routes.add_service(health_service);
        if self.reflection {
            routes = routes.add_service(reflection(proto::DESCRIPTORS)?);
        }
        let service = AccessLayer::new(self.verifier).layer(routes.prepare());
        let service = TraceLayer::new(self.name).layer(service);
        let service = CatchPanicLayer::custom(panicked).layer(service);
        let service =
            tower::ServiceExt::<Request<Incoming>>::map_response(service, |response| response.map(Body::new));
        let service = BoxCloneSyncService::<Request<Incoming>, Response<Body>, Infallible>::new(service);

        crate::admin::spawn(&self.tasks, listeners.admin, self.readiness.clone());
        let acceptor = TlsAcceptor::from(self.identity.server.clone());
        let tasks = self.tasks.clone();
        let stop = self.tasks.stopping();
        self.tasks.spawn("gRPC listener", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listeners.main.accept() => accepted,
                    () = stop.cancelled() => break,
                };
                match accepted {
                    Ok((socket, remote)) => {
                        let connection = connection(socket, acceptor.clone(), service.clone(), stop.clone());
                        tasks.spawn_short(async move {
                            if let Err(error) = connection.await {
                                tracing::debug!(%remote, error = format!("{error:#}"), "connection ended");
                            }
                        });
                    }
                    // Out of descriptors or memory: wait until some come back instead of spinning.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            Ok(())
        });
        tracing::info!(service = self.name, %addr, %admin_addr, "serving");
        Ok(Running::new(self.name, addr, admin_addr, self.tasks, self.readiness))
    }
}

/// Reflection of a descriptor set.
pub fn reflection(
    descriptors: &'static [u8],
) -> anyhow::Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?)
}

/// The same by the name that clients know which are older than the stable one, such as grpcio-reflection.
pub fn reflection_v1alpha(
    descriptors: &'static [u8],
) -> anyhow::Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?)
}

async fn connection<S>(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    service: S,
    stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()>
where
    S: tower::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    socket.set_nodelay(true)?;
    let stream = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(socket)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer =
        certificate.and_then(crate::tls::service_of).context("the peer's certificate names no service")?;
    let peer = Peer(Arc::from(peer));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(4_096)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .max_header_list_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return Ok(done?),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response<Body> {
    tonic::Status::from(of_panic(&*panic)).into_http()
}

/// A handler that panicked is our fault, and what it said is for the log.
pub(crate) fn of_panic(panic: &(dyn std::any::Any + Send)) -> crate::Error {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    crate::Error::internal(anyhow::anyhow!("a handler panicked: {message}"))
}
