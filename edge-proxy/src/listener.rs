//! The public sockets: TLS, HTTP/1.1 and HTTP/2 on one port, a bounded number of connections, drain.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use service_kit::tls::{DevCa, PublicCert, TlsConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{
    Client, Edge,
    config::PublicTlsConfig,
    layers::{
        Next,
        limits::{MAX_HEADER_BYTES, MAX_HEADERS},
    },
    patience::Patient,
};

/// How long a TLS handshake, or the headers of a request, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection that was told to end may linger when nothing is under way on it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves HTTPS on a socket, and plain HTTP where the configuration asks for it.
pub(crate) async fn spawn(edge: &Arc<Edge>, listener: TcpListener) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&edge.config.public_tls, &edge.config.tls)?));
    let stack = crate::stack::stack(edge)?;
    let places = Arc::new(Semaphore::new(edge.config.limits.connections));
    let plain = &edge.config.plain_listen;
    if !plain.is_empty() {
        let listener = TcpListener::bind(plain).await.with_context(|| format!("cannot listen on {plain}"))?;
        tracing::warn!(addr = %listener.local_addr()?, "serving plain HTTP");
        let door = Door { edge: edge.clone(), stack: stack.clone(), places: places.clone(), tls: None };
        edge.tasks.spawn("plain listener", door.keep(listener));
    }
    let door = Door { edge: edge.clone(), stack, places, tls: Some(acceptor) };
    edge.tasks.spawn("public listener", door.keep(listener));
    Ok(())
}

/// TLS 1.2 and 1.3 with rustls's suites (no CBC, no RSA key exchange), h2 before HTTP/1.1.
fn server_config(public: &PublicTlsConfig, tls: &TlsConfig) -> anyhow::Result<ServerConfig> {
    let PublicCert { chain, key } = public_cert(public, tls)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn public_cert(public: &PublicTlsConfig, tls: &TlsConfig) -> anyhow::Result<PublicCert> {
    match (public.cert.as_os_str().is_empty(), public.key.as_os_str().is_empty()) {
        (false, false) => service_kit::tls::read_public(&public.cert, &public.key),
        (true, true) if !tls.dev_ca_dir.as_os_str().is_empty() => {
            DevCa::load_or_create(&tls.dev_ca_dir)?.public()
        }
        (true, true) => anyhow::bail!("[public_tls] needs `cert` and `key`: there is no development CA"),
        _ => anyhow::bail!("[public_tls] needs both `cert` and `key`, or neither"),
    }
}

/// One listening socket and what stands behind it.
#[derive(Clone)]
struct Door<S> {
    edge: Arc<Edge>,
    stack: S,
    places: Arc<Semaphore>,
    tls: Option<TlsAcceptor>,
}

impl<S: Next<Infallible>> Door<S> {
    async fn keep(self, listener: TcpListener) -> anyhow::Result<()> {
        let stop = self.edge.tasks.stopping();
        loop {
            // Without a free place nobody is accepted: they wait in the backlog.
            let place = tokio::select! {
                place = self.places.clone().acquire_owned() => Arc::new(place?),
                () = stop.cancelled() => return Ok(()),
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return Ok(()),
            };
            match accepted {
                Ok((socket, addr)) => {
                    let connection = self.clone().connection(socket, addr, place, stop.clone());
                    self.edge.tasks.spawn_short(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%addr, error = format!("{error:#}"), "connection ended");
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
    }

    async fn connection(
        self,
        socket: TcpStream,
        addr: SocketAddr,
        place: Arc<OwnedSemaphorePermit>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let secure = self.tls.is_some();
        let edge = self.edge.clone();
        let client = move |ticket, headers: &HeaderMap| {
            let address = edge.trusted_proxies.client(addr, headers);
            Client { address, secure, _place: place.clone(), _ticket: Arc::new(ticket) }
        };
        socket.set_nodelay(true)?;
        let Some(acceptor) = &self.tls else {
            return self.serve(socket, builder(), client, stop).await;
        };
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await??;
        // What ALPN agreed on is not guessed again: guessing waits for a first byte without a limit.
        let builder = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => builder().http2_only(),
            _ => builder().http1_only(),
        };
        self.serve(stream, builder, client, stop).await
    }

    async fn serve<I>(
        self,
        stream: I,
        builder: auto::Builder<TokioExecutor>,
        client: impl Fn(Ticket, &HeaderMap) -> Client,
        stop: CancellationToken,
    ) -> anyhow::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let usage = Arc::new(Usage::default());
        let idle = Duration::from_secs(self.edge.config.limits.idle_seconds.max(1));
        let patience = Duration::from_secs(self.edge.config.limits.write_seconds.max(1));
        let (stack, counted) = (self.stack, usage.clone());
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            // Here, while the headers are as they came: no layer keeps those of proxies.
            let client = client(counted.begin(), request.headers());
            request.extensions_mut().insert(client);
            stack.clone().oneshot(request)
        });
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(Patient::new(stream, patience)), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            done = connection.as_mut() => return done.map_err(anyhow::Error::from_boxed),
            () = stop.cancelled() => {}
            () = usage.idle(idle) => {}
        }
        connection.as_mut().graceful_shutdown();
        // Requests under way finish; a client that does not hear the farewell is not waited for.
        tokio::select! {
            done = connection.as_mut() => done.map_err(anyhow::Error::from_boxed),
            () = usage.idle(FAREWELL) => Ok(()),
        }
    }
}

/// HTTP as we take it. The timer is what makes the header time-out work at all.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Whether anything happens on a connection.
#[derive(Debug, Default)]
struct Usage {
    begun: AtomicU64,
    open: AtomicUsize,
}

/// A request under way, until the last byte of its answer has gone.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Usage>);

impl Usage {
    fn begin(self: &Arc<Self>) -> Ticket {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ticket(self.clone())
    }

    /// Completes when for this long no request began and none was under way.
    async fn idle(&self, after: Duration) {
        let mut seen = None;
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            if seen == Some(begun) && self.open.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = Some(begun);
            tokio::time::sleep(after).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
