//! Plain HTTP clients over TLS: HTTP/1.1, HTTP/2, and raw bytes for what no client would send.

use std::{fs::File, io::BufReader, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::harness::World;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
    /// Whether the stream ended as it should.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `grpc-status` of the trailers, or of the headers when there are no trailers.
    pub(crate) fn grpc_status(&self) -> &str {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        status.map_or("", |value| value.to_str().unwrap())
    }

    /// `RateLimit-Policy` without its partition keys, and these.
    pub(crate) fn policies(&self) -> (String, Vec<String>) {
        let items = self.header("ratelimit-policy").split(", ").map(|item| {
            let (policy, key) = item.split_once(";pk=:").unwrap_or_else(|| panic!("no key: {self:?}"));
            (policy, key.strip_suffix(':').unwrap().to_owned())
        });
        let (policies, keys): (Vec<&str>, Vec<String>) = items.unzip();
        (policies.join(", "), keys)
    }

    /// The messages of a gRPC body.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        let mut rest = self.body.clone();
        let mut messages = Vec::new();
        while rest.len() >= 5 {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            messages.push(rest.slice(5..5 + length));
            rest = rest.slice(5 + length..);
        }
        messages
    }
}

/// A message in its gRPC frame.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// Message frames and the trailer frame of a gRPC-Web body.
pub(crate) fn split_web(body: Bytes) -> (Vec<Bytes>, String) {
    let (mut rest, mut messages, mut trailers) = (body, Vec::new(), String::new());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let piece = rest.slice(5..5 + length);
        assert!(trailers.is_empty(), "the trailer frame is the last");
        match rest[0] {
            0 => messages.push(piece),
            0x80 => trailers = String::from_utf8(piece.to_vec()).unwrap(),
            flag => panic!("flag {flag}"),
        }
        rest = rest.slice(5 + length..);
    }
    (messages, trailers)
}

/// The edge's TLS, with this protocol asked for.
pub(crate) async fn tls(world: &World, alpn: &[&str]) -> TlsStream<TcpStream> {
    tls_after(world, alpn, b"").await.unwrap()
}

/// The same after these bytes.
pub(crate) async fn tls_after(
    world: &World,
    alpn: &[&str],
    before: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut socket = TcpStream::connect(world.edge.addr).await?;
    socket.write_all(before).await?;
    tls_over(world, alpn, socket).await
}

/// The same over a connection that stands.
pub(crate) async fn tls_over(
    world: &World,
    alpn: &[&str],
    socket: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_reader_iter(BufReader::new(File::open(&world.ca_file).unwrap())) {
        roots.add(cert.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    // Boxed: the state of a handshake is large.
    Box::pin(TlsConnector::from(Arc::new(config)).connect(name, socket)).await
}

/// A request in the making.
pub(crate) struct Ask<'w> {
    world: &'w World,
    request: http::request::Builder,
    version: Version,
}

impl World {
    pub(crate) fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        let uri = format!("https://localhost{path}");
        Ask { world: self, request: Request::builder().method(method).uri(uri), version: Version::HTTP_2 }
    }

    pub(crate) fn get(&self, path: &str) -> Ask<'_> {
        self.ask(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> Ask<'_> {
        self.ask(Method::POST, path)
    }

    /// A unary or streaming gRPC call with these messages.
    pub(crate) async fn grpc(&self, path: &str, headers: &[(&str, &str)], messages: &[&[u8]]) -> Answer {
        let body: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        let ask = self.post(path).header("content-type", "application/grpc").header("te", "trailers");
        headers.iter().fold(ask, |ask, (name, value)| ask.header(name, value)).send(body).await
    }
}

impl Ask<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Over HTTP/1.1.
    pub(crate) fn h1(mut self) -> Self {
        self.version = Version::HTTP_11;
        self
    }

    /// With a good token.
    pub(crate) fn user(self) -> Self {
        let bearer = self.world.bearer();
        self.header("authorization", &bearer)
    }

    pub(crate) async fn json(self, body: impl Into<Bytes>) -> Answer {
        self.header("content-type", "application/json").send(body).await
    }

    pub(crate) async fn send(self, body: impl Into<Bytes>) -> Answer {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        self.stream(body).await
    }

    /// With a body of one's own.
    pub(crate) async fn stream(self, body: Body) -> Answer {
        let asking = async { read(self.open(body).await).await };
        tokio::time::timeout(Duration::from_secs(20), Box::pin(asking)).await.expect("an answer in time")
    }

    /// The answer as it comes.
    pub(crate) async fn open(self, body: Body) -> Response<hyper::body::Incoming> {
        let request = self.request.version(self.version).body(body).unwrap();
        if self.version == Version::HTTP_2 {
            let io = TokioIo::new(tls(self.world, &["h2"]).await);
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            return sender.send_request(request).await.unwrap();
        }
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(tls(self.world, &["http/1.1"]).await)).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = request.into_parts();
        parts.headers.insert("host", "localhost".parse().unwrap());
        parts.uri = parts.uri.path_and_query().unwrap().as_str().parse().unwrap();
        sender.send_request(Request::from_parts(parts, body)).await.unwrap()
    }
}

/// Reads an answer to its end, or to where it breaks.
pub(crate) async fn read(response: Response<hyper::body::Incoming>) -> Answer {
    let (parts, mut incoming) = response.into_parts();
    let (mut body, mut trailers, mut complete) = (BytesMut::new(), HeaderMap::new(), true);
    while let Some(frame) = incoming.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => body.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap(),
            Err(_) => {
                complete = false;
                break;
            }
        }
    }
    Answer { status: parts.status, headers: parts.headers, body: body.freeze(), trailers, complete }
}

/// Sends bytes over TLS with HTTP/1.1 and returns what comes back until the edge closes, as text.
pub(crate) async fn raw(world: &World, request: &[u8]) -> String {
    let mut stream = tls(world, &["http/1.1"]).await;
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    // A close without a goodbye is an end too.
    let _ = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the edge closes");
    String::from_utf8_lossy(&answer).into_owned()
}
