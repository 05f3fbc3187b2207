use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode};
use prost::Message as _;
use proto::{auth::TokenPair, project::Api};
use service_kit::Error;

use super::{
    client::{Answer, frame, split_web},
    harness::{Options, Reply, World, ok},
};

const LOGIN: &str = "/tollgate.auth.v1.AuthService/Login";
const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const CONNECT: &str = "/tollgate.gateway.v1.GatewayLink/Connect";

fn text(answer: &Answer) -> Bytes {
    // Each flush may be padded by itself.
    let body = answer.body.chunks(4).flat_map(|chunk| STANDARD.decode(chunk).unwrap());
    body.collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn binary_and_text_over_both_versions_of_http() {
    let world = World::start(|_| ok(&TokenPair { access_token: "a".into(), ..TokenPair::default() })).await;
    for h1 in [false, true] {
        for kind in ["application/grpc-web+proto", "application/grpc-web", "application/grpc-web-text"] {
            let is_text = kind.ends_with("text");
            let ask = world.post(LOGIN).header("content-type", kind).header("accept", kind);
            let ask = ask.header("x-grpc-web", "1").header("authorization", "Bearer x");
            let ask = if h1 { ask.h1() } else { ask };
            let body =
                if is_text { STANDARD.encode(frame(b"\x0a\x01e")).into() } else { frame(b"\x0a\x01e") };
            let answer = ask.send(body).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            assert!(answer.header("content-type").starts_with(kind.trim_end_matches("+proto")), "{answer:?}");
            let (messages, trailers) = split_web(if is_text { text(&answer) } else { answer.body.clone() });
            assert_eq!(TokenPair::decode(messages[0].clone()).unwrap().access_token, "a");
            assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
            let call = world.calls().pop().unwrap();
            assert_eq!((&call.message[..], call.header("authorization")), (&b"\x0a\x01e"[..], None));
        }
    }
}

#[tokio::test]
async fn errors_of_service_and_edge_come_with_details() {
    let world = World::start(|_| Reply::Fail(Error::field("name", "is required").into())).await;
    let ask = || world.post(GET_API).header("content-type", "application/grpc-web+proto");
    let bearer = world.bearer();
    let answer = ask().header("authorization", &bearer).send(frame(b"")).await;
    assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "3"), "{answer:?}");
    assert!(!answer.header("grpc-status-details-bin").is_empty());
    let answer = ask().send(frame(b"")).await;
    assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "16"), "{answer:?}");
    assert!(answer.header("content-type").starts_with("application/grpc-web"), "{answer:?}");
    let answer = world.get(GET_API).header("content-type", "application/grpc-web").send("").await;
    assert_eq!(answer.grpc_status(), "12");
}

#[tokio::test]
async fn streams_of_the_service_come_through() {
    let messages = vec![b"a".to_vec(), b"b".to_vec()];
    let world =
        World::start(move |_| Reply::Stream(messages.clone(), tonic::Status::aborted("enough"))).await;
    let ask = world.post(CONNECT).header("content-type", "application/grpc-web").header("api-key", "k");
    let answer = ask.h1().send(frame(b"")).await;
    let (messages, trailers) = split_web(answer.body);
    assert_eq!(messages, [&b"a"[..], b"b"]);
    assert!(trailers.contains("grpc-status:10"), "{trailers:?}");
}

#[tokio::test]
async fn garbage_does_not_hurt() {
    let world = World::start(|_| ok(&Api::default())).await;
    let ask = world.post(LOGIN).header("content-type", "application/grpc-web-text");
    let answer = ask.send("!!! no base64 !!!").await;
    // Not UNAVAILABLE: that would have been worth another try.
    assert_eq!(answer.grpc_status(), "3", "{answer:?}");
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn text_may_be_padded_at_each_flush() {
    let options = Options::default().set("limits.credential_per_minute", 1_000);
    let world =
        World::with(options, |_| ok(&TokenPair { access_token: "a".into(), ..TokenPair::default() })).await;
    let message = frame(b"\x0a\x04e@me");
    for h1 in [false, true] {
        // Every way to cut it in two, each half padded for itself.
        for cut in 0..=message.len() {
            let body = [STANDARD.encode(&message[..cut]), STANDARD.encode(&message[cut..])].concat();
            let ask = world.post(LOGIN).header("content-type", "application/grpc-web-text");
            let ask = ask.header("accept", "application/grpc-web-text");
            let answer = if h1 { ask.h1() } else { ask }.send(body).await;
            let (messages, trailers) = split_web(text(&answer));
            assert_eq!((messages.len(), trailers.contains("grpc-status:0")), (1, true), "{cut}: {trailers}");
            assert_eq!(&world.calls().pop().unwrap().message[..], b"\x0a\x04e@me", "{cut}");
        }
    }
}

#[tokio::test]
async fn accept_chooses_the_form_of_the_answer() {
    let options = Options::default().set("limits.credential_per_minute", 1_000);
    let world =
        World::with(options, |_| ok(&TokenPair { access_token: "a".into(), ..TokenPair::default() })).await;
    for (content_type, accept, is_text) in [
        ("application/grpc-web", "application/grpc-web-text", true),
        ("application/grpc-web-text", "application/grpc-web", false),
        ("application/grpc-web+proto", "application/grpc-web-text+proto", true),
        ("application/grpc-web-text+proto; charset=utf-8", "application/grpc-web+proto", false),
        ("application/grpc-web;charset=utf-8", "application/grpc-web", false),
    ] {
        for h1 in [false, true] {
            let body = match content_type.contains("text") {
                true => STANDARD.encode(frame(b"")).into(),
                false => frame(b""),
            };
            let ask = world.post(LOGIN).header("content-type", content_type).header("accept", accept);
            let answer = if h1 { ask.h1() } else { ask }.send(body).await;
            let expected =
                if is_text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (StatusCode::OK, expected),
                "{answer:?}"
            );
            let (messages, trailers) = split_web(if is_text { text(&answer) } else { answer.body });
            assert_eq!(TokenPair::decode(messages[0].clone()).unwrap().access_token, "a");
            // Names in small letters, and nothing after the last of them.
            assert!(trailers.contains("grpc-status:0\r\n") && !trailers.contains("\r\n\r\n"), "{trailers:?}");
            assert!(trailers.lines().all(
                |line| line.split(':').next().unwrap().to_lowercase() == line.split(':').next().unwrap()
            ));
        }
    }
    for content_type in ["application/grpc-web+json", "application/grpc-webby"] {
        for h1 in [false, true] {
            let ask = world.post(LOGIN).header("content-type", content_type);
            let answer = if h1 { ask.h1() } else { ask }.send(frame(b"")).await;
            assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "3"), "{answer:?}");
        }
    }
    let answer =
        world.ask(Method::OPTIONS, LOGIN).header("content-type", "application/grpc-web").send("").await;
    assert_eq!(answer.grpc_status(), "12", "{answer:?}");
}
