//! One connection: who is at its other end, TLS, HTTP/1.1 or HTTP/2, and its end.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, StatusCode, header};
use hyper::{
    server::conn::http1,
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use service_kit::client_info;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Certificate, Door,
    addresses::Seat,
    http2::{self, Http2},
    inspect::{Ambiguous, Inspected},
    proxy,
};
use crate::{
    Body, Client, Edge,
    client::Marks,
    incoming,
    layers::{Request, Response, limits::MAX_HEADERS, trace::Figures},
    patience::Patient,
    rate::Told,
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
    /// What the last of them was told of limits.
    pub(crate) told: Told,
    _place: OwnedSemaphorePermit,
    _seat: Option<Seat>,
}

impl Connection {
    /// Whether the client named a host in its handshake.
    pub(crate) fn is_named(&self) -> bool {
        self.named.is_some()
    }

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
            told: Told::default(),
            _place: place,
            _seat: seat,
        };
        let Some(acceptor) = &self.tls else {
            let mut stream = Inspected::new(socket, ambiguous.clone());
            let Some(is_http2) = self.first_bytes(&mut stream).await? else { return Ok(()) };
            return self.serve(stream, is_http2, peer, connection(None)).await;
        };
        let stream = timeout(HANDSHAKE, acceptor.accept(socket)).await??;
        let (_, session) = stream.get_ref();
        // What ALPN agreed on is not guessed again.
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let certificate = || self.edge.live.load().certificate.clone();
        let connection = connection(session.server_name().map(|name| (name.to_owned(), certificate())));
        let stream = Inspected::new(stream, ambiguous);
        self.serve(stream, is_http2, peer, connection).await
    }

    /// Whether a client that was not asked speaks HTTP/2; `None` when it says nothing for as long as it may.
    async fn first_bytes(&self, stream: &mut Inspected<TcpStream>) -> anyhow::Result<Option<bool>> {
        let idle = self.edge.live.load().bounds.idle_seconds.max(1);
        tokio::select! {
            is_http2 = stream.is_http2() => Ok(Some(is_http2?)),
            () = sleep(Duration::from_secs(idle)) => Ok(None),
            // Let in a moment ago, it has a request for us.
            () = async { self.closing.cancelled().await; sleep(FIRST_REQUEST).await } => Ok(None),
        }
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
        is_http2: bool,
        peer: SocketAddr,
        connection: Connection,
    ) -> anyhow::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let patience = Duration::from_secs(self.edge.live.load().bounds.write_seconds.max(1));
        let stream = Patient::new(stream, patience);
        let session = Arc::new(Session {
            stop: self.edge.tasks.stopping(),
            edge: self.edge,
            peer,
            secure: self.tls.is_some(),
            connection: Arc::new(connection),
            usage: Arc::default(),
        });
        let phases = Phases { closing: self.closing, is_http2, session: session.clone() };
        if is_http2 {
            let answer = move |request, respond| {
                let request = session.introduced(incoming::accept_http2(request));
                http2::call(Box::pin(stack::answer(session.edge.clone(), request)), respond)
            };
            return phases.run(pin!(Http2::new(stream, answer))).await;
        }
        let service =
            service_fn(move |request| session.clone().answer_http1(request).map(Ok::<_, Infallible>));
        let connection = http1().serve_connection(TokioIo::new(stream), service).with_upgrades();
        phases.run(pin!(connection)).await
    }
}

/// What the requests of a connection need.
struct Session {
    edge: Arc<Edge>,
    peer: SocketAddr,
    secure: bool,
    connection: Arc<Connection>,
    usage: Arc<Usage>,
    stop: CancellationToken,
}

impl Session {
    async fn answer_http1(self: Arc<Self>, request: http::Request<hyper::body::Incoming>) -> Response {
        let (request, rest) = incoming::accept(request);
        let mut response = stack::answer(self.edge.clone(), self.introduced(request)).await;
        let unread = match rest {
            Some(rest) => rest.ends_connection().await || response.status() == StatusCode::REQUEST_TIMEOUT,
            None => false,
        };
        // The client's next request goes elsewhere, without a race between it and our close.
        if (unread || self.stop.is_cancelled()) && !response.status().is_informational() {
            response.headers_mut().insert(header::CONNECTION, const { HeaderValue::from_static("close") });
        }
        response
    }

    /// Notes who sent a request: here, while the headers are as they came: no layer keeps those of proxies.
    fn introduced(&self, mut request: Request) -> Request {
        let address = self.edge.live.load().trusted_proxies.client(self.peer, request.headers());
        let ticket = Arc::new(self.usage.begin());
        let connection = self.connection.clone();
        let client = Client { address, secure: self.secure, connection, _ticket: ticket };
        request.extensions_mut().insert(client);
        request
    }
}

/// A protocol on a connection: completes with it.
trait Carried: Future<Output = Result<(), Self::Error>> {
    type Error: Into<anyhow::Error>;

    /// Lets no more requests in and ends after those that are under way.
    fn finish(self: Pin<&mut Self>);
}

impl<I, A, F> Carried for Http2<I, A, F>
where
    I: AsyncRead + AsyncWrite + Unpin,
    A: Fn(http::Request<RecvStream>, SendResponse<Bytes>) -> F + Unpin,
    F: Future<Output = ()>,
{
    type Error = h2::Error;

    fn finish(self: Pin<&mut Self>) {
        self.get_mut().finish();
    }
}

impl<I, S> Carried for http1::UpgradeableConnection<TokioIo<I>, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<hyper::body::Incoming, ResBody = Body, Error = Infallible>,
{
    type Error = hyper::Error;

    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// The phases of a connection's life.
struct Phases {
    closing: CancellationToken,
    is_http2: bool,
    session: Arc<Session>,
}

impl Phases {
    async fn run<C: Carried>(self, mut connection: Pin<&mut C>) -> anyhow::Result<()> {
        let (usage, stop) = (&self.session.usage, &self.session.stop);
        let idle = Duration::from_secs(self.session.edge.live.load().bounds.idle_seconds.max(1));
        tokio::select! {
            done = connection.as_mut() => return done.map_err(Into::into),
            () = self.closing.cancelled() => {}
            // HTTP/2 can be told at once: what is sent meanwhile is still answered.
            () = stop.cancelled(), if self.is_http2 => {}
            () = usage.idle(idle) => {}
        }
        if stop.is_cancelled() {
            // Let in a moment ago: it has a request for us, and must not have been let in for nothing.
            tokio::select! {
                done = connection.as_mut() => return done.map_err(Into::into),
                () = usage.first() => {}
                () = sleep(FIRST_REQUEST) => {}
            }
        }
        connection.as_mut().finish();
        // Requests under way finish; a client that does not hear the farewell is not waited for.
        tokio::select! {
            done = connection.as_mut() => done.map_err(Into::into),
            () = usage.idle(FAREWELL) => Ok(()),
        }
    }
}

/// HTTP/1.1 as we take it. The timer is what makes the header time-out work at all.
fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(64 * 1024);
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
