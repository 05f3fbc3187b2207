//! A whole edge with three fake services behind it, under the kit's own server and mutual TLS.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, header::SET_COOKIE};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use prost::Message;
use proto::Contract;
use serde_json::Value;
use service_kit::{
    Clock,
    admin::Readiness,
    config::{Layers, Source},
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::DevCa,
    token::Verifier,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tonic::{Status, service::Routes};
use tower::ServiceExt as _;

/// A call as a service saw it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// The request message; empty for streams of requests.
    pub(crate) message: Bytes,
}

impl Call {
    pub(crate) fn decode<T: Message + Default>(&self) -> T {
        T::decode(self.message.clone()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What a service does.
pub(crate) enum Reply {
    /// One message and status OK.
    Message(Vec<u8>),
    /// These messages, then this status.
    Stream(Vec<Vec<u8>>, Status),
    /// This status and nothing else.
    Fail(Status),
    /// Never answers.
    Hang,
    /// Begins an answer and never ends it.
    Stall(Vec<u8>),
    /// Sends the same message again and again.
    Endless(Vec<u8>),
    /// Begins an answer and breaks the stream.
    Abort(Vec<u8>),
    /// Sends back each frame of the request as it comes.
    Echo,
    /// Another reply once there is a permit.
    After(Arc<Semaphore>, Box<Reply>),
    /// Another reply with these cookies in its metadata.
    Cookies(Vec<&'static str>, Box<Reply>),
    /// Another reply that was given before.
    Replayed(Box<Reply>),
}

/// The services that a signer is.
const SIGNERS: [&str; 2] = ["/tollgate.auth.v1.KeyService/", "/tollgate.auth.v1.IdentityService/"];

/// An answer with one message.
pub(crate) fn ok(message: &impl Message) -> Reply {
    Reply::Message(message.encode_to_vec())
}

type Script = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// What the services did so far.
#[derive(Default)]
pub(crate) struct Seen {
    calls: Mutex<Vec<Call>>,
    /// Exchanges of opaque tokens.
    exchanges: Mutex<Vec<Call>>,
    /// Calls that were given up by the edge before they were answered.
    given_up: AtomicUsize,
}

/// The edge with what is behind it.
pub(crate) struct World {
    pub(crate) edge: Running,
    pub(crate) signer: Signer,
    pub(crate) seen: Arc<Seen>,
    pub(crate) ca_file: PathBuf,
    services: Vec<(&'static str, Running)>,
    script: Script,
    folder: TempDir,
    /// What settings are changed to while the edge runs.
    over: Arc<Mutex<Vec<(String, String)>>>,
    layers: Layers,
}

/// How a world is made.
pub(crate) struct Options {
    /// Settings of the edge over the defaults.
    pub(crate) set: Vec<(&'static str, String)>,
    /// gateway-service, in place of the scripted one.
    pub(crate) gateway: Option<Routes>,
    /// Which services run.
    pub(crate) services: Vec<&'static str>,
    /// The edge's time.
    pub(crate) clock: Clock,
    /// A folder with the CA of all; one of its own if there is none.
    pub(crate) ca_folder: Option<PathBuf>,
    /// Whether others may listen on its port.
    pub(crate) reuse_port: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            set: Vec::new(),
            gateway: None,
            services: vec!["auth-service", "project-service", "gateway-service"],
            clock: Clock::system(),
            ca_folder: None,
            reuse_port: false,
        }
    }
}

impl Options {
    pub(crate) fn set(mut self, key: &'static str, value: impl ToString) -> Self {
        self.set.push((key, value.to_string()));
        self
    }
}

impl World {
    /// A world whose services follow a script. What verifiers ask, and exchanges, a signer answers.
    pub(crate) async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(Options::default(), script).await
    }

    pub(crate) async fn with(
        mut options: Options,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca_folder = options.ca_folder.take().unwrap_or_else(|| folder.path().to_owned());
        let ca = DevCa::load_or_create(&ca_folder).unwrap();
        let signer = Signer::new();
        let seen = Arc::new(Seen::default());
        let script: Script = Arc::new(script);
        let mut layers = Layers::new(edge_proxy::DEFAULTS, None, "NOTHING__")
            .unwrap()
            .set("tls.dev_ca_dir", &quoted(ca_folder.display()));
        let mut services = Vec::new();
        for (key, name) in
            [("auth", "auth-service"), ("project", "project-service"), ("gateway", "gateway-service")]
        {
            let mut address = "127.0.0.1:1".to_owned();
            if options.services.contains(&name) {
                let own = options.gateway.take_if(|_| name == "gateway-service");
                let tasks = Tasks::new();
                let routes = own.unwrap_or_else(|| scripted(&script, &signer, &seen, &tasks));
                let running = serve(&ca, name, routes, &signer, tasks, "127.0.0.1:0").await;
                address = running.addr.to_string();
                services.push((name, running));
            }
            layers = layers.set(&format!("upstreams.{key}.address"), &quoted(address));
        }
        for (key, value) in &options.set {
            layers = layers.set(key, value);
        }
        let listeners = Listeners::bind_as("127.0.0.1:0", "127.0.0.1:0", options.reuse_port).await.unwrap();
        let over = Arc::new(Mutex::new(Vec::<(String, String)>::new()));
        let source = {
            let (layers, over) = (layers.clone(), over.clone());
            Source::new(move || {
                let over = over.lock().unwrap();
                Ok(over.iter().fold(layers.clone(), |layers, (key, value)| layers.set(key, value)))
            })
        };
        let edge = edge_proxy::start_at(source, listeners, options.clock).await.unwrap();
        Self {
            edge,
            signer,
            seen,
            ca_file: ca.cert_file().to_owned(),
            services,
            script,
            folder,
            over,
            layers,
        }
    }

    /// What an edge says that is not to start with these settings.
    pub(crate) async fn try_with(options: Options) -> anyhow::Result<()> {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let layers = Layers::new(edge_proxy::DEFAULTS, None, "NOTHING__")?
            .set("tls.dev_ca_dir", &quoted(folder.path().display()));
        let layers = options.set.iter().fold(layers, |layers, (key, value)| layers.set(key, value));
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await?;
        let source = Source::new(move || Ok(layers.clone()));
        edge_proxy::start_at(source, listeners, options.clock).await.map(drop)
    }

    /// Changes settings of the running edge; the next reload finds them.
    pub(crate) fn change(&self, settings: &[(&str, &str)]) {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        *self.over.lock().unwrap() = settings.collect();
    }

    /// Another edge in front of the same services, with the settings of this one, on its port.
    pub(crate) async fn successor(&self) -> Running {
        let (layers, address) = (self.layers.clone(), self.edge.addr.to_string());
        let listeners = Listeners::bind_as(&address, "127.0.0.1:0", true).await.unwrap();
        edge_proxy::start(Source::new(move || Ok(layers.clone())), listeners).await.unwrap()
    }

    /// What the admin port answers.
    pub(crate) async fn admin(&self, method: &str, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(self.edge.admin_addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A good access token of the user `u`.
    pub(crate) fn token(&self) -> String {
        self.token_with(|_| ())
    }

    /// An access token with other claims.
    pub(crate) fn token_with(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = Signer::claims("u", "*");
        change(&mut claims);
        self.signer.sign(&Signer::header(), &claims)
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token())
    }

    /// The calls so far, without those that a signer answers.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.seen.calls.lock().unwrap().clone()
    }

    /// The exchanges of opaque tokens so far.
    pub(crate) fn exchanges(&self) -> Vec<Call> {
        self.seen.exchanges.lock().unwrap().clone()
    }

    /// The only call so far.
    pub(crate) fn call(&self) -> Call {
        let mut calls = self.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls.remove(0)
    }

    /// Waits until the services saw this many calls given up.
    pub(crate) async fn given_up(&self, count: usize) {
        let enough = async {
            while self.seen.given_up.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), enough).await.expect("the call is cancelled upstream");
    }

    /// Ends the services, and leaves the edge.
    pub(crate) async fn stop_services(&mut self) {
        for (_, service) in self.services.drain(..) {
            service.shutdown().await;
        }
    }

    /// Ends auth-service; returns where it was.
    pub(crate) async fn stop_auth(&mut self) -> SocketAddr {
        self.stop_service("auth-service").await
    }

    /// Ends a service; returns where it was.
    pub(crate) async fn stop_service(&mut self, service: &str) -> SocketAddr {
        let at = self.services.iter().position(|(name, _)| *name == service).unwrap();
        let (_, service) = self.services.remove(at);
        let address = service.addr;
        service.shutdown().await;
        address
    }

    /// Starts auth-service again where it was.
    pub(crate) async fn start_auth(&mut self, address: SocketAddr) {
        let ca = DevCa::load_or_create(self.folder.path()).unwrap();
        let tasks = Tasks::new();
        let routes = scripted(&self.script, &self.signer, &self.seen, &tasks);
        let address = address.to_string();
        let running = serve(&ca, "auth-service", routes, &self.signer, tasks, &address).await;
        self.services.push(("auth-service", running));
    }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

async fn serve(
    ca: &DevCa,
    name: &'static str,
    routes: Routes,
    signer: &Signer,
    tasks: Tasks,
    at: &str,
) -> Running {
    let verifier = Verifier::new(Signer::config(), Arc::new(signer.clone()), Clock::system());
    let server = GrpcServer {
        name,
        identity: ca.identity(name).unwrap(),
        verifier,
        routes,
        tasks,
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(Listeners::bind(at, "127.0.0.1:0").await.unwrap()).await.unwrap()
}

/// Every method by a script, but those that the signer answers.
fn scripted(script: &Script, signer: &Signer, seen: &Arc<Seen>, tasks: &Tasks) -> Routes {
    let (script, signer, seen) = (script.clone(), signer.routes().prepare(), seen.clone());
    let stop = tasks.stopping();
    Routes::from(axum::Router::new().fallback(move |request: axum::extract::Request| {
        let (script, signer, seen) = (script.clone(), signer.clone(), seen.clone());
        let stop = stop.clone().cancelled_owned();
        async move {
            let path = request.uri().path().to_owned();
            if SIGNERS.iter().any(|service| path.starts_with(service)) {
                if path.ends_with("/ExchangeToken") {
                    let headers = request.headers().clone();
                    let call = Call { path, headers, message: Bytes::new() };
                    seen.exchanges.lock().unwrap().push(call);
                }
                let answer = signer.oneshot(request).await.unwrap_or_else(|never| match never {});
                // The feed never ends by itself; a service that stops does not wait for it.
                let ends = |body| Box::pin(BodyStream::new(body).take_until(stop));
                return answer.map(|body| axum::body::Body::new(StreamBody::new(ends(body))));
            }
            let (parts, body) = request.into_parts();
            let method = Contract::get().method(&path).expect("a method of the contract");
            let (message, rest) = if method.descriptor.is_client_streaming() {
                (Bytes::new(), body)
            } else {
                let frame = body.collect().await.unwrap().to_bytes();
                (frame.slice(5..), axum::body::Body::empty())
            };
            let call = Call { path, headers: parts.headers, message };
            let reply = script(&call);
            seen.calls.lock().unwrap().push(call);
            answer(reply, rest, &seen).await
        }
    }))
}

/// Counts a call that is dropped before its end.
struct Watch(Option<Arc<Seen>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            seen.given_up.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn answer(reply: Reply, rest: axum::body::Body, seen: &Arc<Seen>) -> http::Response<axum::body::Body> {
    type Piece = Result<Frame<Bytes>, Status>;
    let pending = || {
        let watch = Watch(Some(seen.clone()));
        tokio_stream::once(()).then(move |()| {
            let _watch = &watch;
            std::future::pending::<Piece>()
        })
    };
    let body = match reply {
        Reply::Cookies(cookies, reply) => {
            let mut response = Box::pin(answer(*reply, rest, seen)).await;
            let cookies = cookies.into_iter().map(|cookie| (SET_COOKIE, HeaderValue::from_static(cookie)));
            response.headers_mut().extend(cookies);
            return response;
        }
        Reply::Replayed(reply) => {
            let mut response = Box::pin(answer(*reply, rest, seen)).await;
            response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
            return response;
        }
        Reply::After(gate, reply) => {
            let mut watch = Watch(Some(seen.clone()));
            gate.acquire().await.unwrap().forget();
            watch.0 = None;
            return Box::pin(answer(*reply, rest, seen)).await;
        }
        Reply::Fail(status) => return status.into_http(),
        Reply::Hang => {
            let _watch = Watch(Some(seen.clone()));
            return std::future::pending().await;
        }
        Reply::Message(message) => pieces(vec![Ok(frame(&message)), Ok(trailers(&Status::ok("")))]),
        Reply::Stream(messages, status) => {
            let frames = messages.iter().map(|message| Ok(frame(message)));
            pieces(frames.chain([Ok(trailers(&status))]).collect())
        }
        Reply::Stall(message) => {
            let begun = tokio_stream::once(Ok(frame(&message))).chain(Box::pin(pending()));
            axum::body::Body::new(StreamBody::new(begun))
        }
        Reply::Endless(message) => {
            let watch = Watch(Some(seen.clone()));
            axum::body::Body::new(StreamBody::new(tokio_stream::iter(std::iter::repeat_with(move || {
                let _watch = &watch;
                Ok::<_, Status>(frame(&message))
            }))))
        }
        Reply::Abort(message) => pieces(vec![Ok(frame(&message)), Err(Status::internal("broken off"))]),
        Reply::Echo => {
            let frames = rest.into_data_stream().map(|data| Ok::<_, Status>(Frame::data(data.unwrap())));
            let end = tokio_stream::once(Ok(trailers(&Status::ok(""))));
            axum::body::Body::new(StreamBody::new(frames.chain(end)))
        }
    };
    let mut response = http::Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn pieces(pieces: Vec<Result<Frame<Bytes>, Status>>) -> axum::body::Body {
    axum::body::Body::new(StreamBody::new(tokio_stream::iter(pieces)))
}

fn frame(message: &[u8]) -> Frame<Bytes> {
    Frame::data(super::client::frame(message))
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    Frame::trailers(trailers)
}
