//! The floor: what the same calls cost in bare hyper, without any layer. No token is verified, nothing is counted,
//! bounded, logged or tried again; one connection goes to the service.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prost::Message as _;
use proto::project::Organization;
use rustls::pki_types::ServerName;
use service_kit::tls::DevCa;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    PROXY_CORE, ROLE,
    case::{Case, Kind, Proxy},
    free_ports,
    process::Process,
    tollgate::Tollgate,
    wire,
};

type Body = UnsyncBoxBody<Bytes, hyper::Error>;
type Upstream = SendRequest<Body>;

const NAME: &str = "bare hyper";

/// This program once more, as a proxy.
pub(crate) async fn start(setup: &Tollgate) -> Proxy {
    let [tls, plain, bare] = free_ports::<3>();
    let environment = [
        (ROLE, "floor"),
        ("CA", &setup.ca),
        ("BACKEND", &setup.backend_tls),
        ("BARE_BACKEND", &setup.backend_plain),
        ("TLS", &tls),
        ("PLAIN", &plain),
        ("BARE", &bare),
    ];
    let me = std::env::current_exe().unwrap();
    let process = Process::start(NAME, PROXY_CORE, setup.folder(), &me, &[""; 0], &environment);
    let process = process.listens(&bare, setup.folder()).await;
    let mut cases = Vec::new();
    for kind in [Kind::Rest, Kind::Grpc] {
        cases.push(Case::new(NAME, kind, false, &plain));
        cases.push(Case::new(NAME, kind, true, &tls));
        cases.push(Case::new(NAME, kind, false, &bare).noted(", plain behind"));
    }
    Proxy { name: NAME, process, cases }
}

/// Serves on the three addresses in the environment until it is killed.
pub(crate) async fn run() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let ca = DevCa::load_or_create(Path::new(&variable("CA"))).unwrap();
    let connector = TlsConnector::from(ca.identity("edge-proxy").unwrap().client("project-service").unwrap());
    let public = ca.public().unwrap();
    let mut server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(public.chain, public.key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(server));

    let socket = TcpStream::connect(variable("BACKEND")).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let over_tls = dial(connector.connect(name, socket).await.unwrap()).await;
    let socket = TcpStream::connect(variable("BARE_BACKEND")).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let bare = dial(socket).await;

    let tls_door = TcpListener::bind(variable("TLS")).await.unwrap();
    let plain_door = TcpListener::bind(variable("PLAIN")).await.unwrap();
    let bare_door = TcpListener::bind(variable("BARE")).await.unwrap();
    loop {
        tokio::select! {
            accepted = tls_door.accept() => {
                let (socket, acceptor, upstream) = (accepted.unwrap().0, acceptor.clone(), over_tls.clone());
                let _ = socket.set_nodelay(true);
                tokio::spawn(async move {
                    if let Ok(socket) = acceptor.accept(socket).await {
                        serve(socket, upstream).await;
                    }
                });
            }
            accepted = plain_door.accept() => {
                let socket = accepted.unwrap().0;
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(socket, over_tls.clone()));
            }
            accepted = bare_door.accept() => {
                let socket = accepted.unwrap().0;
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(socket, bare.clone()));
            }
        }
    }
}

async fn dial(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Upstream {
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, upstream: Upstream) {
    let service = service_fn(move |request| forward(upstream.clone(), request));
    // An error is a peer that went away.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}

async fn forward(mut upstream: Upstream, request: Request<Incoming>) -> hyper::Result<Response<Body>> {
    if request.method() == Method::POST {
        let (mut parts, body) = request.into_parts();
        parts.version = http::Version::HTTP_2;
        return Ok(upstream
            .send_request(Request::from_parts(parts, body.boxed_unsync()))
            .await?
            .map(|body| body.boxed_unsync()));
    }
    let id = request.uri().path().rsplit('/').next().unwrap_or_default();
    let mut call = Request::new(full(wire::request(id)));
    *call.method_mut() = Method::POST;
    *call.uri_mut() =
        Uri::builder().scheme("http").authority("localhost").path_and_query(wire::METHOD).build().unwrap();
    let headers = call.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    if let Some(token) = request.headers().get("authorization") {
        headers.insert("authorization", token.clone());
    }
    let answer = upstream.send_request(call).await?.into_body().collect().await?.to_bytes();
    let organization = Organization::decode(answer.slice(5..)).unwrap();
    let mut response = Response::new(full(serde_json::to_vec(&organization).unwrap().into()));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    Ok(response)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
