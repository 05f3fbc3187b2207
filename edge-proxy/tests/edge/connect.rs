//! The Connect protocol: unary calls as POST and GET, streams in envelopes, errors as JSON.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use proto::{
    gateway::{GatewayFrame, Heartbeat, PlatformFrame, gateway_frame, platform_frame},
    project::{Api, GetApiRequest},
};
use serde_json::{Value, json};
use service_kit::{Error, Kind};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, metadata::MetadataMap};

use super::{
    client::{Answer, Ask},
    harness::{Options, Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const CREATE_API: &str = "/tollgate.project.v1.ApiService/CreateApi";
const CONNECT: &str = "/tollgate.gateway.v1.GatewayLink/Connect";
const SUBSCRIBE: &str = "/tollgate.gateway.v1.GatewayLink/Subscribe";

fn request() -> Vec<u8> {
    GetApiRequest { api_id: "a1".into() }.encode_to_vec()
}

fn api() -> Api {
    Api { id: "a1".into(), name: "N".into(), ..Api::default() }
}

fn over(ask: Ask<'_>, h1: bool) -> Ask<'_> {
    if h1 { ask.h1() } else { ask }
}

fn envelope(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// The envelopes of a body: flags and messages.
fn envelopes(body: &Bytes) -> Vec<(u8, Bytes)> {
    let (mut rest, mut found) = (body.clone(), Vec::new());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        found.push((rest[0], rest.slice(5..5 + length)));
        rest = rest.slice(5 + length..);
    }
    found
}

/// The JSON that ends a stream.
fn end(answer: &Answer) -> Value {
    assert_eq!((answer.status, answer.complete), (StatusCode::OK, true), "{answer:?}");
    let (flag, end) = envelopes(&answer.body).pop().unwrap();
    assert_eq!(flag, 2, "{answer:?}");
    serde_json::from_slice(&end).unwrap()
}

async fn links(script: impl Fn() -> Reply + Send + Sync + 'static) -> World {
    let options = Options::default().set("limits.gateway_connects_per_minute", 1_000);
    World::with(options, move |_| script()).await
}

#[tokio::test]
async fn a_unary_call_is_a_plain_post_in_both_forms() {
    let world = World::start(|_| {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-after", "2".parse().unwrap());
        metadata.insert_bin("x-after-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255]));
        let done = Status::with_metadata(Code::Ok, "", metadata);
        Reply::Cookies(vec!["a=b"], Box::new(Reply::Stream(vec![api().encode_to_vec()], done)))
    })
    .await;
    for h1 in [true, false] {
        let ask = || over(world.post(GET_API).user(), h1).header("connect-protocol-version", "1");
        let json = ask().header("x-custom", "kept").header("connect-timeout-ms", "2000");
        let json = json.json(r#"{"apiId":"a1"}"#).await;
        assert_eq!((json.status, json.header("content-type")), (StatusCode::OK, "application/json"));
        assert_eq!(json.json()["name"], "N");
        let proto = ask().header("content-type", "application/proto").send(request()).await;
        assert_eq!((proto.status, proto.header("content-type")), (StatusCode::OK, "application/proto"));
        assert_eq!(Api::decode(proto.body.clone()).unwrap(), api());
        for answer in [json, proto] {
            assert_eq!(
                (answer.header("trailer-x-after"), answer.header("trailer-x-after-bin")),
                ("2", "AP8")
            );
            assert!(answer.trailers.is_empty() && !answer.headers.contains_key("grpc-status"));
            assert!(!answer.headers.contains_key("set-cookie"), "cookies are for REST");
            assert!(!answer.header("x-request-id").is_empty());
        }
        let calls = world.calls();
        let [.., json, proto] = &calls[..] else { panic!() };
        assert_eq!((&json.message[..], &proto.message[..]), (&request()[..], &request()[..]));
        assert_eq!((json.header("x-custom"), json.header("connect-protocol-version")), (Some("kept"), None));
        assert_eq!(json.header("content-type"), Some("application/grpc"));
        assert!(json.header("grpc-timeout").unwrap().ends_with('m'));
    }
}

#[tokio::test]
async fn errors_are_json_with_details_whoever_made_them() {
    let world = World::start(|call| match call.decode::<GetApiRequest>().api_id.as_str() {
        "rule" => Reply::Fail(Error::field("name", "is required").into()),
        "state" => Reply::Fail(Error::new(Kind::FailedPrecondition, "API_DEPLOYED", "deployed").into()),
        "range" => Reply::Fail(Status::out_of_range("beyond")),
        "full" => Reply::Fail(
            Error::new(Kind::ResourceExhausted, "BUSY", "later").retry_after(Duration::from_secs(7)).into(),
        ),
        _ => Reply::Abort(vec![1]),
    })
    .await;
    let call = |id: &str| world.post(GET_API).user().json(format!(r#"{{"apiId":"{id}"}}"#));
    let answer = call("rule").await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::BAD_REQUEST, "application/json"));
    let error = answer.json();
    assert_eq!((&error["code"], &error["message"]), (&json!("invalid_argument"), &json!("name is required")));
    let bad = error["details"].as_array().unwrap().iter().find(|d| d["type"] == "google.rpc.BadRequest");
    assert_eq!(bad.unwrap()["debug"]["fieldViolations"][0]["field"], "name");
    assert!(STANDARD_NO_PAD.decode(bad.unwrap()["value"].as_str().unwrap()).is_ok());

    let answer = call("state").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("failed_precondition")));
    let answer = call("range").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("out_of_range")));
    let answer = call("full").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (429, "7"));
    let answer = call("broken").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (503, &json!("unavailable")));

    // Those of the edge look the same.
    let answer = world.post(GET_API).json("{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (401, &json!("unauthenticated")));
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"tollgate\"");
    assert_eq!(answer.json()["details"][0]["debug"]["reason"], "UNAUTHENTICATED");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_before_a_service_sees_it() {
    let world = World::start(|call| panic!("{} must not be reached", call.path)).await;
    for (body, field) in [(r#"{"apiId":5}"#, "apiId"), (r#"{"api":{"nmae":""}}"#, "api.nmae")] {
        let path = if field == "apiId" { GET_API } else { CREATE_API };
        let answer = world.post(path).user().json(body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
        let error = answer.json();
        let bad = error["details"].as_array().unwrap().iter().find(|d| d["type"] == "google.rpc.BadRequest");
        assert_eq!(bad.unwrap()["debug"]["fieldViolations"][0]["field"], field);
    }
    for (body, reason) in [("", "MALFORMED_JSON"), ("{", "MALFORMED_JSON")] {
        let answer = world.post(GET_API).user().json(body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("invalid_argument")));
        assert_eq!(answer.json()["details"][0]["debug"]["reason"], reason);
    }
    let ask = || world.post(GET_API).user();
    for content_type in ["application/xml", "application/connect+json", "application/connect+xml"] {
        let answer = ask().header("content-type", content_type).send("").await;
        let expected = (415, "application/json, application/proto");
        assert_eq!((answer.status.as_u16(), answer.header("accept-post")), expected, "{content_type}");
    }
    let answer = ask().header("connect-protocol-version", "2").json("{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("invalid_argument")));
    let answer = ask().header("connect-timeout-ms", "12345678901").json("{}").await;
    assert_eq!(answer.json()["details"][0]["debug"]["reason"], "INVALID_TIMEOUT");
    let answer = world.post("/tollgate.project.v1.ApiService/Nothing").json("{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (501, &json!("unimplemented")));
    for policy in proto::Contract::get().methods().filter(|method| method.access == proto::Access::Service) {
        for method in [Method::POST, Method::GET] {
            let answer = world.ask(method, &policy.path).user().json("{}").await;
            assert_eq!(answer.status.as_u16(), 501, "{}", policy.path);
        }
    }
    let large = "x".repeat(1024 * 1024 + 1);
    let answer = ask().json(large).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (429, &json!("resource_exhausted")));
}

#[tokio::test]
async fn what_has_no_side_effects_is_a_get_too() {
    // Every call is to arrive.
    let world = World::with(Options::default().set("cache.enabled", false), |_| ok(&api())).await;
    let base64 = URL_SAFE_NO_PAD.encode(r#"{"apiId":"a1"}"#);
    let proto = URL_SAFE_NO_PAD.encode(request());
    for query in [
        "connect=v1&encoding=json&message=%7B%22apiId%22:%22a1%22%7D".to_owned(),
        format!("message={base64}&base64=1&encoding=json&later=x"),
        format!("base64=1&encoding=proto&message={proto}&connect=v1"),
    ] {
        for h1 in [true, false] {
            let answer = over(world.get(&format!("{GET_API}?{query}")).user(), h1).send("").await;
            assert_eq!(answer.status, StatusCode::OK, "{query} {answer:?}");
            assert_eq!(&world.calls().pop().unwrap().message[..], &request()[..], "{query}");
        }
    }
    let answer = world.get(&format!("{GET_API}?encoding=json")).user().send("").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("invalid_argument")));
    // What changes something is not for GET, which anybody may follow; nor is a stream.
    for path in [CREATE_API, SUBSCRIBE] {
        let answer = world.get(&format!("{path}?encoding=json&message={{}}")).user().send("").await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "OPTIONS, POST"), "{path}");
    }
    let answer = world.ask(Method::OPTIONS, GET_API).send("").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (204, "GET, OPTIONS, POST"));
    let answer = world.ask(Method::PUT, GET_API).user().json("{}").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET, OPTIONS, POST"));
}

#[tokio::test]
async fn the_deadline_is_the_edges() {
    let world = World::start(|_| Reply::Hang).await;
    let answer = world.post(GET_API).user().header("connect-timeout-ms", "1000").json("{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (504, &json!("deadline_exceeded")));
    world.given_up(1).await;
}

#[tokio::test]
async fn a_stream_of_answers_ends_with_an_end() {
    let message = |revision| {
        let beat = Heartbeat { revision, ..Heartbeat::default() };
        PlatformFrame { frame: Some(platform_frame::Frame::Heartbeat(beat)) }
    };
    let world = links(move || {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-after", "2".parse().unwrap());
        let status = Status::with_metadata(Code::Aborted, "enough", metadata);
        Reply::Stream(vec![message(1).encode_to_vec(), message(2).encode_to_vec()], status)
    })
    .await;
    for h1 in [true, false] {
        for (form, body) in [("json", &b"{}"[..]), ("proto", b"")] {
            let content_type = format!("application/connect+{form}");
            let ask = over(world.post(SUBSCRIBE), h1).header("api-key", "k");
            let answer = ask.header("content-type", &content_type).send(envelope(0, body)).await;
            assert_eq!(answer.header("content-type"), content_type);
            let end = end(&answer);
            assert_eq!(
                (&end["error"]["code"], &end["error"]["message"]),
                (&json!("aborted"), &json!("enough"))
            );
            assert_eq!(end["metadata"], json!({"x-after": ["2"]}));
            let messages = envelopes(&answer.body);
            assert_eq!(messages.len(), 3);
            match form {
                "json" => assert_eq!(&messages[1].1[..], br#"{"heartbeat":{"revision":"2","stateHash":""}}"#),
                _ => assert_eq!(PlatformFrame::decode(messages[1].1.clone()).unwrap(), message(2)),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_refused_is_an_end_too() {
    let world = links(|| Reply::Fail(Error::unauthenticated("no such token").into())).await;
    let ask = |path: &str| world.post(path).header("content-type", "application/connect+json");
    let refused = ask(SUBSCRIBE).header("api-key", "bad").send(envelope(0, b"{}")).await;
    assert_eq!(end(&refused)["error"]["message"], "no such token");
    // By the edge: no token, no message, two messages, none that can be read.
    let answer = ask(SUBSCRIBE).send(envelope(0, b"{}")).await;
    assert_eq!(end(&answer)["error"]["code"], "unauthenticated");
    for (body, code) in [
        (Vec::new(), "unimplemented"),
        ([envelope(0, b"{}"), envelope(0, b"{}")].concat(), "unimplemented"),
        (envelope(0, b"{"), "invalid_argument"),
        (envelope(0, b"{\"x\":1}"), "invalid_argument"),
        (envelope(1, b"{}"), "invalid_argument"),
        (envelope(2, b"{}"), "invalid_argument"),
        (b"\0\0\0\0\x09{}".to_vec(), "invalid_argument"),
        (b"\0\xff\xff\xff\xff{}".to_vec(), "resource_exhausted"),
    ] {
        let answer = ask(SUBSCRIBE).header("api-key", "k").send(body.clone()).await;
        assert_eq!(end(&answer)["error"]["code"], code, "{body:?}");
    }
    let answer = ask("/tollgate.gateway.v1.GatewayLink/Nothing").send("").await;
    assert_eq!(end(&answer)["error"]["code"], "unimplemented");
    // Only the content type is a matter of HTTP.
    let answer = world.post(SUBSCRIBE).json("{}").await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let answer = ask(CONNECT).h1().header("api-key", "k").send("").await;
    assert_eq!(end(&answer)["error"]["code"], "unimplemented", "both directions need HTTP/2");
}

/// The next whole envelope of an answer that is still under way.
async fn next(response: &mut http::Response<hyper::body::Incoming>) -> (u8, Bytes) {
    let data = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    envelopes(&data).remove(0)
}

#[tokio::test]
async fn both_directions_flow_as_they_come() {
    // What is echoed is a message of both sides: field 3 is the heartbeat in each.
    let beat = |revision| {
        let beat = Heartbeat { revision, ..Heartbeat::default() };
        GatewayFrame { frame: Some(gateway_frame::Frame::Heartbeat(beat)) }.encode_to_vec()
    };
    let world = links(|| Reply::Echo).await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    let frames = tokio_stream::StreamExt::map(UnboundedReceiverStream::new(receiver), |data| {
        Ok::<_, hyper::Error>(http_body::Frame::data(Bytes::from(data)))
    });
    sender.send(envelope(0, &beat(1))).unwrap();
    let ask = world.post(CONNECT).header("content-type", "application/connect+proto").header("api-key", "k");
    let mut response = ask.open(StreamBody::new(frames).boxed_unsync()).await;
    assert_eq!(response.status(), StatusCode::OK);
    for revision in 1..4 {
        assert_eq!(next(&mut response).await, (0, beat(revision).into()));
        sender.send(envelope(0, &beat(revision + 1))).unwrap();
    }
    assert_eq!(next(&mut response).await, (0, beat(4).into()));
    // What cannot be read in the middle ends the call, and says why.
    sender.send(envelope(1, b"x")).unwrap();
    let (flag, end) = next(&mut response).await;
    let end: Value = serde_json::from_slice(&end).unwrap();
    assert_eq!((flag, &end["error"]["code"]), (2, &json!("invalid_argument")), "{end}");
}

#[tokio::test]
async fn a_drain_ends_streams_with_an_end() {
    let world = links(|| Reply::Stall(Vec::new())).await;
    let ask =
        world.post(SUBSCRIBE).header("content-type", "application/connect+proto").header("api-key", "k");
    let body = http_body_util::Full::new(Bytes::from(envelope(0, b""))).map_err(|never| match never {});
    let response = ask.open(body.boxed_unsync()).await;
    let (answer, ()) = tokio::join!(super::client::read(response), world.edge.shutdown());
    assert_eq!(end(&answer)["error"]["code"], "unavailable");
}

#[tokio::test]
async fn the_limit_is_exact() {
    let world = World::start(|_| ok(&api())).await;
    let fits = GetApiRequest { api_id: "x".repeat(1024 * 1024 - 4) }.encode_to_vec();
    let over = vec![b'x'; fits.len() + 1];
    let ask = || world.post(GET_API).user().header("content-type", "application/proto");
    assert_eq!(ask().send(fits).await.status, StatusCode::OK);
    assert_eq!(ask().send(over).await.status.as_u16(), 429);
}
