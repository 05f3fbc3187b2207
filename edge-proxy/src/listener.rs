//! The public sockets: who is let in, in which phases nobody is any more. TLS and HTTP are in `connection`.

mod addresses;
mod certificate;
mod connection;
mod http2;
mod inspect;
mod linger;
mod proxy;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{Edge, batched::batched};
pub(crate) use addresses::Addresses;
pub(crate) use certificate::Certificate;
pub(crate) use connection::{Connection, Ticket};

/// How long the socket stays open for those whom the kernel has let in already, once no new ones come: their
/// handshakes must end, which takes them a round trip.
const LAST_ROUND: Duration = Duration::from_millis(250);
/// The same where nobody else listens on the port: then only who is in the queue is let in.
const LAST_LOOK: Duration = Duration::from_millis(10);
/// However many they are.
const LAST_CALL: Duration = Duration::from_secs(2);

/// Serves HTTPS on a socket, and plain HTTP where the configuration asks for it.
pub(crate) async fn spawn(edge: &Arc<Edge>, listener: TcpListener) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(certificate::server_config(&edge.live)?));
    let places = Arc::new(Semaphore::new(edge.config.limits.connections));
    let (addresses, closing) = (edge.addresses.clone(), closing(edge));
    let tls = Some(acceptor);
    let door = Door { edge: edge.clone(), places, addresses, tls, closing };
    let plain = &edge.config.plain_listen;
    if !plain.is_empty() {
        let bound = service_kit::server::bind(plain, edge.config.restart.reuse_port).await;
        let listener = bound.with_context(|| format!("cannot listen on {plain}"))?;
        tracing::warn!(addr = %listener.local_addr()?, "serving plain HTTP");
        let door = Door { tls: None, ..door.clone() };
        edge.tasks.spawn("plain listener", door.keep(listener));
    }
    edge.tasks.spawn("public listener", door.keep(listener));
    Ok(())
}

/// Cancelled when the edge, which drains, takes no more connections.
fn closing(edge: &Arc<Edge>) -> CancellationToken {
    let closing = CancellationToken::new();
    let (stop, linger) = (edge.tasks.stopping(), Duration::from_millis(edge.config.restart.linger_ms));
    let told = closing.clone();
    edge.tasks.spawn_short(async move {
        stop.cancelled().await;
        tokio::time::sleep(linger).await;
        told.cancel();
    });
    closing
}

/// One listening socket and what stands behind it.
#[derive(Clone)]
struct Door {
    edge: Arc<Edge>,
    places: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    tls: Option<TlsAcceptor>,
    closing: CancellationToken,
}

impl Door {
    async fn keep(self, listener: TcpListener) -> anyhow::Result<()> {
        loop {
            // Without a free place nobody is accepted: they wait in the backlog.
            let place = tokio::select! {
                place = self.places.clone().acquire_owned() => place?,
                () = self.closing.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => break,
            };
            match accepted {
                Ok((socket, peer)) => self.welcome(socket, peer, place),
                // Out of descriptors or memory: wait until some come back instead of spinning.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.leave(listener).await;
        Ok(())
    }

    fn welcome(&self, socket: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        // Boxed: what carries it would hold it several times.
        let connection = Box::pin(self.clone().connection(socket, peer, place));
        self.edge.tasks.spawn_short(async move {
            if let Err(error) = batched(connection).await {
                tracing::debug!(%peer, error = format!("{error:#}"), "connection ended");
            }
        });
    }

    /// Closes the socket, but not before everybody is in whom the kernel has let in: it would refuse them.
    async fn leave(self, listener: TcpListener) {
        let is_shared = self.edge.config.restart.reuse_port;
        if is_shared && let Err(error) = turn_away(&listener) {
            tracing::warn!(%error, "connections that come while the socket closes may be refused");
        }
        let quiet = if is_shared { LAST_ROUND } else { LAST_LOOK };
        let end = Instant::now() + LAST_CALL;
        while Instant::now() < end
            && let Ok(Ok(place)) = tokio::time::timeout_at(end, self.places.clone().acquire_owned()).await
            && let Ok(Ok((socket, peer))) = tokio::time::timeout(quiet, listener.accept()).await
        {
            self.welcome(socket, peer, place);
        }
    }
}

/// Lets the kernel drop whoever asks for a connection from now on: they ask again within a second, and get one
/// from the process that listens on the port too, once this socket is closed. Handshakes under way go on.
fn turn_away(listener: &TcpListener) -> std::io::Result<()> {
    use socket2::SockFilter;
    // On the TCP header: SYN without ACK passes not, everything else does.
    socket2::SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, 13),          // load the byte of the flags
        SockFilter::new(0x54, 0, 0, 0x12),        // of which SYN and ACK
        SockFilter::new(0x15, 0, 1, 0x02),        // if they are SYN alone
        SockFilter::new(0x06, 0, 0, 0),           // drop it
        SockFilter::new(0x06, 0, 0, 0xffff_ffff), // else take it whole
    ])
}
