//! Bytes and frames that no well-behaved client sends, and what the edge sends that no client library shows.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use proto::{auth::TokenPair, project::Api};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    client::{frame, raw, tls},
    harness::{Call, Options, Reply, World, ok},
};

fn script(call: &Call) -> Reply {
    if call.path.ends_with("/GetApi") { ok(&Api::default()) } else { ok(&TokenPair::default()) }
}

async fn world() -> World {
    World::start(script).await
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2.
#[derive(Debug)]
struct Piece {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Piece {
    /// The code of RST_STREAM, or of GOAWAY.
    fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A connection of which every frame is written and read by hand.
struct Wire(TlsStream<TcpStream>);

impl Wire {
    async fn new(world: &World) -> Self {
        let mut wire = Self(tls(world, &["h2"]).await);
        wire.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        wire.send(SETTINGS, 0, 0, &[]).await;
        wire
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// The head of a request on a stream.
    async fn ask(&mut self, stream: u32, flags: u8, fields: &[(&[u8], &[u8])]) {
        self.send(HEADERS, flags | END_HEADERS, stream, &block(fields)).await;
    }

    /// The next frame; `None` when the edge has closed.
    async fn next(&mut self) -> Option<Piece> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            Some(Piece { kind: head[3], flags: head[4], stream, payload })
        };
        timeout(Duration::from_secs(20), read).await.expect("a frame in time")
    }

    /// The next frame of one of these kinds.
    async fn next_of(&mut self, kinds: &[u8]) -> Option<Piece> {
        loop {
            let piece = self.next().await?;
            if kinds.contains(&piece.kind) && !(piece.kind == PING && piece.flags == 1) {
                return Some(piece);
            }
        }
    }
}

/// Fields as HPACK has them, none of them indexed.
fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A head of the public method `Login` over REST.
fn login<'a>(more: &[(&'a [u8], &'a [u8])]) -> Vec<(&'a [u8], &'a [u8])> {
    let head: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", b"/api/v1/auth/login"),
        (b"content-type", b"application/json"),
    ];
    [&head[..], more].concat()
}

/// The status in a block of headers: h2 indexes what the static table has.
fn is_status(piece: &Piece, status: u16) -> bool {
    let indexed = match status {
        200 => 0x88,
        400 => 0x8c,
        404 => 0x8d,
        _ => 0,
    };
    piece.payload[0] == indexed || piece.payload.windows(3).any(|text| text == status.to_string().as_bytes())
}

#[tokio::test]
async fn heads_that_http_2_forbids_reach_nobody() {
    let world = world().await;
    let mut wire = Wire::new(&world).await;
    wire.ask(1, 0, &login(&[])).await;
    wire.send(DATA, END_STREAM, 1, b"{}").await;
    let good = wire.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
    assert!(good.kind == HEADERS && is_status(&good, 200), "{good:?}");
    assert_eq!(world.calls().len(), 1);

    let without =
        |name: &[u8]| login(&[]).into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    let with = |from: &[u8], name: &'static [u8], value: &'static [u8]| {
        let other =
            |(old, of): (&'static [u8], &'static [u8])| if old == from { (name, value) } else { (old, of) };
        login(&[]).into_iter().map(other).collect::<Vec<_>>()
    };
    let late = [&without(b":path")[..], &[(&b":path"[..], &b"/api/v1/auth/login"[..])]].concat();
    for (what, head) in [
        ("an upper-case name", login(&[(b"X-Upper", b"1")])),
        ("a connection header", login(&[(b"connection", b"close")])),
        ("transfer-encoding", login(&[(b"transfer-encoding", b"chunked")])),
        ("keep-alive", login(&[(b"keep-alive", b"timeout=5")])),
        ("te that is not trailers", login(&[(b"te", b"gzip")])),
        ("CR and LF in a value", login(&[(b"x-a", b"b\r\nx-user-id: 1")])),
        ("LF in a value", login(&[(b"x-a", b"b\nc")])),
        ("NUL in a value", login(&[(b"x-a", b"b\0c")])),
        ("a colon in a name", login(&[(b"x:a", b"b")])),
        ("a space in a name", login(&[(b"x a", b"b")])),
        ("a pseudo-header that nobody knows", login(&[(b":x", b"y")])),
        ("no method", without(b":method")),
        ("no path", without(b":path")),
        ("no scheme", without(b":scheme")),
        ("a path after a header", late),
        ("an empty path", with(b":path", b":path", b"")),
        ("a space in the path", with(b":path", b":path", b"/api/v1/auth/login x")),
        ("two methods", [&[(&b":method"[..], &b"GET"[..])], &login(&[])[..]].concat()),
        ("more than was announced", login(&[(b"content-length", b"1")])),
        ("less than was announced", login(&[(b"content-length", b"9")])),
        ("a length that is none", login(&[(b"content-length", b"2x")])),
        ("two lengths", login(&[(b"content-length", b"2"), (b"content-length", b"3")])),
        ("another host", login(&[(b"host", b"elsewhere.example")])),
    ] {
        let mut wire = Wire::new(&world).await;
        wire.ask(1, 0, &head).await;
        wire.send(DATA, END_STREAM, 1, b"{}").await;
        match wire.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await {
            Some(piece) if piece.kind == HEADERS => assert!(is_status(&piece, 400), "{what}: {piece:?}"),
            Some(piece) => assert_eq!(piece.code(), 1, "{what} is a PROTOCOL_ERROR: {piece:?}"),
            None => panic!("{what}: closed without a word"),
        }
        assert_eq!(world.calls().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn heads_that_http_1_forbids_reach_nobody() {
    let world = world().await;
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let body = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let good = raw(&world, format!("{head}{body}").as_bytes()).await;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
    for (what, bad) in [
        ("a bare CR in a value", format!("{head}x-a: b\rc\r\n{body}")),
        ("a bare CR before a name", format!("{head}\rx-a: b\r\n{body}")),
        ("a folded line", format!("{head}x-a: b\r\n c\r\n{body}")),
        ("NUL in a value", format!("{head}x-a: b\0c\r\n{body}")),
        ("a header without a name", format!("{head}: b\r\n{body}")),
        ("a space before the colon", format!("{head}x-a : b\r\n{body}")),
        ("a control character in the path", format!("{}{body}", head.replace("/login", "/login\x01"))),
        ("another version", format!("{}{body}", head.replace("HTTP/1.1", "HTTP/1.2"))),
        ("another host in the target", {
            let target = "https://elsewhere.example/api/v1/auth/login";
            format!("{}{body}", head.replace("/api/v1/auth/login", target))
        }),
    ] {
        let answer = raw(&world, bad.as_bytes()).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused && answer.matches("HTTP/1.1").count() <= 1, "{what}: {answer}");
        assert_eq!(world.calls().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn heads_and_paths_have_the_same_bounds_over_http_2() {
    let world = world().await;
    let answer = world.get(&format!("/api/v1/apis?{}", "a".repeat(8_200))).send("").await;
    assert_eq!((answer.status, &answer.json()["reason"]), (StatusCode::URI_TOO_LONG, &"URI_TOO_LONG".into()));
    let many = (0..101).fold(world.get("/api/v1/apis"), |ask, at| ask.header(&format!("x-{at}"), "1"));
    assert_eq!(many.send("").await.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    for path in [
        "/api//v1/apis",
        "/api/v1/../v1/apis",
        "/api/v1/%2e%2e/apis",
        "/api/v1/apis/a%2fb",
        "/api/v1/apis/%00",
    ] {
        let answer = world.get(path).user().send("").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["reason"]),
            (400, &"INVALID_PATH".into()),
            "{path}"
        );
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn a_large_body_is_refused_before_it_is_sent_and_a_small_one_is_asked_for() {
    let world = world().await;
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
        expect: 100-continue\r\n";
    let mut stream = tls(&world, &["http/1.1"]).await;
    stream.write_all(format!("{head}content-length: 2\r\n\r\n").as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    timeout(Duration::from_secs(20), stream.read_exact(&mut asked)).await.unwrap().unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.unwrap();
    let mut answer = [0; 12];
    timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    let large = format!("{head}connection: close\r\ncontent-length: 99999999\r\n\r\n");
    let answer = raw(&world, large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "nobody asks for what is too large: {answer}");
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test]
async fn who_is_answered_before_it_has_sent_all_may_stop_without_an_error() {
    let world = world().await;
    let mut wire = Wire::new(&world).await;
    // gRPC's "early trailers": nobody is let in without a token, and there is more to come.
    let head: [(&[u8], &[u8]); 6] = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", b"/tollgate.project.v1.ApiService/GetApi"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ];
    wire.ask(1, 0, &head).await;
    let answer = wire.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
    assert_eq!((answer.kind, answer.flags & END_STREAM), (HEADERS, END_STREAM), "{answer:?}");
    let reset = wire.next_of(&[RST_STREAM, GOAWAY]).await.unwrap();
    assert_eq!((reset.kind, reset.stream, reset.code()), (RST_STREAM, 1, 0), "NO_ERROR: {reset:?}");
    // The connection goes on.
    wire.ask(3, 0, &login(&[])).await;
    wire.send(DATA, END_STREAM, 3, b"{}").await;
    let next = wire.next_of(&[HEADERS, GOAWAY]).await.unwrap();
    assert!(next.kind == HEADERS && is_status(&next, 200), "{next:?}");
}

#[tokio::test]
async fn an_http_2_connection_is_told_twice_that_it_ends() {
    let mut world = World::with(Options::default().set("restart.linger_ms", 0), script).await;
    let mut wire = Wire::new(&world).await;
    wire.ask(1, 0, &login(&[])).await;
    wire.send(DATA, END_STREAM, 1, b"{}").await;
    assert!(is_status(&wire.next_of(&[HEADERS]).await.unwrap(), 200));
    let other = World::start(script).await;
    let old = std::mem::replace(&mut world.edge, other.edge);
    let end = tokio::spawn(old.shutdown());
    // All that is on its way gets through: the last stream is the largest that there can be.
    let first = wire.next_of(&[GOAWAY]).await.unwrap();
    assert_eq!((&first.payload[..4], first.code()), (&0x7fff_ffff_u32.to_be_bytes()[..], 0), "{first:?}");
    let ping = wire.next_of(&[PING]).await.unwrap();
    // What was sent before the edge could know that we know.
    wire.ask(3, 0, &login(&[])).await;
    wire.send(DATA, END_STREAM, 3, b"{}").await;
    wire.send(PING, 1, 0, &ping.payload).await;
    let (mut answered, mut last) = (false, None);
    while let Some(piece) = wire.next().await {
        answered |= piece.kind == HEADERS && piece.stream == 3 && is_status(&piece, 200);
        if piece.kind == GOAWAY {
            last = Some((u32::from_be_bytes(piece.payload[..4].try_into().unwrap()), piece.code()));
        }
    }
    assert!(answered, "a request that crossed the first goodbye is answered");
    assert_eq!(last, Some((3, 0)), "the second goodbye names the last that was");
    end.await.unwrap();
}

#[tokio::test]
async fn what_belongs_to_a_connection_goes_no_further() {
    let world = world().await;
    let bearer = world.bearer();
    let rpc = "/tollgate.project.v1.ApiService/GetApi";
    for (content_type, body) in
        [("application/grpc-web+proto", frame(b"")), ("application/proto", Bytes::new())]
    {
        for h1 in [true, false] {
            let ask = world.post(rpc).header("content-type", content_type).header("authorization", &bearer);
            let ask =
                ask.header("x-kept", "1").header("proxy-authorization", "Basic x").header("expect", "x");
            let ask = match h1 {
                true => ask
                    .h1()
                    .header("connection", "x-named, keep-alive")
                    .header("x-named", "1")
                    .header("keep-alive", "timeout=5")
                    .header("proxy-connection", "keep-alive")
                    .header("te", "trailers, gzip")
                    .header("upgrade", "h2c"),
                false => ask.header("te", "trailers"),
            };
            let answer = ask.send(body.clone()).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let call = world.calls().pop().unwrap();
            assert_eq!((call.header("x-kept"), call.header("te")), (Some("1"), Some("trailers")), "{call:?}");
            for gone in
                ["connection", "x-named", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"]
            {
                assert_eq!(call.header(gone), None, "{gone}: {call:?}");
            }
            assert_eq!((call.header("proxy-authorization"), call.header("expect")), (None, None), "{call:?}");
        }
    }
    // Over REST nothing travels but what services are told on purpose.
    world
        .get("/api/v1/apis/a1")
        .user()
        .h1()
        .header("connection", "x-named")
        .header("x-named", "1")
        .send("")
        .await;
    assert_eq!(world.calls().pop().unwrap().header("x-named"), None);
}

#[tokio::test]
async fn an_edge_that_is_its_own_service_does_not_go_round_in_circles() {
    let inner = world().await;
    let outer = Options { services: vec!["auth-service"], ..Options::default() };
    let outer = outer.set("upstreams.project.address", format!("\"{}\"", inner.edge.addr));
    let outer = World::with(outer, |_| Reply::Hang).await;
    let answer = outer.get("/api/v1/apis/a1").user().send("").await;
    // Its certificate is not that of the service.
    assert_eq!(
        (answer.status, &answer.json()["reason"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"UNAVAILABLE".into())
    );
    assert!(inner.calls().is_empty());
}

#[tokio::test]
async fn sockets_are_of_http_1_1_and_http_2_says_so() {
    let world = world().await;
    let mut wire = Wire::new(&world).await;
    let settings = wire.next_of(&[SETTINGS]).await.unwrap();
    let ids: Vec<u8> = settings.payload.chunks(6).map(|setting| setting[1]).collect();
    // SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441): who asks nevertheless is refused.
    assert!(!ids.contains(&8) && ids.contains(&3), "{settings:?}");
    let mut connect = login(&[(b"sec-websocket-version", b"13")]);
    connect[0] = (b":method", b"CONNECT");
    connect[3] = (b":path", b"/api/internal/v1/ws/gateways/connect");
    connect.insert(1, (b":protocol", b"websocket"));
    wire.ask(1, 0, &connect).await;
    let refused = wire.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
    assert_eq!((refused.kind, refused.code()), (RST_STREAM, 1), "{refused:?}");
}

#[tokio::test]
async fn methods_that_nobody_knows_are_refused() {
    let world = world().await;
    for method in ["TRACE", "BREW", "CONNECT"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request =
            format!("{method} /api/v1/apis/a1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = raw(&world, request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 405") || answer.starts_with("HTTP/1.1 400"),
            "{method}: {answer}"
        );
        assert!(!answer.to_lowercase().contains("x-user"), "{answer}");
    }
    assert!(world.calls().is_empty());
}
