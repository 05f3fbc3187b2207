//! Whom a client believes: one CA file, as every client of a Tollgate in development does.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The authority that a client believes. Clones share it.
#[derive(Debug, Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Believes the certificates in a PEM file.
    pub fn from_ca_file(file: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read the CA from {} (does the suite run there?)", file.display());
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(file).with_context(context)? {
            roots.add(cert.with_context(context)?)?;
        }
        anyhow::ensure!(!roots.is_empty(), "{} holds no certificate", file.display());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// The TLS settings of a client that offers these protocols (ALPN), in this order.
    pub fn client_config(&self, protocols: &[&str]) -> ClientConfig {
        let mut config = (*self.0).clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A TLS connection to `host`:`port` that speaks one protocol.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        protocol: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        socket.set_nodelay(true)?;
        let name =
            ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(std::io::Error::other)?;
        let connector = TlsConnector::from(Arc::new(self.client_config(&[protocol])));
        connector.connect(name, socket).await
    }
}
