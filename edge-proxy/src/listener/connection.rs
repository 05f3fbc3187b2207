//! One connection: who is at its other end, TLS, HTTP/1.1 or HTTP/2, and its end.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use service_kit::client_info;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    Certificate, Door,
    addresses::Seat,
    inspect::{Ambiguous, Inspected},
    proxy,
};
use crate::{
    Client, Edge,
    client::Marks,
    incoming,
    layers::{
        limits::{MAX_HEADER_BYTES, MAX_HEADERS},
        trace::Figures,
    },
    patience::Patient,
    stack,
};

/// How long a TLS handshake, a header of the PROXY protocol, or the headers of a request may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection that was told to end may linger when nothing is under way on it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a connection that was let in while the edge closes may take for its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// What all requests of a connection share. Whoever keeps it keeps the connection counted.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The name that the client asked for, and the certificate that it got.
    named: Option<(String, Arc<Certificate>)>,
    /// A host that the certificate is known to be for.
    covered: OnceLock<Box<str>>,
    /// The address of the first client, for services.
    address: OnceLock<(IpAddr, HeaderValue)>,
    ambiguous: Ambiguous,
    /// What is measured of its requests.
    pub(crate) figures: Arc<Figures>,
    _place: OwnedSemaphorePermit,
    _seat: Option<Seat>,
}

impl Connection {
    /// Whether a request for this host belongs here. A client that named a host in its handshake got the
    /// certificate for it; what it sends for hosts that this does not cover was meant for somebody else (421).
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let Some((_, certificate)) = &self.named else { return true };
        if self.covered.get().is_some_and(|covered| **covered == *host) {
            return true;
        }
        let covers = certificate.covers(host);
        if covers {
            // Who came first stays: a connection is for one host, as a rule.
            let _ = self.covered.set(host.into());
        }
        covers
    }

    /// The text of a client's address: as a rule all requests of a connection are of one client.
    pub(crate) fn address_text(&self, address: IpAddr) -> HeaderValue {
        let text = || client_info::address_text(address);
        let (known, value) = self.address.get_or_init(|| (address, text()));
        if *known == address { value.clone() } else { text() }
    }

    /// Whether a request came with two lengths.
    pub(crate) fn was_ambiguous(&self) -> bool {
        self.ambiguous.was_seen()
    }
}

impl Door {
    pub(super) async fn connection(
        self,
        mut socket: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> anyhow::Result<()> {
        socket.set_nodelay(true)?;
        let live = self.edge.live.load_full();
        let peer = match live.proxied.hold(peer.ip()) {
            true => timeout(HANDSHAKE, proxy::read(&mut socket)).await??.unwrap_or(peer),
            false => peer,
        };
        let seat = self.seat(peer.ip())?;
        let (ambiguous, figures) = (Ambiguous::default(), self.edge.figures.clone());
        let connection = |named| Connection {
            named,
            covered: OnceLock::new(),
            address: OnceLock::new(),
            ambiguous: ambiguous.clone(),
            figures,
            _place: place,
            _seat: seat,
        };
        let Some(acceptor) = &self.tls else {
            let stream = Inspected::new(socket, ambiguous.clone());
            return self.serve(stream, builder(), peer, connection(None)).await;
        };
        let stream = timeout(HANDSHAKE, acceptor.accept(socket)).await??;
        let (_, session) = stream.get_ref();
        // What ALPN agreed on is not guessed again: guessing waits for a first byte without a limit.
        let builder = match session.alpn_protocol() {
            Some(b"h2") => builder().http2_only(),
            _ => builder().http1_only(),
        };
        let certificate = || self.edge.live.load().certificate.clone();
        let connection = connection(session.server_name().map(|name| (name.to_owned(), certificate())));
        let stream = Inspected::new(stream, ambiguous);
        self.serve(stream, builder, peer, connection).await
    }

    /// A seat among those of the address; a proxy that we trust brings many clients, and needs none.
    fn seat(&self, address: IpAddr) -> anyhow::Result<Option<Seat>> {
        let live = self.edge.live.load();
        if live.trusted_proxies.trusts(address) {
            return Ok(None);
        }
        let seat = self.addresses.enter(address, live.bounds.connections_per_address);
        if seat.is_none() {
            metrics::counter!("tollgate_edge_connections_cut_total", "why" => "address").increment(1);
        }
        seat.map(Some).context("the address has as many connections as it may")
    }

    async fn serve<I>(
        self,
        stream: I,
        builder: auto::Builder<TokioExecutor>,
        peer: SocketAddr,
        connection: Connection,
    ) -> anyhow::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let usage = Arc::new(Usage::default());
        let seconds = |seconds: u64| Duration::from_secs(seconds.max(1));
        let (idle, patience) = {
            let bounds = &self.edge.live.load().bounds;
            (seconds(bounds.idle_seconds), seconds(bounds.write_seconds))
        };
        let is_h2 = !builder.is_http1_available();
        let (stop, closing) = (self.edge.tasks.stopping(), self.closing);
        let (counted, stopping) = (usage.clone(), stop.clone());
        let (edge, secure, connection) = (self.edge, self.tls.is_some(), Arc::new(connection));
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let (mut request, rest) = incoming::accept(request);
            // Here, while the headers are as they came: no layer keeps those of proxies.
            let client = client(&edge, peer, secure, &connection, counted.begin(), request.headers());
            let is_h1 = request.version() < Version::HTTP_2;
            request.extensions_mut().insert(client);
            let (edge, stopping) = (edge.clone(), stopping.clone());
            async move {
                let mut response = stack::answer(edge, request).await;
                let unread = match rest {
                    Some(rest) => {
                        rest.ends_connection().await || response.status() == StatusCode::REQUEST_TIMEOUT
                    }
                    None => false,
                };
                // The client's next request goes elsewhere, without a race between it and our close.
                if (unread || is_h1 && stopping.is_cancelled()) && !response.status().is_informational() {
                    response
                        .headers_mut()
                        .insert(header::CONNECTION, const { HeaderValue::from_static("close") });
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(Patient::new(stream, patience)), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            done = connection.as_mut() => return done.map_err(anyhow::Error::from_boxed),
            () = closing.cancelled() => {}
            // HTTP/2 can be told at once: what is sent meanwhile is still answered.
            () = stop.cancelled(), if is_h2 => {}
            () = usage.idle(idle) => {}
        }
        if stop.is_cancelled() {
            // Let in a moment ago: it has a request for us, and must not have been let in for nothing.
            tokio::select! {
                done = connection.as_mut() => return done.map_err(anyhow::Error::from_boxed),
                () = usage.first() => {}
                () = sleep(FIRST_REQUEST) => {}
            }
        }
        connection.as_mut().graceful_shutdown();
        // Requests under way finish; a client that does not hear the farewell is not waited for.
        tokio::select! {
            done = connection.as_mut() => done.map_err(anyhow::Error::from_boxed),
            () = usage.idle(FAREWELL) => Ok(()),
        }
    }
}

fn client(
    edge: &Edge,
    peer: SocketAddr,
    secure: bool,
    connection: &Arc<Connection>,
    ticket: Ticket,
    headers: &HeaderMap,
) -> Client {
    let address = edge.live.load().trusted_proxies.client(peer, headers);
    Client { address, secure, connection: connection.clone(), _ticket: Arc::new(ticket) }
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
        // Streams that were reset before anybody looked at them, and streams that we had to reset.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(128)
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
pub(crate) struct Ticket {
    usage: Arc<Usage>,
    marks: Marks,
}

impl Ticket {
    /// What happened to it so far.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }
}

impl Usage {
    fn begin(self: &Arc<Self>) -> Ticket {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ticket { usage: self.clone(), marks: Marks::new() }
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
            sleep(after).await;
        }
    }

    /// Completes when a request has begun.
    async fn first(&self) {
        while self.begun.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.usage.open.fetch_sub(1, Ordering::Relaxed);
    }
}
