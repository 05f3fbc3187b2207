//! Calls any method with any bytes, without knowing its types.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::stream;
use proto::MethodPolicy;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a caller shows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Credentials<'a> {
    /// In `authorization: Bearer`.
    pub(crate) bearer: Option<&'a str>,
    /// In `api-key`.
    pub(crate) api_key: Option<&'a str>,
    /// In headers that some proxies use to name a user.
    pub(crate) forged_user: Option<&'a str>,
}

impl Credentials<'_> {
    fn put(&self, metadata: &mut MetadataMap) {
        if let Some(bearer) = self.bearer {
            metadata.insert("authorization", format!("Bearer {bearer}").parse().unwrap());
        }
        if let Some(key) = self.api_key {
            metadata.insert("api-key", key.parse().unwrap());
        }
        if let Some(user) = self.forged_user {
            for name in ["x-user-id", "x-forwarded-user", "x-auth-user"] {
                metadata.insert(name, user.parse().unwrap());
            }
        }
    }
}

/// Calls a method; of a stream, until its first message.
pub(crate) async fn call<T>(
    transport: T,
    method: &MethodPolicy,
    message: Bytes,
    credentials: &Credentials<'_>,
) -> Result<(), Status>
where
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut grpc = Grpc::new(transport);
    grpc.ready().await.map_err(|error| Status::unavailable(error.into().to_string()))?;
    let path = method.path.parse().unwrap();
    let answer = async {
        if method.descriptor.is_client_streaming() {
            // The stream stays open: closing it would be an answer of its own.
            let mut request = Request::new(stream::pending());
            credentials.put(request.metadata_mut());
            let mut answers = grpc.streaming(request, path, Raw).await?.into_inner();
            return answers.message().await.map(drop);
        }
        let mut request = Request::new(message);
        credentials.put(request.metadata_mut());
        if method.descriptor.is_server_streaming() {
            let mut answers = grpc.server_streaming(request, path, Raw).await?.into_inner();
            return answers.message().await.map(drop);
        }
        grpc.unary(request, path, Raw).await.map(drop)
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("{}: no answer", method.path))
}

/// Messages as the bytes that they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Whether a port ends the connection of a client that shows no certificate.
pub(crate) async fn refuses_without_certificate(addr: SocketAddr) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, socket).await else {
        return true;
    };
    // In TLS 1.3 the client is done first; the refusal comes with the first read.
    let asked =
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
    let mut answer = [0; 1];
    asked.is_err() || stream.read_exact(&mut answer).await.is_err()
}

/// Believes every server, as an attacker would.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
