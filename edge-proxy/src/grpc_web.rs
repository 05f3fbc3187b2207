//! gRPC-Web (binary and text) in front of the gRPC pass-through; tonic-web translates the framing.

mod text;

use std::{convert::Infallible, sync::Arc};

use http::{HeaderValue, Method, StatusCode, header};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::{
    Body, Edge,
    layers::{Request, Response},
    rescue::{Asked, Refusal, reply},
    routes::Protocol,
};

/// Answers a call.
pub(crate) async fn serve(edge: Arc<Edge>, request: Request) -> Result<Response, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "gRPC-Web is POST"));
    }
    let (mut parts, body) = request.into_parts();
    let is_text = is_text(parts.headers.get(header::CONTENT_TYPE))?;
    // tonic-web takes only padding at the very end, and types without parameters. The answer follows `Accept`.
    parts
        .headers
        .insert(header::CONTENT_TYPE, const { HeaderValue::from_static("application/grpc-web+proto") });
    let body = if is_text { Body::new(text::Decoded::new(Body::new(body))) } else { Body::new(body) };
    let request = http::Request::from_parts(parts, body);
    let inner = service_fn(move |request: http::Request<Body>| {
        let edge = edge.clone();
        let asked = Asked { protocol: Protocol::Grpc, uri: request.uri().clone() };
        async move {
            // Errors must be replies before tonic-web frames them.
            let answer = crate::grpc::serve(&edge, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| reply(&asked, refusal)))
        }
    });
    let answer = GrpcWebLayer::new().layer(inner).oneshot(request).await;
    Ok(answer.unwrap_or_else(|never| match never {}))
}

/// Whether messages come as base64; fails when they are no protobuf.
fn is_text(content_type: Option<&HeaderValue>) -> Result<bool, Refusal> {
    let text = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "application/grpc-web" | "application/grpc-web+proto" => Ok(false),
        "application/grpc-web-text" | "application/grpc-web-text+proto" => Ok(true),
        _ => Err(Refusal::http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "messages are `application/grpc-web+proto` or `application/grpc-web-text+proto`",
        )),
    }
}
