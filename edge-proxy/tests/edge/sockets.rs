//! Calls with streams over WebSocket: real sockets over TLS, scripted services behind them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use prost::Message as _;
use proto::gateway::{GatewayFrame, Heartbeat, gateway_frame};
use serde_json::{Value, json};
use service_kit::Error;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

use super::{
    client,
    harness::{Options, Reply, World},
};

const CONNECT: &str = "/tollgate.gateway.v1.GatewayLink/Connect";
const SUBSCRIBE: &str = "/tollgate.gateway.v1.GatewayLink/Subscribe";
const JSON: (&str, &str) = ("sec-websocket-protocol", "connect.v1+json");
const PROTO: (&str, &str) = ("sec-websocket-protocol", "chat, connect.v1+proto");
const KEY: (&str, &str) = ("api-key", "k");

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn world(script: impl Fn() -> Reply + Send + Sync + 'static) -> World {
    let options = Options::default()
        .set("limits.gateway_connects_per_minute", 1_000)
        .set("cors.allowed_origins", r#"["https://app.example.com"]"#);
    World::with(options, move |_| script()).await
}

/// A socket, or the status and body of the refusal.
async fn attempt(world: &World, path: &str, headers: &[(&str, &str)]) -> Result<Socket, (StatusCode, Value)> {
    let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = client::tls(world, &["http/1.1"]).await;
    match soon(Box::pin(tokio_tungstenite::client_async(request, stream))).await {
        Ok((socket, response)) => {
            let agreed = response.headers()["sec-websocket-protocol"].to_str().unwrap();
            assert!(["connect.v1+json", "connect.v1+proto"].contains(&agreed), "{agreed}");
            Ok(socket)
        }
        Err(tungstenite::Error::Http(response)) => {
            let (parts, body) = response.into_parts();
            Err((parts.status, serde_json::from_slice(&body.unwrap_or_default()).unwrap()))
        }
        Err(error) => panic!("{error}"),
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// The next record; pings are answered on the way.
async fn record(socket: &mut Socket) -> Message {
    loop {
        match soon(socket.next()).await.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

async fn text(socket: &mut Socket) -> Value {
    match record(socket).await {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The code that the socket is closed with.
async fn close(socket: &mut Socket) -> u16 {
    match record(socket).await {
        Message::Close(frame) => frame.unwrap().code.into(),
        other => panic!("{other:?}"),
    }
}

fn beat(revision: u64) -> Vec<u8> {
    let beat = Heartbeat { revision, ..Heartbeat::default() };
    GatewayFrame { frame: Some(gateway_frame::Frame::Heartbeat(beat)) }.encode_to_vec()
}

fn envelope(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat().into()
}

#[tokio::test]
async fn both_directions_flow_as_they_come_and_the_end_is_a_record() {
    let world = world(|| Reply::Echo).await;
    let mut socket = attempt(&world, CONNECT, &[JSON, KEY]).await.unwrap();
    for revision in 1..4 {
        let said = json!({"message": {"heartbeat": {"revision": revision.to_string()}}});
        socket.send(Message::text(said.to_string())).await.unwrap();
        assert_eq!(text(&mut socket).await["message"]["heartbeat"]["revision"], revision.to_string());
    }
    socket.send(Message::text(r#"{"end":{}}"#)).await.unwrap();
    assert_eq!(text(&mut socket).await, json!({"end": {}}));
    assert_eq!(close(&mut socket).await, 1000);

    let mut socket = attempt(&world, CONNECT, &[PROTO, KEY]).await.unwrap();
    socket.send(Message::Binary(envelope(0, &beat(7)))).await.unwrap();
    assert_eq!(record(&mut socket).await, Message::Binary(envelope(0, &beat(7))));
    socket.send(Message::Binary(envelope(2, b""))).await.unwrap();
    assert_eq!(record(&mut socket).await, Message::Binary(envelope(2, b"{}")));
    assert_eq!(close(&mut socket).await, 1000);
    for call in world.calls() {
        assert_eq!((call.path.as_str(), call.header("api-key")), (CONNECT, Some("k")));
        assert!(call.headers.keys().all(|name| !name.as_str().starts_with("sec-")), "{call:?}");
    }
}

#[tokio::test]
async fn a_method_of_one_message_needs_no_end() {
    let world = world(|| Reply::Stream(vec![beat(1), beat(2)], Error::not_found("thing").into())).await;
    let mut socket = attempt(&world, SUBSCRIBE, &[JSON, KEY]).await.unwrap();
    socket.send(Message::text(r#"{"message":{"instanceId":"i"}}"#)).await.unwrap();
    assert_eq!(text(&mut socket).await["message"]["heartbeat"]["revision"], "1");
    assert_eq!(text(&mut socket).await["message"]["heartbeat"]["revision"], "2");
    let end = text(&mut socket).await;
    assert_eq!(end["end"]["error"]["code"], "not_found");
    assert_eq!(end["end"]["error"]["details"][0]["debug"]["reason"], "NOT_FOUND");
    assert_eq!(close(&mut socket).await, 1000);
}

#[tokio::test]
async fn refusals_come_before_the_upgrade() {
    let world = world(|| Reply::Echo).await;
    for (path, headers, status, code) in [
        // Nobody: the same wall as for every call.
        (CONNECT, &[JSON][..], 401, "unauthenticated"),
        (CONNECT, &[KEY], 400, "invalid_argument"),
        (CONNECT, &[KEY, ("sec-websocket-protocol", "graphql-ws")], 400, "invalid_argument"),
        (CONNECT, &[JSON, KEY, ("origin", "https://evil.example")], 403, "permission_denied"),
        (CONNECT, &[JSON, KEY, ("sec-websocket-version", "8")], 426, "invalid_argument"),
        ("/tollgate.gateway.v1.GatewayLink/Nothing", &[JSON, KEY], 501, "unimplemented"),
        ("/tollgate.auth.v1.IdentityService/WatchRevocations", &[JSON, KEY], 501, "unimplemented"),
        ("/tollgate.project.v1.ApiService/GetApi", &[JSON, KEY], 405, "unimplemented"),
    ] {
        let (found, body) = attempt(&world, path, headers).await.map(|_| ()).unwrap_err();
        assert_eq!((found.as_u16(), body["code"].as_str().unwrap()), (status, code), "{path} {headers:?}");
    }
    assert!(world.calls().is_empty());
    for origin in ["https://app.example.com", "https://localhost"] {
        assert!(attempt(&world, CONNECT, &[JSON, KEY, ("origin", origin)]).await.is_ok(), "{origin}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_service_is_the_end_of_the_call() {
    let world = world(|| Reply::Fail(Error::unauthenticated("no such token").into())).await;
    // Sent before anything else, or after the 101: that depends on who is faster, and both are right.
    match attempt(&world, CONNECT, &[JSON, KEY]).await {
        Ok(mut socket) => {
            assert_eq!(text(&mut socket).await["end"]["error"]["code"], "unauthenticated");
            assert_eq!(close(&mut socket).await, 1008);
        }
        Err((status, body)) => panic!("{status} {body}"),
    }
}

#[tokio::test]
async fn what_breaks_the_framing_is_closed_and_what_breaks_the_message_ends_the_call() {
    let world = world(|| Reply::Echo).await;
    for (protocol, message, code) in [
        (JSON, Message::text("{}"), 1007),
        (JSON, Message::Binary(envelope(0, b"")), 1003),
        (PROTO, Message::text("{}"), 1003),
        (PROTO, Message::Binary(envelope(1, b"")), 1007),
        (JSON, Message::text("x".repeat(1024 * 1024 + 100)), 1009),
    ] {
        let mut socket = attempt(&world, CONNECT, &[protocol, KEY]).await.unwrap();
        // The edge may be gone before all of a large message is out.
        let _ = socket.send(message).await;
        assert_eq!(close(&mut socket).await, code);
    }
    let mut socket = attempt(&world, CONNECT, &[JSON, KEY]).await.unwrap();
    socket.send(Message::text(r#"{"message":{"heartbeat":{"x":1}}}"#)).await.unwrap();
    let end = text(&mut socket).await;
    assert_eq!(end["end"]["error"]["code"], "invalid_argument");
    assert_eq!(close(&mut socket).await, 1000);
    let mut socket = attempt(&world, CONNECT, &[JSON, KEY]).await.unwrap();
    for said in [r#"{"end":{}}"#, r#"{"message":{}}"#] {
        socket.send(Message::text(said)).await.unwrap();
    }
    assert!(text(&mut socket).await["end"].is_object());
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_call() {
    let world = world(|| Reply::Stall(beat(1))).await;
    let mut socket = attempt(&world, SUBSCRIBE, &[JSON, KEY]).await.unwrap();
    socket.send(Message::text(r#"{"message":{}}"#)).await.unwrap();
    assert!(text(&mut socket).await["message"].is_object());
    drop(socket);
    world.given_up(1).await;
}

#[tokio::test]
async fn a_drain_says_goodbye() {
    let world = world(|| Reply::Stall(beat(1))).await;
    let mut socket = attempt(&world, SUBSCRIBE, &[JSON, KEY]).await.unwrap();
    socket.send(Message::text(r#"{"message":{}}"#)).await.unwrap();
    assert!(text(&mut socket).await["message"].is_object());
    let goodbye = async {
        let end = text(&mut socket).await;
        (end["end"]["error"]["code"].clone(), close(&mut socket).await)
    };
    let ((code, closed), ()) = tokio::join!(goodbye, world.edge.shutdown());
    assert_eq!((code, closed), (json!("unavailable"), 1001));
}

#[tokio::test]
async fn a_service_that_breaks_off_ends_the_call() {
    let world = world(|| Reply::Abort(beat(1))).await;
    let mut socket = attempt(&world, SUBSCRIBE, &[JSON, KEY]).await.unwrap();
    socket.send(Message::text(r#"{"message":{}}"#)).await.unwrap();
    let mut last = text(&mut socket).await;
    if last["message"].is_object() {
        last = text(&mut socket).await;
    }
    assert_eq!(last["end"]["error"]["code"], "unavailable", "{last}");
    assert_eq!(close(&mut socket).await, 1013);
}

/// A frame of a client, masked with zeroes.
fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[head, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[tokio::test]
async fn frames_that_the_standard_forbids_close_the_socket_and_nothing_is_compressed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = world(|| Reply::Echo).await;
    for (what, frame, code) in [
        ("text that is not UTF-8", masked(0x81, &[0xff, 0xfe]), 1007),
        ("no mask", vec![0x81, 1, b'{'], 1002),
        ("a bit that no extension gave a meaning", masked(0xc1, b"{}"), 1002),
        ("a kind of frame that nobody knows", masked(0x83, b"{}"), 1002),
        ("a control frame in pieces", masked(0x09, b"x"), 1002),
        ("a piece of nothing", masked(0x80, b"x"), 1002),
        ("a close code that none may send", masked(0x88, &1005_u16.to_be_bytes()), 1002),
    ] {
        let mut stream = client::tls(&world, &["http/1.1"]).await;
        let head = format!(
            "GET {CONNECT} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\napi-key: k\r\n\
            sec-websocket-protocol: connect.v1+json\r\n\
            sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        assert!(head.starts_with("http/1.1 101") && !head.contains("extensions"), "{what}: {head}");
        let mut frames = &answer[end..];
        // Whatever came before it, the last that is said is why.
        let mut closed = None;
        while let [first, length, rest @ ..] = frames {
            let (payload, after) = rest.split_at(usize::from(*length));
            if *first == 0x88 {
                closed = Some(u16::from_be_bytes([payload[0], payload[1]]));
            }
            frames = after;
        }
        assert_eq!(closed, Some(code), "{what}: {:?}", &answer[end..]);
    }
}
