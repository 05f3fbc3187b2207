//! One connection to an instance: TCP, mutual TLS 1.3, HTTP/2.

use std::{
    io,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use rustls::pki_types::ServerName;
use service_kit::tls::Identity;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::wire::{self, Run, Shape, Wire};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects to the instances of one service.
#[derive(Clone)]
pub(super) struct Dialer {
    tls: TlsConnector,
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
    ) -> io::Result<(Wire, Run)> {
        let dialled = tokio::time::timeout(CONNECT, self.connect(address, shape, room)).await;
        dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(&self, address: &str, shape: Shape, room: Arc<AtomicUsize>) -> io::Result<(Wire, Run)> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        // The name is not what is verified: the SPIFFE name in the certificate is.
        let name = ServerName::try_from("tollgate.internal").map_err(io::Error::other)?;
        let stream = Box::pin(self.tls.connect(name, socket)).await?;
        wire::begin(stream, shape, room).await
    }
}
