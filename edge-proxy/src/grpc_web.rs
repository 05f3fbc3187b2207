//! gRPC-Web (binary and text) in front of the gRPC pass-through; tonic-web translates the framing.

use std::{convert::Infallible, sync::Arc};

use http::{Method, StatusCode};
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
    let inner = service_fn(move |request: http::Request<Body>| {
        let edge = edge.clone();
        let asked = Asked { protocol: Protocol::Grpc, uri: request.uri().clone() };
        async move {
            // Errors must be replies before tonic-web frames them.
            let answer = crate::grpc::serve(&edge, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| reply(&asked, refusal)))
        }
    });
    let answer = GrpcWebLayer::new().layer(inner).oneshot(request.map(Body::new)).await;
    Ok(answer.unwrap_or_else(|never| match never {}))
}
