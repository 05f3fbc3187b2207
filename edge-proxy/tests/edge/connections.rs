//! Who is let in, and what ends a connection: counts, balancers in front, floods, and requests for somebody else.

use std::time::Duration;

use http::StatusCode;
use proto::auth::TokenPair;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    client::{raw, tls, tls_after},
    harness::{Options, World, ok},
};

async fn world(options: Options) -> World {
    World::with(options, |_| ok(&TokenPair::default())).await
}

const GET: &[u8] = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Whether a connection lives: it answers.
async fn answers(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut byte = [0];
    stream.write_all(GET).await.is_ok() && stream.read_exact(&mut byte).await.is_ok()
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_a_proxy_any_number() {
    let world_of = |trusted| {
        world(Options::default().set("limits.connections_per_address", 2).set("trusted_proxies", trusted))
    };
    let strict = world_of("[]").await;
    let mut open = [tls(&strict, &["http/1.1"]).await, tls(&strict, &["http/1.1"]).await];
    for stream in &mut open {
        assert!(answers(stream).await);
    }
    assert!(tls_after(&strict, &["http/1.1"], b"").await.is_err(), "the third is closed");
    drop(open);
    let again = async { while tls_after(&strict, &["http/1.1"], b"").await.is_err() {} };
    timeout(Duration::from_secs(20), again).await.expect("a free seat");

    let proxied = world_of("[\"127.0.0.0/8\"]").await;
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(tls(&proxied, &["http/1.1"]).await);
        assert!(answers(open.last_mut().unwrap()).await);
    }
}

#[tokio::test]
async fn two_lengths_are_refused_and_end_the_connection() {
    let world = world(Options::default()).await;
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let (length, chunked) = ("content-length: 2\r\n", "transfer-encoding: chunked\r\n");
    let plain = format!("{head}{length}\r\n{{}}");
    for both in [
        format!("{length}{chunked}"),
        format!("{chunked}{length}"),
        format!("Content-Length: 5\r\n{chunked}"),
    ] {
        let bad = format!("{head}{both}\r\n2\r\n{{}}\r\n0\r\n\r\n");
        let before = world.calls().len();
        // Behind another request on the same connection, and before one that must not be answered.
        let answer = raw(&world, [&plain, &bad, &plain].map(String::as_str).concat().as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
        assert!(answer.contains("HTTP/1.1 400") && answer.contains("AMBIGUOUS_LENGTH"), "{answer}");
        assert!(answer.contains("connection: close") && answer.matches("HTTP/1.1").count() == 2, "{answer}");
        assert_eq!(world.calls().len(), before + 1);
    }
    let chunks =
        format!("{head}{chunked}connection: close\r\n\r\n2\r\n{{}}\r\n0\r\ncontent-length: 2\r\n\r\n");
    assert!(raw(&world, chunks.as_bytes()).await.starts_with("HTTP/1.1 200"), "trailers are no head");
}

#[tokio::test]
async fn what_is_for_another_host_is_misdirected() {
    let world = world(Options::default()).await;
    for (host, expected) in [
        ("localhost", 404),
        ("LOCALHOST:8443", 404),
        ("127.0.0.1", 404),
        ("[::1]:8443", 404),
        ("elsewhere.example", 421),
        ("192.0.2.1", 421),
    ] {
        let request = format!("GET /nowhere HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{host}: {answer}");
    }
}

/// The address that services are told after this header of the PROXY protocol.
async fn seen_behind(world: &World, header: &[u8]) -> Option<String> {
    let mut stream = tls_after(world, &["http/1.1"], header).await.ok()?;
    let login = b"POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(login).await.ok()?;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let calls = world.calls();
    calls.last()?.header("tollgate-client-address").map(str::to_owned)
}

#[tokio::test]
async fn balancers_say_who_is_there_where_that_is_configured_and_must() {
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\xc6\x33\x64\x01\x12\x34\x20\xfb";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let balanced = world(Options::default().set("proxy_protocol", "[\"127.0.0.0/8\"]")).await;
    assert_eq!(seen_behind(&balanced, v1).await.as_deref(), Some("192.0.2.7"));
    assert_eq!(seen_behind(&balanced, v2).await.as_deref(), Some("192.0.2.8"));
    assert_eq!(seen_behind(&balanced, local).await.as_deref(), Some("127.0.0.1"));
    for bad in [&b""[..], b"PROXY TCP4 nonsense\r\n", &v2[..20]] {
        assert_eq!(seen_behind(&balanced, bad).await, None);
    }
    // From anywhere else it is garbage.
    let plain = world(Options::default()).await;
    assert_eq!(seen_behind(&plain, v1).await, None);
    assert_eq!(seen_behind(&plain, b"").await.as_deref(), Some("127.0.0.1"));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /` of localhost, by numbers of the static table.
const HEAD: &[u8] = b"\x82\x87\x84\x01\x09localhost";

/// Writes one flood after the preface until the edge closes; says whether it did before the flood ended.
async fn is_cut(world: &World, flood: impl Iterator<Item = Vec<u8>>) -> bool {
    let stream = tls(world, &["h2"]).await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // What it answers is taken: only the flood itself is on trial.
    let drain = tokio::spawn(async move {
        let mut sink = vec![0; 16 * 1024];
        while !matches!(reader.read(&mut sink).await, Ok(0) | Err(_)) {}
    });
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend(frame(4, 0, 0, &[]));
    writer.write_all(&begin).await.unwrap();
    for piece in flood {
        if writer.write_all(&piece).await.is_err() {
            return true;
        }
    }
    let _ = writer.flush().await;
    timeout(Duration::from_secs(10), drain).await.is_ok()
}

#[tokio::test]
async fn floods_of_frames_end_their_connection_and_nobody_elses() {
    let world = world(Options::default()).await;
    let many = |frames: Vec<u8>, times: usize| std::iter::repeat_n(frames.repeat(50), times / 50);
    let stream = |number: usize| u32::try_from(number * 2 + 1).unwrap();
    let resets = (0..3_000)
        .map(|at| [frame(1, 5, stream(at), HEAD), frame(3, 0, stream(at), &8_u32.to_be_bytes())].concat());
    assert!(is_cut(&world, resets).await, "rapid resets");
    assert!(is_cut(&world, many(frame(6, 0, 0, &[7; 8]), 20_000)).await, "PING");
    assert!(is_cut(&world, many(frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]), 5_000)).await, "SETTINGS");
    assert!(is_cut(&world, many(frame(2, 0, 1, &[0, 0, 0, 0, 9]), 20_000)).await, "PRIORITY");
    let open = [frame(1, 1, 1, HEAD)].into_iter();
    let endless = open.clone().chain(many(frame(9, 0, 1, b"\x40\x01a\x01b"), 50_000));
    assert!(is_cut(&world, endless).await, "CONTINUATION");
    let empty = open.chain(many(frame(9, 0, 1, &[]), 50_000));
    assert!(is_cut(&world, empty).await, "empty CONTINUATION");
    let body = [frame(1, 4, 1, HEAD)].into_iter().chain(many(frame(0, 0, 1, &[]), 50_000));
    assert!(is_cut(&world, body).await, "empty DATA");
    let answer = world.post("/api/v1/auth/login").json("{}").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn who_never_says_anything_is_not_waited_for() {
    let balanced = world(Options::default().set("proxy_protocol", "[\"127.0.0.0/8\"]")).await;
    let tls_only = world(Options::default()).await;
    let silent = async |world: &World, begun: &[u8]| {
        let mut socket = TcpStream::connect(world.edge.addr).await.unwrap();
        socket.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        let _ =
            timeout(Duration::from_secs(30), socket.read_to_end(&mut rest)).await.expect("the edge closes");
    };
    let (one, two, three) =
        (silent(&balanced, b"PROXY "), silent(&tls_only, b""), silent(&tls_only, b"\x16\x03\x01\x02\0"));
    tokio::join!(one, two, three);
}
