use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, StreamBody};
use proto::auth::TokenPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;

use super::{
    client::{raw, tls},
    harness::{Options, Reply, World, ok},
};

async fn world() -> World {
    World::start(|_| ok(&TokenPair::default())).await
}

#[tokio::test]
async fn ambiguous_paths_are_refused() {
    let world = world().await;
    for path in [
        "/api//v1/apis",
        "/api/v1/../v1/apis",
        "/api/v1/%2e%2e/apis",
        "/api/v1/apis/a%2fb",
        "/api/v1/apis/a%5Cb",
        "/api/v1/apis/%00",
        "/api/v1/apis/%zz",
        "/api/v1/apis/a\\b",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    let answer = world.grpc("/tollgate.auth.v1.AuthService//Login", &[], &[b""]).await;
    assert_eq!(answer.grpc_status(), "3");
}

#[tokio::test]
async fn requests_that_two_readers_would_read_differently_are_refused() {
    let world = world().await;
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let json = "content-type: application/json\r\n";
    for (bad, expected) in [
        (format!("{head}{json}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"), "400"),
        (format!("{head}{json}content-length: +2\r\n\r\n{{}}"), "400"),
        (format!("{head}{json}transfer-encoding: chunked, identity\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), "400"),
        (format!("{head}{json}x : y\r\ncontent-length: 2\r\n\r\n{{}}"), "400"),
        ("GARBAGE\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = raw(&world, bad.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{bad}: {answer}");
    }
    assert!(world.calls().is_empty());
    // Both lengths: chunked wins, and the connection is not used again (RFC 9112 §6.3).
    let both =
        format!("{head}{json}content-length: 99\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
    let smuggled = "GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let answer = raw(&world, (both.replace("connection: close\r\n", "") + smuggled).as_bytes()).await;
    assert!(answer.contains("connection: close") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test]
async fn broken_chunks_are_the_callers_fault() {
    let world = world().await;
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for bad in ["-2\r\n{}\r\n0\r\n\r\n", "fffffffffffffffff\r\n{}", "2\n{}\n0\n\n", "zz\r\n{}"] {
        let request = format!("{head}transfer-encoding: chunked\r\n\r\n{bad}");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("MALFORMED_BODY"), "{bad}: {answer}");
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn a_request_names_one_host() {
    let world = world().await;
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a@b\r\n", "host: a/b\r\n"] {
        let request = format!("GET /openapi.json HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("INVALID_HOST"), "{hosts}: {answer}");
    }
    let answer = world.get("/openapi.json").header("host", "evil.example").send("").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
}

#[tokio::test]
async fn what_the_caller_wrote_is_not_echoed_at_length() {
    let world = world().await;
    let body = format!("{{\"{}\":1}}", "k".repeat(500_000));
    let answer = world.post("/api/v1/auth/login").json(body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    assert!(answer.json()["errors"][0]["field"].as_str().unwrap().starts_with("kkkk"));
    assert!(answer.body.len() < 4_000, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn heads_are_bounded() {
    let world = world().await;
    let answer = world.get(&format!("/api/v1/apis?{}", "a".repeat(8_200))).h1().send("").await;
    assert_eq!(answer.status, StatusCode::URI_TOO_LONG, "{answer:?}");
    assert_eq!(answer.json()["reason"], "URI_TOO_LONG");
    for h1 in [false, true] {
        let ask =
            world.get("/api/v1/apis").header("x-a", &"a".repeat(8_000)).header("x-b", &"b".repeat(8_400));
        let answer = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{answer:?}");
    }
    let many = (0..101).fold(world.get("/api/v1/apis"), |ask, at| ask.header(&format!("x-{at}"), "1"));
    assert_eq!(many.h1().send("").await.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn bodies_are_bounded_by_their_method() {
    let world = world().await;
    let large = "x".repeat(1024 * 1024 + 1);
    for h1 in [false, true] {
        let ask = world.post("/api/v1/auth/login");
        let answer = if h1 { ask.h1() } else { ask }.json(large.clone()).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{answer:?}");
        assert_eq!(answer.json()["reason"], "BODY_TOO_LARGE");
        // Without a length it is counted as it comes.
        let pieces = std::iter::repeat_n(Bytes::from(vec![b' '; 64 * 1024]), 17);
        let frames =
            tokio_stream::iter(pieces).map(|data| Ok::<_, hyper::Error>(http_body::Frame::data(data)));
        let ask = world.post("/api/v1/auth/login").header("content-type", "application/json");
        let ask = if h1 { ask.h1() } else { ask };
        let answer = ask.stream(StreamBody::new(frames).boxed_unsync()).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{answer:?}");
    }
    assert!(world.calls().is_empty());
    // An import may be ten times that.
    let ask = world.post("/api/v1/apis/import").user().header("content-type", "text/yaml");
    let answer = ask.send("y".repeat(10 * 1024 * 1024)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test]
async fn bodies_that_do_not_come_are_not_waited_for() {
    let options = Options::default().set("limits.request_body_ms", 200);
    let world = World::with(options, |_| ok(&TokenPair::default())).await;
    for h1 in [false, true] {
        let begun =
            tokio_stream::once(Ok::<_, hyper::Error>(http_body::Frame::data(Bytes::from_static(b"{"))));
        let body = StreamBody::new(begun.chain(tokio_stream::pending())).boxed_unsync();
        let ask = world.post("/api/v1/auth/login").header("content-type", "application/json");
        let started = Instant::now();
        let answer = if h1 { ask.h1() } else { ask }.stream(body).await;
        assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT, "{answer:?}");
        assert_eq!(answer.json()["reason"], "BODY_TIMEOUT");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    for (content_type, h1) in [
        ("application/json", true),
        ("application/json", false),
        ("application/grpc-web", true),
        ("application/grpc", false),
    ] {
        let begun =
            tokio_stream::once(Ok::<_, hyper::Error>(http_body::Frame::data(Bytes::from_static(b"{"))));
        let body = StreamBody::new(begun.chain(tokio_stream::pending())).boxed_unsync();
        let ask = world.post("/tollgate.auth.v1.AuthService/Login").header("content-type", content_type);
        let answer = if h1 { ask.h1() } else { ask }.stream(body).await;
        let told = match content_type {
            "application/json" => answer.json()["code"] == "deadline_exceeded",
            "application/grpc" => answer.grpc_status() == "4",
            _ => {
                String::from_utf8_lossy(&answer.body).contains("grpc-status:4") || answer.grpc_status() == "4"
            }
        };
        assert!(told, "{content_type}: {answer:?}");
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn idle_connections_are_closed_and_busy_ones_are_not() {
    let options = Options::default().set("limits.idle_seconds", 1);
    let world = World::with(options, |_| Reply::Stall(b"hello".to_vec())).await;
    // A stream on which nothing happens is still a stream.
    let ask = world.post("/tollgate.gateway.v1.GatewayLink/Connect").header("api-key", "k");
    let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut stream = ask.header("content-type", "application/grpc").open(body).await;
    assert!(stream.body_mut().frame().await.unwrap().is_ok());
    // Says h2 and then nothing; says http/1.1 and then nothing.
    for alpn in ["h2", "http/1.1"] {
        let mut silent = tls(&world, &[alpn]).await;
        let closed = async {
            let mut rest = Vec::new();
            let _ = silent.read_to_end(&mut rest).await;
        };
        tokio::time::timeout(Duration::from_secs(15), closed).await.expect("the edge closes");
    }
    let more = tokio::time::timeout(Duration::from_millis(100), stream.body_mut().frame()).await;
    assert!(more.is_err(), "the stream goes on: {more:?}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let options = Options::default().set("limits.connections", 1);
    let world = World::with(options, |_| ok(&TokenPair::default())).await;
    let mut first = tls(&world, &["http/1.1"]).await;
    first.write_all(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    // The second waits until the first has gone.
    let mut second = Box::pin(tls(&world, &["http/1.1"]));
    assert!(tokio::time::timeout(Duration::from_millis(300), second.as_mut()).await.is_err());
    drop(first);
    tokio::time::timeout(Duration::from_secs(5), second).await.expect("a free place");
}

#[tokio::test]
async fn old_tls_is_refused_and_h2_is_preferred() {
    let world = world().await;
    let stream = tls(&world, &["http/1.1", "h2"]).await;
    let (_, session) = stream.get_ref();
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    // Plain HTTP on the TLS port gets nothing.
    let mut plain = tokio::net::TcpStream::connect(world.edge.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn certificates_and_plain_http_are_configured() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let quoted = |path: &std::path::Path| format!("\"{}\"", path.display());
    // A port that was free a moment ago: the listener under test binds it itself.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = Options::default()
        .set("public_tls.cert", quoted(&cert))
        .set("public_tls.key", quoted(&key))
        .set("plain_listen", format!("\"{free}\""));
    let mut world = World::with(options, |_| ok(&TokenPair::default())).await;
    world.ca_file = cert;
    assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, StatusCode::OK);

    let mut plain = tokio::net::TcpStream::connect(free).await.unwrap();
    let request = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    // HSTS over plain HTTP would mean nothing.
    assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("strict-transport"), "{answer}");
}

/// The token of a gateway is checked by its service, and only with the whole call: until then anybody may send.
#[tokio::test]
async fn large_bodies_of_gateways_are_few_at_a_time() {
    let world = World::start(|call| match call.path.rsplit('/').next() {
        Some("ImportGatewayArtifacts") => Reply::Hang,
        _ => ok(&TokenPair::default()),
    })
    .await;
    let import = || async {
        let ask = world.post("/api/internal/v1/artifacts/import-gateway-artifacts").header("api-key", "k");
        ask.header("content-type", "multipart/form-data; boundary=b").send("--b--").await
    };
    let eight = futures_util::future::join_all((0..8).map(|_| import()));
    let ninth = async {
        while world.calls().len() < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let refused = import().await;
        assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
        let path = "/tollgate.gateway.v1.GatewayInternalService/ImportGatewayArtifacts";
        assert_eq!(world.grpc(path, &[("api-key", "k")], &[b""]).await.grpc_status(), "14");
        // Other calls of gateways go on.
        let other = world.get("/api/internal/v1/secrets").header("api-key", "k").send("").await;
        assert_ne!(other.status, StatusCode::SERVICE_UNAVAILABLE);
    };
    tokio::select! {
        _ = eight => panic!("nobody answers these"),
        () = ninth => {}
    }
    // Those that were given up leave their room to others.
    world.given_up(8).await;
    let arrived = async {
        while world.calls().len() < 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answer = import() => panic!("it must hang: {answer:?}"),
        () = arrived => {}
    }
}
