//! TLS: one crypto provider, mutual TLS 1.3 between services by SPIFFE names, a development CA.
//!
//! A service is `spiffe://tollgate/svc/<name>`. In development every process makes itself a certificate
//! from a CA in the data folder; in production certificates come from files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use serde::Deserialize;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

const SPIFFE_PREFIX: &str = "spiffe://tollgate/svc/";

/// The `[tls]` section: who this process is, and whom it believes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// A folder with a development CA, made when it is not there. Empty in production.
    pub dev_ca_dir: PathBuf,
    /// The CA that signs the services' certificates, PEM.
    pub ca: PathBuf,
    /// This service's certificate chain, PEM, with its SPIFFE name.
    pub cert: PathBuf,
    /// The key of that certificate, PEM.
    pub key: PathBuf,
}

/// Who this process is towards other services, ready for use.
#[derive(Debug, Clone)]
pub struct Identity {
    /// For listeners: asks every peer for a certificate.
    pub server: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    roots: Arc<RootCertStore>,
}

/// A certificate for a public listener.
#[derive(Debug)]
pub struct PublicCert {
    /// The chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

/// Installs the crypto provider of the process. Safe to call again.
pub fn install_provider() {
    // An error says that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Identity {
    /// The identity of `service`.
    pub fn load(config: &TlsConfig, service: &str) -> anyhow::Result<Self> {
        let files = [&config.ca, &config.cert, &config.key];
        let given = files.iter().filter(|path| !path.as_os_str().is_empty()).count();
        match (given, config.dev_ca_dir.as_os_str().is_empty()) {
            (3, true) => Self::from_files(config, service),
            (0, false) => DevCa::load_or_create(&config.dev_ca_dir)?.identity(service),
            _ => bail!("[tls] needs either `dev_ca_dir`, or all of `ca`, `cert` and `key`"),
        }
    }

    fn from_files(config: &TlsConfig, service: &str) -> anyhow::Result<Self> {
        let roots = read_certs(&config.ca)?;
        let cert = read_public(&config.cert, &config.key)?;
        let named = cert.chain.first().and_then(|leaf| service_of(leaf));
        anyhow::ensure!(
            named.as_deref() == Some(service),
            "{} does not hold the name {SPIFFE_PREFIX}{service}",
            config.cert.display()
        );
        Self::new(roots, cert)
    }

    fn new(ca: Vec<CertificateDer<'static>>, cert: PublicCert) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in ca {
            roots.add(cert)?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(cert.chain.clone(), cert.key.clone_key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { server: Arc::new(server), chain: cert.chain, key: Arc::new(cert.key), roots })
    }

    /// For channels to `service`: presents our certificate, believes only that service's.
    pub fn client(&self, service: &str) -> anyhow::Result<Arc<ClientConfig>> {
        let verifier = SpiffeVerifier {
            service: service.to_owned(),
            roots: self.roots.clone(),
            algorithms: provider().signature_verification_algorithms,
        };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // the name in a service's certificate is a URI, which the standard verifier does not read
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(client))
    }
}

/// The service that a certificate names.
pub fn service_of(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SPIFFE_PREFIX).map(str::to_owned),
        _ => None,
    })
}

/// Checks the chain like the standard verifier, and the SPIFFE name instead of a DNS name.
#[derive(Debug)]
struct SpiffeVerifier {
    service: String,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if service_of(end_entity).as_deref() == Some(self.service.as_str()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("services speak TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// A CA for development: one file `ca.pem` for clients to trust, one with its key.
#[derive(Debug)]
pub struct DevCa {
    issuer: Issuer<'static, KeyPair>,
    cert: CertificateDer<'static>,
    cert_file: PathBuf,
}

impl DevCa {
    /// The CA in `folder`, made when it is not there. Processes that start at once agree on one.
    pub fn load_or_create(folder: &Path) -> anyhow::Result<Self> {
        let bundle = folder.join("ca-with-key.pem");
        if !bundle.exists() {
            Self::create(&bundle).with_context(|| format!("cannot make a CA in {}", folder.display()))?;
        }
        let text =
            fs::read_to_string(&bundle).with_context(|| format!("cannot read {}", bundle.display()))?;
        let cert = CertificateDer::from_pem_slice(text.as_bytes())?;
        let key =
            KeyPair::from_pem(&text[text.find("-----BEGIN PRIVATE").context("no key in the CA's file")?..])?;
        let cert_file = folder.join("ca.pem");
        if !cert_file.exists() {
            let end = text.find("-----BEGIN PRIVATE").unwrap_or(text.len());
            fs::write(&cert_file, &text[..end])?;
        }
        Ok(Self { issuer: Issuer::from_ca_cert_der(&cert, key)?, cert, cert_file })
    }

    fn create(bundle: &Path) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Tollgate development CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let text = format!("{}{}", params.self_signed(&key)?.pem(), key.serialize_pem());

        Ok(crate::secret_file::create_once(bundle, &text)?)
    }

    /// The file that clients trust.
    pub fn cert_file(&self) -> &Path {
        &self.cert_file
    }

    /// A certificate for a service.
    pub fn identity(&self, service: &str) -> anyhow::Result<Identity> {
        let mut params = leaf(service)?;
        params.subject_alt_names = vec![SanType::URI(format!("{SPIFFE_PREFIX}{service}").try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Identity::new(vec![self.cert.clone()], self.sign(&params)?)
    }

    /// A certificate for a public listener on this machine.
    pub fn public(&self) -> anyhow::Result<PublicCert> {
        let mut params = leaf("localhost")?;
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> anyhow::Result<PublicCert> {
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(PublicCert { chain: vec![cert.der().clone(), self.cert.clone()], key })
    }
}

/// What all leaves share: 90 days, starting yesterday because clocks differ.
#[allow(clippy::disallowed_methods, reason = "certificates live in the system's time, not in a test's")]
fn leaf(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3_600);
    params.not_before = (now - day).into();
    params.not_after = (now + 89 * day).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true; // strict verifiers ask for it (Python 3.13)
    Ok(params)
}

/// Certificate chain and key of a public listener, from files.
pub fn read_public(cert: &Path, key: &Path) -> anyhow::Result<PublicCert> {
    let chain = read_certs(cert)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read a key from {}", key.display()))?;
    Ok(PublicCert { chain, key })
}

fn read_certs(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let context = || format!("cannot read certificates from {}", path.display());
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(context)?
        .collect::<Result<_, _>>()
        .with_context(context)?;
    anyhow::ensure!(!certs.is_empty(), "{} holds no certificate", path.display());
    Ok(certs)
}
