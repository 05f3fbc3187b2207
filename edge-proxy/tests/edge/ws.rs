//! The WebSocket skin of the gateway link: real sockets over TLS, a fake gateway-service behind them.

use std::time::Duration;

use futures_util::{SinkExt as _, Stream, StreamExt as _};
use http::{HeaderMap, StatusCode};
use proto::{
    gateway::{
        Close, Connected, DeploymentAck, Event, GatewayFrame, PlatformFrame, gateway_frame,
        gateway_link_server::{GatewayLink, GatewayLinkServer},
        platform_frame,
    },
    time::Timestamp,
};
use service_kit::{Error, Kind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, client::IntoClientRequest as _, handshake::client::Request, protocol::CloseFrame,
    },
};
use tonic::{Response, Status, Streaming, metadata::MetadataMap, service::Routes};

use super::{
    client,
    harness::{Options, Reply, World},
};

const PATH: &str = "/api/internal/v1/ws/gateways/connect";

type Frames = std::pin::Pin<Box<dyn Stream<Item = Result<PlatformFrame, Status>> + Send>>;
type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// The platform's end of a link.
struct Peer {
    hello: GatewayFrame,
    metadata: MetadataMap,
    from_gateway: Streaming<GatewayFrame>,
    to_gateway: mpsc::Sender<Result<PlatformFrame, Status>>,
}

impl Peer {
    async fn send(&self, frame: platform_frame::Frame) {
        self.to_gateway.send(Ok(PlatformFrame { frame: Some(frame) })).await.unwrap();
    }

    async fn event(&self, kind: &str, payload: &str) {
        let event = Event {
            r#type: kind.into(),
            payload_json: payload.into(),
            timestamp: Some(Timestamp::from_unix_ms(1_766_000_000_007)),
            correlation_id: "c-1".into(),
            ..Event::default()
        };
        self.send(platform_frame::Frame::Event(event)).await;
    }

    /// The next acknowledgement; signs of life are passed over.
    async fn ack(&mut self) -> Option<DeploymentAck> {
        loop {
            match soon(self.from_gateway.next()).await?.ok()?.frame.unwrap() {
                gateway_frame::Frame::DeploymentAck(ack) => return Some(ack),
                gateway_frame::Frame::Heartbeat(_) => {}
                other => panic!("not for a socket: {other:?}"),
            }
        }
    }
}

/// gateway-service: the token says what it is to do.
struct Fake(mpsc::UnboundedSender<Peer>);

#[async_trait::async_trait]
impl GatewayLink for Fake {
    type ConnectStream = Frames;
    type SubscribeStream = Frames;

    async fn subscribe(
        &self,
        _: tonic::Request<proto::gateway::SubscribeRequest>,
    ) -> Result<Response<Frames>, Status> {
        panic!("not in the script")
    }

    async fn report(
        &self,
        _: tonic::Request<proto::gateway::ReportRequest>,
    ) -> Result<Response<proto::gateway::ReportResponse>, Status> {
        panic!("not in the script")
    }

    async fn connect(
        &self,
        request: tonic::Request<Streaming<GatewayFrame>>,
    ) -> Result<Response<Frames>, Status> {
        let metadata = request.metadata().clone();
        let key = metadata.get("api-key").unwrap().to_str().unwrap().to_owned();
        let later = |status: Status| -> Frames { Box::pin(tokio_stream::once(Err(status))) };
        let mut from_gateway = request.into_inner();
        match key.as_str() {
            "good" => {}
            "bad" => return Err(Error::unauthenticated("no such token").into()),
            "bad-later" => return Ok(Response::new(later(Error::unauthenticated("revoked").into()))),
            "full" => {
                let full = Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", "1000 connections");
                return Err(full.retry_after(Duration::from_secs(30)).into());
            }
            "database" => {
                return Err(Error::unavailable("the database does not answer", anyhow::anyhow!("x")).into());
            }
            "not-found" => return Err(Error::not_found("gateway").into()),
            "denied" => return Err(Error::permission_denied("no").into()),
            "broken" => return Err(Error::internal(anyhow::anyhow!("x")).into()),
            "bare" => return Err(Status::unauthenticated("from the transport")),
            "ended" => return Ok(Response::new(Box::pin(tokio_stream::empty()))),
            "odd" => {
                let event = platform_frame::Frame::Event(Event::default());
                let frame = PlatformFrame { frame: Some(event) };
                return Ok(Response::new(Box::pin(tokio_stream::once(Ok(frame)))));
            }
            "silent" => return Ok(Response::new(Box::pin(tokio_stream::pending()))),
            other => panic!("{other} is not in the script"),
        }
        let hello = from_gateway.message().await?.unwrap();
        let (to_gateway, frames) = mpsc::channel(64);
        let peer = Peer { hello, metadata, from_gateway, to_gateway };
        let connected = Connected {
            gateway_id: "g1".into(),
            connection_id: "c1".into(),
            timestamp: Some(Timestamp::from_unix_ms(1_766_000_000_000)),
            ..Connected::default()
        };
        // Both at once: the acknowledgement must still come first.
        peer.send(platform_frame::Frame::Connected(connected)).await;
        self.0.send(peer).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// An edge with the fake behind it.
struct Stage {
    world: World,
    peers: mpsc::UnboundedReceiver<Peer>,
}

impl Stage {
    async fn set() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(mut options: Options) -> Self {
        let (sender, peers) = mpsc::unbounded_channel();
        options.gateway = Some(Routes::new(GatewayLinkServer::new(Fake(sender))));
        let options = options.set("limits.gateway_connects_per_minute", 100);
        Self { world: World::with(options, |call| panic!("{} is not in the script", call.path)).await, peers }
    }

    /// A gateway that connects, with its acknowledgement read.
    async fn connect(&mut self) -> (Socket, Peer) {
        let mut socket = attempt(&self.world, Some("good")).await.unwrap();
        assert!(text(&mut socket).await.contains("connection.ack"));
        (socket, soon(self.peers.recv()).await.unwrap())
    }
}

/// What must come soon.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

#[derive(Debug)]
struct Refused {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

async fn attempt(world: &World, key: Option<&str>) -> Result<Socket, Refused> {
    let mut request: Request = format!("wss://localhost{PATH}").into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("api-key", key.parse().unwrap());
    }
    let stream = client::tls(world, &["http/1.1"]).await;
    match soon(Box::pin(tokio_tungstenite::client_async(request, stream))).await {
        Ok((socket, response)) => {
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert!(!response.headers().contains_key("sec-websocket-extensions"));
            Ok(socket)
        }
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            let (parts, body) = response.into_parts();
            let body = String::from_utf8(body.unwrap_or_default()).unwrap();
            Err(Refused { status: parts.status, headers: parts.headers, body })
        }
        Err(error) => panic!("{error}"),
    }
}

async fn refused(world: &World, key: Option<&str>) -> Refused {
    match attempt(world, key).await {
        Ok(_) => panic!("{key:?} is let in"),
        Err(refused) => refused,
    }
}

/// The next text; pings are answered on the way.
async fn text(socket: &mut Socket) -> String {
    loop {
        match soon(socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => return text.to_string(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn close_frame(socket: &mut Socket) -> (u16, String) {
    loop {
        match soon(socket.next()).await.expect("a close frame").unwrap() {
            Message::Close(frame) => {
                let CloseFrame { code, reason } = frame.expect("a close code");
                return (code.into(), reason.to_string());
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn ack_of(deployment: &str) -> Message {
    Message::text(format!(
        r#"{{"type":"deployment.ack","payload":{{"deploymentId":"{deployment}","artifactId":"a1","resourceType":"api",
        "action":"deploy","status":"success","performedAt":"2026-08-22T10:00:00.123Z"}}}}"#
    ))
}

#[tokio::test]
async fn frames_cross_in_both_directions() {
    let mut stage = Stage::set().await;
    let mut socket = attempt(&stage.world, Some("good")).await.map_err(|refused| refused.body).unwrap();
    let mut peer = soon(stage.peers.recv()).await.unwrap();
    let Some(gateway_frame::Frame::Hello(hello)) = &peer.hello.frame else { panic!("{:?}", peer.hello) };
    assert_eq!((hello.remote_address.as_str(), hello.instance_id.as_str()), ("127.0.0.1", ""));
    assert_eq!(peer.metadata.get("tollgate-client-address").unwrap(), "127.0.0.1");
    assert!(service_kit::id::is_id(peer.metadata.get("tollgate-client-request").unwrap().to_str().unwrap()));
    peer.event(
        "api.deployed",
        r#"{"apiId":"a1", "deploymentId":"d1","performedAt":"2026-08-22T10:00:00.123Z"}"#,
    )
    .await;
    assert_eq!(
        text(&mut socket).await,
        r#"{"type":"connection.ack","gatewayId":"g1","connectionId":"c1","timestamp":"2025-12-17T19:33:20.000Z"}"#
    );
    assert_eq!(
        text(&mut socket).await,
        concat!(
            r#"{"type":"api.deployed","payload":{"apiId":"a1", "deploymentId":"d1","performedAt":"2026-08-22T10:00:00.123Z"},"#,
            r#""timestamp":"2025-12-17T19:33:20.007Z","correlationId":"c-1"}"#
        )
    );
    socket.send(ack_of("d1")).await.unwrap();
    let ack = peer.ack().await.unwrap();
    let expected = DeploymentAck {
        deployment_id: "d1".into(),
        artifact_id: "a1".into(),
        resource_type: "api".into(),
        action: "deploy".into(),
        status: "success".into(),
        performed_at: "2026-08-22T10:00:00.123Z".into(),
        error_code: String::new(),
    };
    assert_eq!(ack, expected);
}

#[tokio::test]
async fn garbage_is_ignored_and_the_socket_stays() {
    let mut stage = Stage::set().await;
    let (mut socket, mut peer) = stage.connect().await;
    for garbage in
        ["", "{", "null", "{\"type\":\"gateway.sing\"}", r#"{"type":"deployment.ack","payload":7}"#]
    {
        socket.send(Message::text(garbage)).await.unwrap();
    }
    socket.send(Message::binary(vec![0xff; 1_000])).await.unwrap();
    socket.send(Message::text("x".repeat(64 * 1024))).await.unwrap();
    socket.send(ack_of("after")).await.unwrap();
    assert_eq!(peer.ack().await.unwrap().deployment_id, "after");
    peer.event("t", "{}").await;
    assert!(text(&mut socket).await.starts_with(r#"{"type":"t""#));
}

#[tokio::test]
async fn only_a_token_that_is_proven_bad_is_unauthorized() {
    let stage = Stage::set().await;
    for key in [None, Some(""), Some("bad"), Some("bad-later")] {
        let refused = refused(&stage.world, key).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{key:?}");
        assert_eq!(
            refused.body,
            r#"{"status":"error","code":"UNAUTHORIZED","message":"Invalid or expired credentials."}"#
        );
    }
    for key in ["full", "database", "not-found", "denied", "broken", "bare", "ended", "odd", "silent"] {
        let refused = refused(&stage.world, Some(key)).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{key}");
        assert_eq!(refused.headers["retry-after"], if key == "full" { "30" } else { "5" }, "{key}");
        assert!(refused.body.contains(r#""code":"SERVICE_UNAVAILABLE""#), "{}", refused.body);
    }
}

#[tokio::test]
async fn without_gateway_service_a_gateway_is_told_to_come_again() {
    let options = Options { services: vec!["auth-service"], ..Options::default() };
    let world = World::with(options, |_| Reply::Hang).await;
    assert_eq!(refused(&world, Some("good")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused(&world, None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn attempts_from_one_address_are_counted() {
    // Time stands still: no attempt is given back.
    let clock = service_kit::Clock::fixed(service_kit::Clock::system().now_ms());
    let mut options = Options { clock, ..Options::default() };
    let (sender, _peers) = mpsc::unbounded_channel();
    options.gateway = Some(Routes::new(GatewayLinkServer::new(Fake(sender))));
    let world = World::with(options, |_| Reply::Hang).await;
    // The default: ten in a minute, good ones and bad ones.
    for attempt_number in 0..10 {
        let key = if attempt_number % 2 == 0 { "good" } else { "bad" };
        let status =
            attempt(&world, Some(key)).await.map_or_else(|refused| refused.status, |_| StatusCode::OK);
        assert_eq!(status == StatusCode::OK, key == "good");
    }
    let refused = refused(&world, Some("good")).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "6");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&refused.body).unwrap(),
        serde_json::json!({"status": "error", "code": "TOO_MANY_REQUESTS",
            "message": "Connection rate limit exceeded. Please try again later."})
    );
}

#[tokio::test]
async fn what_is_no_upgrade_is_told_so() {
    let stage = Stage::set().await;
    for h1 in [true, false] {
        let ask = stage.world.get(PATH).header("api-key", "good");
        let answer = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!(answer.status, StatusCode::UPGRADE_REQUIRED, "{answer:?}");
        assert_eq!(answer.header("upgrade"), if h1 { "websocket" } else { "" });
        assert_eq!(answer.json()["code"], "UPGRADE_REQUIRED");
    }
    let ask = stage.world.get(PATH).h1().header("upgrade", "websocket").header("connection", "upgrade");
    let answer =
        ask.header("sec-websocket-version", "13").header("sec-websocket-key", "short").send("").await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::BAD_REQUEST, &"BAD_REQUEST".into()));
    let answer = stage.world.post(PATH).send("").await;
    assert_eq!(
        (answer.status, answer.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, OPTIONS")
    );
}

#[tokio::test]
async fn pings_keep_a_gateway_and_their_lack_of_answers_cuts_it() {
    let options = Options::default().set("gateway_link.ping_seconds", 1).set("gateway_link.dead_seconds", 2);
    let mut stage = Stage::with(options).await;
    let (mut live, mut live_peer) = stage.connect().await;
    let (_dead, mut dead_peer) = stage.connect().await;
    let reading = async {
        for _ in 0..4 {
            let ping = soon(live.next()).await.unwrap().unwrap();
            assert_eq!(ping, Message::Ping(Vec::new().into()));
        }
        live
    };
    // Nobody reads the dead one's socket: no pong. Its link ends while the live one goes on.
    let dying = async { while let Some(Ok(_)) = dead_peer.from_gateway.next().await {} };
    let (live, ()) = tokio::join!(reading, async { soon(dying).await });
    assert!(matches!(
        soon(live_peer.from_gateway.next()).await,
        Some(Ok(GatewayFrame { frame: Some(gateway_frame::Frame::Heartbeat(_)) }))
    ));
    drop(live);
}

#[tokio::test]
async fn each_end_is_told_to_the_other() {
    let mut stage = Stage::set().await;
    let (mut socket, peer) = stage.connect().await;
    peer.send(platform_frame::Frame::Close(Close { code: 4401, reason: "token revoked".into() })).await;
    assert_eq!(close_frame(&mut socket).await, (4401, "token revoked".to_owned()));
    assert!(soon(socket.next()).await.is_none(), "the edge closes the connection");

    let (mut socket, peer) = stage.connect().await;
    drop(peer);
    assert_eq!(close_frame(&mut socket).await.0, 1012);

    let (mut socket, mut peer) = stage.connect().await;
    socket.send(ack_of("last words")).await.unwrap();
    socket.close(None).await.unwrap();
    assert_eq!(peer.ack().await.unwrap().deployment_id, "last words");
    assert!(peer.ack().await.is_none(), "the stream ends");
    while let Some(Ok(_)) = soon(socket.next()).await {}

    let (socket, mut peer) = stage.connect().await;
    drop(socket);
    assert!(peer.ack().await.is_none(), "a lost socket ends the stream");

    let (mut socket, _peer) = stage.connect().await;
    socket.send(Message::text("x".repeat(64 * 1024 + 1))).await.unwrap();
    assert_eq!(close_frame(&mut socket).await.0, 1009);
}

#[tokio::test]
async fn a_drain_says_goodbye() {
    let mut stage = Stage::set().await;
    let (mut first, mut peer) = stage.connect().await;
    let (mut second, _peer) = stage.connect().await;
    let Stage { world, .. } = stage;
    let World { edge, .. } = world;
    let draining = tokio::spawn(edge.shutdown());
    for socket in [&mut first, &mut second] {
        assert_eq!(close_frame(socket).await, (1012, "server restart".to_owned()));
        while let Some(Ok(_)) = soon(socket.next()).await {}
    }
    assert!(peer.ack().await.is_none());
    soon(draining).await.unwrap();
}

#[tokio::test]
async fn gateways_that_do_not_read_hold_up_nobody() {
    let mut stage = Stage::set().await;
    let (mut quick, quick_peer) = stage.connect().await;
    let large = format!("\"{}\"", "x".repeat(500_000));
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let (socket, peer) = stage.connect().await;
        stuck.push((socket, peer.to_gateway.clone()));
        let large = large.clone();
        // More than the kernel, TLS and the stream hold: from some event on nothing moves any more.
        tokio::spawn(async move {
            let event = Event { r#type: "large".into(), payload_json: large, ..Event::default() };
            let frame = PlatformFrame { frame: Some(platform_frame::Frame::Event(event)) };
            while peer.to_gateway.send(Ok(frame.clone())).await.is_ok() {}
        });
    }
    let full = async {
        while stuck.iter().any(|(_, queue)| queue.capacity() > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(full).await;
    for round in 0..20 {
        let asked = std::time::Instant::now();
        quick_peer.event("quick", &round.to_string()).await;
        assert!(text(&mut quick).await.contains(&format!(r#""payload":{round}"#)));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_socket_that_is_no_websocket_is_let_go() {
    let mut stage = Stage::set().await;
    let mut stream = client::tls(&stage.world, &["http/1.1"]).await;
    let upgrade = format!(
        "GET {PATH} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\napi-key: good\r\n\r\n"
    );
    // What comes with the request belongs to the socket already.
    stream.write_all(&[upgrade.as_bytes(), &[0x81, 0x03, b'x', b'y', b'z']].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    // An unmasked frame: 1002, and the reason.
    let tail = &answer[answer.len() - 60..];
    assert!(tail.windows(2).any(|two| two == 1002_u16.to_be_bytes()), "{tail:?}");
    let mut peer = soon(stage.peers.recv()).await.unwrap();
    assert!(peer.ack().await.is_none());
}
