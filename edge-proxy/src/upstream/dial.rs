//! One connection to an instance: TCP, mutual TLS 1.3, HTTP/2.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use service_kit::tls::Identity;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Body;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// How often to look whether the settings of an instance have come; nothing says so.
const SETTINGS: Duration = Duration::from_millis(1);

/// What calls and long streams need of HTTP/2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    stream_window: u32,
    connection_window: u32,
    ping_interval: Duration,
    ping_timeout: Duration,
}

impl Shape {
    /// For calls.
    pub(super) const CALLS: Self = Self {
        stream_window: 256 * 1024,
        connection_window: 4 * 1024 * 1024,
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(10),
    };

    /// For thousands of long streams. What a stream has not read counts against its connection too: with
    /// these windows, 4,096 streams that are stuck leave room for the one that is not. An instance that stands
    /// still is noticed in 10 s, so that whoever hangs on it goes elsewhere.
    pub(super) const STREAMS: Self = Self {
        stream_window: 32 * 1024,
        connection_window: 160 * 1024 * 1024,
        ping_interval: Duration::from_secs(5),
        ping_timeout: Duration::from_secs(5),
    };
}

/// Connects to the instances of one service.
#[derive(Clone)]
pub(super) struct Dialer {
    tls: TlsConnector,
}

/// A connection that was made.
pub(super) struct Dialled {
    pub(super) sender: SendRequest<Body>,
    /// Carries the connection; ends with it.
    pub(super) run: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// Believes the certificate of this service only.
    pub(super) fn new(identity: &Identity, service: &str) -> anyhow::Result<Self> {
        Ok(Self { tls: TlsConnector::from(identity.client(service)?) })
    }

    /// Connects, within three seconds. `room` is kept at the number of streams that the instance takes.
    pub(super) async fn dial(
        &self,
        address: &str,
        shape: Shape,
        room: Arc<AtomicUsize>,
    ) -> io::Result<Dialled> {
        let dialled = tokio::time::timeout(CONNECT, self.connect(address, shape, room)).await;
        dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(&self, address: &str, shape: Shape, room: Arc<AtomicUsize>) -> io::Result<Dialled> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        // The name is not what is verified: the SPIFFE name in the certificate is.
        let name = ServerName::try_from("tollgate.internal").map_err(io::Error::other)?;
        let stream = Box::pin(self.tls.connect(name, socket)).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(shape.ping_interval)
            .keep_alive_timeout(shape.ping_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(shape.stream_window)
            .initial_connection_window_size(shape.connection_window)
            // None before the instance has said how many: calls must not queue here that others could take.
            .initial_max_send_streams(0)
            .handshake(TokioIo::new(stream));
        let (sender, mut connection) = handshake.await.map_err(io::Error::other)?;
        while connection.current_max_send_streams() == 0 {
            tokio::select! {
                ended = &mut connection => {
                    return Err(ended.map_or_else(io::Error::other, |()| io::ErrorKind::ConnectionReset.into()));
                }
                () = tokio::time::sleep(SETTINGS) => {}
            }
        }
        room.store(connection.current_max_send_streams(), Ordering::Relaxed);
        let run = std::future::poll_fn(move |cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            if polled.is_pending() {
                room.store(connection.current_max_send_streams(), Ordering::Relaxed);
            }
            polled
        });
        Ok(Dialled { sender, run: Box::pin(run) })
    }
}
