use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::rescued;
use crate::{
    layers::Response,
    rescue::{Asked, Refusal},
};

/// What a client gets from a stack that panics.
async fn panicking(content_type: &'static str) -> (StatusCode, http::HeaderMap, String) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = hyper::service::service_fn(|request: http::Request<Incoming>| async move {
        let asked = Asked::of(&request);
        let panicking = async move {
            assert!(request.uri().path().is_empty(), "the canary of a panic");
            Ok::<Response, Refusal>(Response::default())
        };
        Ok::<_, std::convert::Infallible>(rescued(&asked, panicking).await)
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::spawn(server.serve_connection(TokioIo::new(far), service));
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://localhost/a").header("content-type", content_type);
    let answer = client.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (parts.status, parts.headers, text)
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing() {
    let (status, headers, text) = panicking("application/json").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(headers["content-type"], "application/problem+json");
    assert!(text.contains("\"code\":\"INTERNAL\"") && !text.contains("canary"), "{text}");
    let (status, headers, text) = panicking("application/grpc").await;
    assert_eq!(
        (status, &headers["grpc-status"], text.as_str()),
        (StatusCode::OK, &"13".parse().unwrap(), "")
    );
    assert!(!format!("{headers:?}").contains("canary"));
}
