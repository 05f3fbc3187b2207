//! Compression both ways, and the bound of what a compressed request becomes.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use http::StatusCode;
use prost::Message as _;
use proto::project::{Api, CreateRevisionRequest, GetApiRequest, Revision};
use serde_json::json;

use super::{
    client::{Answer, frame},
    harness::{Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const REVISIONS: &str = "/api/v1/apis/a1/revisions";
const LIMIT: usize = 1024 * 1024;

fn deflate(coding: &str, bytes: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        "br" => {
            let mut writer = brotli::CompressorWriter::new(Vec::new(), 4_096, 5, 22);
            writer.write_all(bytes).unwrap();
            writer.into_inner()
        }
        "zstd" => zstd::encode_all(bytes, 1).unwrap(),
        _ => bytes.to_vec(),
    }
}

fn inflate(answer: &Answer) -> Vec<u8> {
    let (body, mut plain) = (&answer.body[..], Vec::new());
    match answer.header("content-encoding") {
        "gzip" => flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap(),
        "br" => brotli::Decompressor::new(body, 4_096).read_to_end(&mut plain).unwrap(),
        "zstd" => zstd::Decoder::new(body).unwrap().read_to_end(&mut plain).unwrap(),
        _ => return body.to_vec(),
    };
    plain
}

fn compressed(coding: &str, message: &[u8]) -> Vec<u8> {
    let message = deflate(coding, message);
    [&[1], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

/// A message of this many bytes.
fn of_size(bytes: usize) -> Vec<u8> {
    let message = |text| GetApiRequest { api_id: "x".repeat(text) }.encode_to_vec();
    // The length of the text takes one to three bytes.
    let head = message(bytes - 4).len() - (bytes - 4);
    let message = message(bytes - head);
    assert_eq!(message.len(), bytes);
    message
}

#[tokio::test]
async fn rest_takes_compressed_bodies_up_to_the_inflated_limit() {
    let world = World::start(|_| ok(&Revision::default())).await;
    let json = |bytes: usize| {
        let text = json!({"description": "x".repeat(bytes - r#"{"description":""}"#.len())}).to_string();
        assert_eq!(text.len(), bytes);
        text
    };
    for coding in ["gzip", "br", "zstd"] {
        let ask = || world.post(REVISIONS).user().header("content-encoding", coding);
        let answer = ask().json(deflate(coding, br#"{"description":"small"}"#)).await;
        assert!(answer.status.is_success(), "{coding} {answer:?}");
        assert_eq!(world.calls().pop().unwrap().decode::<CreateRevisionRequest>().description, "small");
        let before = world.calls().len();
        // The text is larger than the message that it becomes, and both have the bound.
        assert!(ask().json(deflate(coding, json(LIMIT).as_bytes())).await.status.is_success(), "{coding}");
        let answer = ask().json(deflate(coding, json(LIMIT + 1).as_bytes())).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (413, &json!("BODY_TOO_LARGE")));
        let bomb = deflate(coding, &vec![b' '; 100 * LIMIT]);
        assert!(bomb.len() < LIMIT);
        assert_eq!(ask().json(bomb).await.status, StatusCode::PAYLOAD_TOO_LARGE, "{coding}");
        let answer = ask().json("{}").await;
        assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (400, &json!("MALFORMED_BODY")));
        assert_eq!(world.calls().len(), before + 1);
    }
    for coding in ["snappy", "gzip, br"] {
        let answer = world.post(REVISIONS).user().header("content-encoding", coding).json("{}").await;
        assert_eq!((answer.status.as_u16(), answer.header("accept-encoding")), (415, "gzip, br, zstd"));
        assert_eq!(answer.json()["reason"], "UNSUPPORTED_ENCODING");
    }
    let answer = world.post(REVISIONS).user().header("content-encoding", "identity").json("{}").await;
    assert!(answer.status.is_success());
}

#[tokio::test]
async fn connect_takes_compressed_messages_up_to_the_inflated_limit() {
    let world = World::start(|_| ok(&Api::default())).await;
    let proto = || world.post(GET_API).user().header("content-type", "application/proto");
    for coding in ["gzip", "br", "zstd"] {
        let send =
            |message: Vec<u8>| proto().header("content-encoding", coding).send(deflate(coding, &message));
        assert_eq!(send(of_size(LIMIT)).await.status, StatusCode::OK, "{coding}");
        assert_eq!(world.calls().pop().unwrap().message.len(), LIMIT);
        for too_large in [LIMIT + 1, 100 * LIMIT] {
            let answer = send(vec![0; too_large]).await;
            assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (429, &json!("resource_exhausted")));
        }
    }
    let answer = proto().header("content-encoding", "snappy").send("").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (501, &json!("unimplemented")));
    assert!(answer.json()["message"].as_str().unwrap().contains("gzip, br and zstd"));
    assert_eq!(answer.header("accept-encoding"), "gzip, br, zstd");
    // In the query too.
    let message = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        deflate("gzip", br#"{"apiId":"a1"}"#),
    );
    let path = format!("{GET_API}?encoding=json&compression=gzip&base64=1&message={message}");
    assert_eq!(world.get(&path).user().send("").await.status, StatusCode::OK);
    assert_eq!(world.calls().pop().unwrap().decode::<GetApiRequest>().api_id, "a1");
}

#[tokio::test]
async fn grpc_and_grpc_web_take_compressed_messages_up_to_the_inflated_limit() {
    let world = World::start(|_| ok(&Api::default())).await;
    for content_type in ["application/grpc", "application/grpc-web"] {
        let ask = || world.post(GET_API).user().header("content-type", content_type);
        let status = |answer: Answer| {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let of_web = text
                .split("grpc-status:")
                .nth(1)
                .map(|rest| rest.trim().chars().take_while(char::is_ascii_digit).collect::<String>());
            of_web.unwrap_or_else(|| answer.grpc_status().to_owned())
        };
        for coding in ["gzip", "br", "zstd"] {
            let send = |body: Vec<u8>| ask().header("grpc-encoding", coding).send(body);
            assert_eq!(status(send(compressed(coding, &of_size(LIMIT))).await), "0", "{coding}");
            let call = world.calls().pop().unwrap();
            assert_eq!((call.message.len(), call.header("grpc-encoding")), (LIMIT, None));
            // A message may do without.
            assert_eq!(status(send(frame(&of_size(10)).to_vec()).await), "0");
            for too_large in [LIMIT + 1, 100 * LIMIT] {
                assert_eq!(status(send(compressed(coding, &vec![0; too_large])).await), "8", "{coding}");
            }
            assert_eq!(status(send(compressed("none", b"xx")).await), "3", "{coding}");
        }
        let answer = ask().header("grpc-encoding", "snappy").send(compressed("none", b"")).await;
        assert_eq!((answer.grpc_status(), answer.header("grpc-accept-encoding")), ("12", "gzip, br, zstd"));
    }
}

#[tokio::test]
async fn answers_are_compressed_by_weight_and_say_so() {
    let large = || Api { id: "a1".into(), description: "word ".repeat(1_000), ..Api::default() };
    let world = World::start(move |_| ok(&large())).await;
    let connect = |coding: &str| {
        let ask = world.post(GET_API).user().header("content-type", "application/proto");
        ask.header("accept-encoding", coding).send(Bytes::from(of_size(10)))
    };
    for (accept, expected) in [
        ("gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip;q=0.5, zstd;q=0.9, br;q=0.1", "zstd"),
        ("gzip;q=0, identity", ""),
        ("identity;q=0", ""),
        ("snappy", ""),
        ("", ""),
    ] {
        let rest = world.get("/api/v1/apis/a1").user().header("accept-encoding", accept).send("").await;
        let connect = connect(accept).await;
        for answer in [&rest, &connect] {
            assert_eq!((answer.status, answer.header("content-encoding")), (StatusCode::OK, expected));
            let vary = answer
                .headers
                .get_all("vary")
                .iter()
                .any(|v| v.as_bytes().eq_ignore_ascii_case(b"accept-encoding"));
            assert!(vary, "{accept}: caches must know: {answer:?}");
        }
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&inflate(&rest)).unwrap()["id"], "a1");
        assert_eq!(Api::decode(&inflate(&connect)[..]).unwrap(), large());
    }
}

#[tokio::test]
async fn answers_that_bring_credentials_are_not_compressed() {
    let tokens = proto::auth::TokenPair { access_token: "x".repeat(4_000), ..Default::default() };
    let world = World::start(move |_| ok(&tokens)).await;
    for path in ["/api/v1/auth/login", "/tollgate.auth.v1.AuthService/Login"] {
        let answer = world.post(path).header("accept-encoding", "gzip").json(r#"{"email":"e"}"#).await;
        assert_eq!((answer.status, answer.header("content-encoding")), (StatusCode::OK, ""), "{path}");
    }
}

#[tokio::test]
async fn streams_of_connect_compress_each_message() {
    let connected = proto::gateway::Connected { gateway_id: "word ".repeat(1_000), ..Default::default() };
    let message = proto::gateway::PlatformFrame {
        frame: Some(proto::gateway::platform_frame::Frame::Connected(connected)),
    };
    let reply = message.encode_to_vec();
    let world = World::start(move |_| Reply::Stream(vec![reply.clone()], tonic::Status::ok(""))).await;
    for coding in ["gzip", "br", "zstd"] {
        let ask = world.post("/tollgate.gateway.v1.GatewayLink/Subscribe").header("api-key", "k");
        let ask = ask.header("content-type", "application/connect+proto");
        let ask = ask.header("connect-content-encoding", coding).header("connect-accept-encoding", coding);
        let answer = ask.send(compressed(coding, b"")).await;
        assert_eq!((answer.header("connect-content-encoding"), answer.body[0]), (coding, 1), "{answer:?}");
        let length = u32::from_be_bytes(answer.body[1..5].try_into().unwrap()) as usize;
        assert!(length < 1_000);
        let mut alone = Answer { body: answer.body.slice(5..5 + length), ..answer };
        alone.headers.insert("content-encoding", coding.parse().unwrap());
        assert_eq!(proto::gateway::PlatformFrame::decode(&inflate(&alone)[..]).unwrap(), message);
    }
}
