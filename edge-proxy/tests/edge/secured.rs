//! TLS at the door: versions, protocols, tickets, and who a connection is for.

use std::{fs::File, io::BufReader, sync::Arc, time::Duration};

use http::StatusCode;
use proto::auth::TokenPair;
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::harness::{World, ok};

async fn world() -> World {
    World::start(|_| ok(&TokenPair::default())).await
}

fn config(world: &World, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_reader_iter(BufReader::new(File::open(&world.ca_file).unwrap())) {
        roots.add(cert.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_protocol_versions(versions);
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn connect(world: &World, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(world.edge.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(config.clone());
    timeout(Duration::from_secs(20), Box::pin(connecting.connect(name, socket))).await.expect("in time")
}

const GET: &[u8] = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

async fn get(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(GET).await.unwrap();
    let mut answer = String::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.expect("in time");
    answer
}

#[tokio::test]
async fn two_versions_are_spoken_with_suites_that_http_2_allows() {
    let world = world().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (alpn, expected) in [
            (&["h2", "http/1.1"][..], &b"h2"[..]),
            (&["http/1.1"], b"http/1.1"),
            (&["http/1.1", "h2"], b"h2"),
        ] {
            let stream = connect(&world, &Arc::new(config(&world, &[version], alpn))).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(
                (session.alpn_protocol(), session.protocol_version()),
                (Some(expected), Some(version.version))
            );
            let suite = format!("{:?}", session.negotiated_cipher_suite().unwrap().suite());
            // RFC 9113 §9.2.2 and BCP 195: ephemeral keys and AEAD.
            let aead = suite.contains("GCM") || suite.contains("CHACHA20_POLY1305");
            assert!(aead && (suite.starts_with("TLS13_") || suite.contains("ECDHE")), "{suite}");
        }
        let mut without = connect(&world, &Arc::new(config(&world, &[version], &[]))).await.unwrap();
        assert!(get(&mut without).await.starts_with("HTTP/1.1 404"), "who asks for nothing speaks HTTP/1.1");
        let error =
            connect(&world, &Arc::new(config(&world, &[version], &["h3", "spdy/3"]))).await.unwrap_err();
        assert!(format!("{error:?}").contains("NoApplicationProtocol"), "{error:?}");
    }
}

/// The alert that a ClientHello of an older version gets.
async fn alert(world: &World, version: [u8; 2]) -> Vec<u8> {
    // Random, no session, two suites of that time, no compression; groups and signatures that the edge would take.
    let extensions = [0, 0x0a, 0, 4, 0, 2, 0, 0x17, 0, 0x0d, 0, 6, 0, 4, 4, 3, 8, 4];
    let length = u8::try_from(extensions.len()).unwrap();
    let hello =
        [&version[..], &[7; 32], &[0], &[0, 4, 0xc0, 0x13, 0, 0x2f], &[1, 0], &[0, length], &extensions];
    let hello = hello.concat();
    let length = u8::try_from(hello.len()).unwrap();
    let message = [&[1, 0, 0, length][..], &hello].concat();
    let record = [&[22, 3, 1, 0, length + 4][..], &message].concat();
    let mut socket = TcpStream::connect(world.edge.addr).await.unwrap();
    socket.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(20), socket.read_to_end(&mut answer)).await.expect("the edge closes");
    answer
}

#[tokio::test]
async fn older_versions_are_refused_with_an_alert() {
    let world = world().await;
    for version in [[3, 0], [3, 1], [3, 2]] {
        let answer = alert(&world, version).await;
        // An alert, fatal: protocol_version.
        assert!(answer.len() == 7 && answer[0] == 21 && answer[5] == 2, "{version:?}: {answer:?}");
        assert_eq!(answer[6], 70, "{version:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_session_is_taken_up_again_and_nothing_is_taken_early() {
    let world = world().await;
    let mut config = config(&world, &[&rustls::version::TLS13], &["http/1.1"]);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut first = connect(&world, &config).await.unwrap();
    assert!(get(&mut first).await.starts_with("HTTP/1.1 404"));
    let mut second = connect(&world, &config).await.unwrap();
    assert!(get(&mut second).await.starts_with("HTTP/1.1 404"));
    let (_, session) = second.get_ref();
    assert_eq!(session.handshake_kind(), Some(HandshakeKind::Resumed));
    // RFC 8470: the tickets allow no early data, so there is nothing to be 425 about.
    let name = ServerName::try_from("localhost").unwrap();
    let mut third = rustls::ClientConnection::new(config, name).unwrap();
    assert!(third.early_data().is_none());
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected_over_http_2_too() {
    let world = world().await;
    let config = Arc::new(config(&world, &[&rustls::version::TLS13], &["h2"]));
    let stream = connect(&world, &config).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for (host, status) in [
        ("localhost", StatusCode::NOT_FOUND),
        ("elsewhere.example", StatusCode::MISDIRECTED_REQUEST),
        ("localhost:8443", StatusCode::NOT_FOUND),
        ("192.0.2.1", StatusCode::MISDIRECTED_REQUEST),
    ] {
        let request = http::Request::get(format!("https://{host}/nowhere"));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status, "{host}");
    }
}
