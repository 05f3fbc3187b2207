//! The certificate that clients see, and which hosts it is for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use service_kit::tls::{DevCa, PublicCert, TlsConfig};

use crate::{config::PublicTlsConfig, live::Live};

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Certificate(Arc<CertifiedKey>);

impl Certificate {
    /// Reads the certificate of a configuration; fails when its key is another's. One of the development CA is
    /// made once: `before` goes on to count.
    pub(crate) fn load(
        public: &PublicTlsConfig,
        tls: &TlsConfig,
        before: Option<&Arc<Self>>,
    ) -> anyhow::Result<Arc<Self>> {
        let is_ours = public.cert.as_os_str().is_empty() && public.key.as_os_str().is_empty();
        if let Some(before) = before.filter(|_| is_ours) {
            return Ok(before.clone());
        }
        let PublicCert { chain, key } = public_cert(public, tls)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| anyhow::anyhow!("[public_tls] cert and key do not belong together: {error}"))?;
        Ok(Arc::new(Self(Arc::new(key))))
    }

    /// Whether it is for this host.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let leaf = self.0.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']'));
        leaf.zip(name.ok())
            .is_some_and(|(leaf, name)| rustls::client::verify_server_name(&leaf, &name).is_ok())
    }
}

/// TLS 1.2 and 1.3 with rustls's suites (no CBC, no RSA key exchange), h2 before HTTP/1.1, and the certificate of
/// the moment: a connection that stands keeps the one that it began with.
pub(super) fn server_config(live: &Arc<ArcSwap<Live>>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(live.clone())));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct Resolver(Arc<ArcSwap<Live>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certificate.0.clone())
    }
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
