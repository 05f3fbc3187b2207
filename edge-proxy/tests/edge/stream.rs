//! Streams of answers over REST: Server-Sent Events and lines of JSON.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use prost::Message as _;
use proto::gateway::{
    Close, Connected, Event, Heartbeat, PlatformFrame, SubscribeRequest, platform_frame::Frame,
};
use service_kit::{Clock, Error, Kind};
use tonic::Status;

use super::{
    client::Ask,
    clients::is_after,
    harness::{Call, Options, Reply, World},
};

const PATH: &str = "/api/internal/v1/gateways/events";
const SUBSCRIBE: &str = "/tollgate.gateway.v1.GatewayLink/Subscribe";
const CONNECT: &str = "/tollgate.gateway.v1.GatewayLink/Connect";
const SOCKET: &str = "/api/internal/v1/ws/gateways/connect";

fn message(frame: Frame) -> Vec<u8> {
    PlatformFrame { frame: Some(frame) }.encode_to_vec()
}

fn beat(revision: u64) -> Vec<u8> {
    message(Frame::Heartbeat(Heartbeat { revision, ..Heartbeat::default() }))
}

/// A stream of each kind of message.
fn all() -> Vec<Vec<u8>> {
    let payload = "{\"a\":\"line\\nbreak\"}\n".to_owned();
    vec![
        message(Frame::Connected(Connected { gateway_id: "g".into(), ..Connected::default() })),
        message(Frame::Event(Event { r#type: "t".into(), payload_json: payload, ..Event::default() })),
        beat(7),
        message(Frame::Close(Close { code: 4401, reason: "token revoked".into() })),
    ]
}

fn scripted(call: &Call) -> Reply {
    assert_eq!(call.path, SUBSCRIBE);
    match call.header("api-key").unwrap() {
        "all" => Reply::Stream(all(), Status::ok("")),
        "none" => Reply::Stream(Vec::new(), Status::ok("")),
        "bad" => Reply::Fail(Error::unauthenticated("no such token").into()),
        "full" => {
            let full = Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", "too many");
            // As the first thing of a stream, not in place of it.
            Reply::Stream(Vec::new(), full.retry_after(Duration::from_secs(5)).into())
        }
        "later" => Reply::Stream(vec![beat(1)], Error::not_found("thing").into()),
        "long" => Reply::Stall(beat(1)),
        "endless" => Reply::Endless(message(Frame::Event(Event {
            payload_json: "x".repeat(100_000),
            ..Event::default()
        }))),
        other => panic!("{other} is not in the script"),
    }
}

async fn world() -> World {
    World::with(Options::default().set("limits.gateway_connects_per_minute", 1_000), scripted).await
}

fn nothing() -> UnsyncBoxBody<Bytes, hyper::Error> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn over(ask: Ask<'_>, h1: bool) -> Ask<'_> {
    if h1 { ask.h1() } else { ask }
}

/// The next piece of a stream; `None` at its end.
async fn piece(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
        let data = frame.expect("a piece in time")?.unwrap().into_data().unwrap();
        // HTTP/2 may end a body with a frame that holds nothing.
        if !data.is_empty() {
            return Some(String::from_utf8(data.to_vec()).unwrap());
        }
    }
}

#[tokio::test]
async fn each_message_is_an_event_over_both_versions_of_http() {
    let world = world().await;
    for h1 in [false, true] {
        for accept in ["text/event-stream", "*/*", ""] {
            let ask = world.get(PATH).header("api-key", "all").header("accept-encoding", "gzip, br");
            let ask = if accept.is_empty() { ask } else { ask.header("accept", accept) };
            let answer = over(ask, h1).send("").await;
            assert_eq!((answer.status, answer.complete), (StatusCode::OK, true), "{answer:?}");
            assert_eq!(answer.header("content-type"), "text/event-stream");
            assert_eq!(answer.header("cache-control"), "no-store");
            assert_eq!(answer.header("x-accel-buffering"), "no");
            assert_eq!((answer.header("content-encoding"), answer.header("content-length")), ("", ""));
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            let events: Vec<&str> = text.split_terminator("\n\n").collect();
            assert_eq!(events.len(), 4, "{text}");
            assert!(events[0].starts_with("event: connected\ndata: {\"gatewayId\":\"g\""), "{text}");
            assert!(events[1].contains(r#""payloadJson":"{\"a\":\"line\\nbreak\"}\n""#), "{text}");
            assert_eq!(events[2], "event: heartbeat\ndata: {\"revision\":\"7\",\"stateHash\":\"\"}");
            assert_eq!(events[3], "event: close\ndata: {\"code\":4401,\"reason\":\"token revoked\"}");
            assert!(events.iter().all(|event| event.lines().count() == 2), "one line of data each");
        }
    }
}

#[tokio::test]
async fn lines_of_json_come_to_who_asks_for_them_and_nothing_else_does() {
    let world = world().await;
    let ask = || world.get(PATH).header("api-key", "all");
    let answer = ask().header("accept", "application/x-ndjson").send("").await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3], serde_json::json!({"close": {"code": 4401, "reason": "token revoked"}}));

    let seen = world.calls().len();
    let answer = ask().header("accept", "application/json").send("").await;
    assert_eq!(answer.status, StatusCode::NOT_ACCEPTABLE, "{answer:?}");
    let answer = world.ask(Method::HEAD, PATH).header("api-key", "all").send("").await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, OPTIONS"));
    assert_eq!(world.calls().len(), seen, "a stream that nobody reads is not opened");
}

#[tokio::test]
async fn the_query_is_the_request_and_there_is_no_deadline() {
    let world = world().await;
    let path = format!("{PATH}?instanceId=i-1&capabilities=ack&capabilities=resume&appliedRevision=7");
    assert_eq!(world.get(&path).header("api-key", "none").send("").await.status, StatusCode::OK);
    let call = world.call();
    let request = call.decode::<SubscribeRequest>();
    assert_eq!((request.instance_id.as_str(), request.applied_revision), ("i-1", 7));
    assert_eq!(request.capabilities, ["ack", "resume"]);
    assert_eq!((call.header("api-key"), call.header("grpc-timeout")), (Some("none"), None));
    assert_eq!(call.header("tollgate-client-address"), Some("127.0.0.1"));
}

#[tokio::test]
async fn what_fails_before_the_first_message_is_an_ordinary_refusal() {
    let world = world().await;
    let answer = world.get(PATH).header("api-key", "bad").send("").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
    assert_eq!((answer.header("content-type"), &answer.json()["code"]), ("application/json", &401.into()));
    let answer = world.get(PATH).header("api-key", "full").send("").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "5"));
    assert_eq!(world.get(PATH).send("").await.status, StatusCode::UNAUTHORIZED);
    let answer = world.get(&format!("{PATH}?appliedRevision=x")).header("api-key", "all").send("").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.json()["description"].as_str().unwrap().contains("appliedRevision"), "{answer:?}");
    let without =
        World::with(Options { services: vec!["auth-service"], ..Options::default() }, scripted).await;
    let answer = without.get(PATH).header("api-key", "all").send("").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
}

#[tokio::test]
async fn what_fails_later_is_the_last_event() {
    let world = world().await;
    let answer = world.get(PATH).header("api-key", "later").send("").await;
    assert_eq!((answer.status, answer.complete), (StatusCode::OK, true));
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let (first, last) = text.split_once("\n\n").unwrap();
    assert!(first.starts_with("event: heartbeat\n"), "{text}");
    assert!(last.starts_with("event: error\ndata: {\"code\":404,") && last.ends_with("}\n\n"), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_call() {
    let world = world().await;
    for (count, h1) in [(1, false), (2, true)] {
        let response = over(world.get(PATH).header("api-key", "long"), h1).open(nothing()).await;
        let mut body = response.into_body();
        assert!(piece(&mut body).await.unwrap().starts_with("event: heartbeat"));
        drop(body);
        world.given_up(count).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_left() {
    let options = Options::default().set("limits.write_seconds", 1);
    let world = World::with(options, scripted).await;
    for (count, h1) in [(1, false), (2, true)] {
        // Opened, and never read: neither windows nor the kernel's buffers hold an endless stream.
        let _response = over(world.get(PATH).header("api-key", "endless"), h1).open(nothing()).await;
        world.given_up(count).await;
    }
}

#[tokio::test]
async fn a_drain_is_told_with_a_time_to_come_back() {
    let world = world().await;
    let mut bodies = Vec::new();
    for h1 in [false, true] {
        let response = over(world.get(PATH).header("api-key", "long"), h1).open(nothing()).await;
        let mut body = response.into_body();
        piece(&mut body).await.unwrap();
        bodies.push(body);
    }
    let World { edge, .. } = world;
    let draining = tokio::spawn(edge.shutdown());
    for body in &mut bodies {
        let last = piece(body).await.unwrap();
        assert!(last.starts_with("event: error\nretry: ") && last.contains("\"code\":503"), "{last}");
        assert_eq!(piece(body).await, None);
    }
    tokio::time::timeout(Duration::from_secs(10), draining).await.expect("nothing holds it up").unwrap();
}

#[tokio::test]
async fn attempts_over_all_transports_share_one_limit_by_address() {
    let clock = Clock::fixed(Clock::system().now_ms());
    let options = Options { clock: clock.clone(), ..Options::default() };
    let options = options.set("limits.gateway_connects_per_minute", 3);
    let world = World::with(options, |call| match call.path.as_str() {
        SUBSCRIBE => Reply::Stream(Vec::new(), Status::ok("")),
        _ => Reply::Fail(Error::unauthenticated("no").into()),
    })
    .await;
    let upgrade = || {
        let ask = world.get(SOCKET).h1().header("api-key", "k").header("connection", "upgrade");
        ask.header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let key = [("api-key", "k")];
    assert_eq!(world.get(PATH).header("api-key", "k").send("").await.status, StatusCode::OK);
    assert_eq!(world.grpc(CONNECT, &key, &[b""]).await.grpc_status(), "16");
    assert_eq!(upgrade().send("").await.status, StatusCode::UNAUTHORIZED);
    // That was one of each, and the three that there are. Lies about the address do not help.
    let answer = world.get(PATH).header("api-key", "k").header("x-forwarded-for", "192.0.2.9").send("").await;
    assert!(answer.status == StatusCode::TOO_MANY_REQUESTS && is_after(&answer, 20), "{answer:?}");
    assert_eq!(answer.policies().0, "\"gateway-connect\";q=3;w=60");
    assert_eq!(world.grpc(SUBSCRIBE, &key, &[b""]).await.grpc_status(), "8");
    assert_eq!(world.grpc(CONNECT, &key, &[b""]).await.grpc_status(), "8");
    assert_eq!(upgrade().send("").await.status, StatusCode::TOO_MANY_REQUESTS);
    clock.advance_ms(20_000);
    assert_eq!(world.get(PATH).header("api-key", "k").send("").await.status, StatusCode::OK);
    assert_eq!(upgrade().send("").await.status, StatusCode::TOO_MANY_REQUESTS);
}
