//! The service behind all proxies: stands in for project-service, answers everything with one organization, and costs
//! nearly nothing. Over mutual TLS, as services of Tollgate are; and without, for the floor.

use std::{convert::Infallible, path::Path};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use service_kit::tls::DevCa;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::wire;

/// Serves on the two addresses in the environment until it is killed.
pub(crate) async fn run() {
    let folder = std::env::var("CA").unwrap();
    let identity = DevCa::load_or_create(Path::new(&folder)).unwrap().identity("project-service").unwrap();
    let acceptor = TlsAcceptor::from(identity.server);
    let over_tls = TcpListener::bind(std::env::var("OVER_TLS").unwrap()).await.unwrap();
    let plain = TcpListener::bind(std::env::var("PLAIN").unwrap()).await.unwrap();
    loop {
        tokio::select! {
            accepted = over_tls.accept() => {
                let (socket, acceptor) = (accepted.unwrap().0, acceptor.clone());
                let _ = socket.set_nodelay(true);
                tokio::spawn(async move {
                    if let Ok(socket) = acceptor.accept(socket).await {
                        serve(socket).await;
                    }
                });
            }
            accepted = plain.accept() => {
                let socket = accepted.unwrap().0;
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(socket));
            }
        }
    }
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    // An error is a peer that went away.
    let _ = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(1_024)
        .serve_connection(TokioIo::new(socket), service_fn(answer))
        .await;
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let body = if request.uri().path().ends_with("/Check") {
        Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]) // grpc.health.v1: SERVING
    } else {
        wire::answer()
    };
    let _ = request.into_body().collect().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut response = Response::new(Full::new(body).with_trailers(async { Some(Ok(trailers)) }));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
