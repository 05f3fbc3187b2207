//! A whole edge with three fake services behind it, under the kit's own server and mutual TLS.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use edge_proxy::Config;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message;
use proto::{
    Contract,
    auth::{Jwk, Jwks},
};
use serde_json::{Value, json};
use service_kit::{
    Clock,
    admin::Readiness,
    config::Layers,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    tls::{DevCa, Identity},
    token::{KeySource, TokenConfig, Verifier},
};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::{Status, service::Routes};

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
    /// Begins an answer and breaks the stream.
    Abort(Vec<u8>),
    /// Sends back each frame of the request as it comes.
    Echo,
}

/// An answer with one message.
pub(crate) fn ok(message: &impl Message) -> Reply {
    Reply::Message(message.encode_to_vec())
}

type Script = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// Signs access tokens as auth-service would.
pub(crate) struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwks(&self) -> Jwks {
        let point = self.0.public_key().as_ref();
        Jwks {
            keys: vec![Jwk {
                kty: "EC".into(),
                crv: "P-256".into(),
                x: URL_SAFE_NO_PAD.encode(&point[1..33]),
                y: URL_SAFE_NO_PAD.encode(&point[33..65]),
                r#use: "sig".into(),
                alg: "ES256".into(),
                kid: "k1".into(),
            }],
        }
    }

    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = Clock::system().now_ms() / 1_000;
        let mut claims = json!({"iss": "https://tollgate.local", "aud": "tollgate", "sub": "u", "exp": now + 600,
            "iat": now, "jti": "j", "client_id": "web", "sid": "s", "scope": "*", "auth_time": now});
        change(&mut claims);
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"});
        let body = format!("{}.{}", part(&header), part(&claims));
        let signature = self.0.sign(&aws_lc_rs::rand::SystemRandom::new(), body.as_bytes()).unwrap();
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[derive(Debug)]
struct Keys(Jwks);

#[async_trait]
impl KeySource for Keys {
    async fn jwks(&self) -> service_kit::Result<Jwks> {
        Ok(self.0.clone())
    }
}

/// What the services did so far.
#[derive(Default)]
pub(crate) struct Seen {
    calls: Mutex<Vec<Call>>,
    /// Calls that were given up by the edge before they were answered.
    given_up: AtomicUsize,
}

/// The edge with what is behind it.
pub(crate) struct World {
    pub(crate) edge: Running,
    pub(crate) signer: Arc<Signer>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) ca_file: PathBuf,
    services: Vec<Running>,
    _folder: TempDir,
}

/// How a world is made.
pub(crate) struct Options {
    /// Settings of the edge over the defaults.
    pub(crate) set: Vec<(&'static str, String)>,
    /// gateway-service, in place of the scripted one.
    pub(crate) gateway: Option<Routes>,
    /// Which services run.
    pub(crate) services: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            set: Vec::new(),
            gateway: None,
            services: vec!["auth-service", "project-service", "gateway-service"],
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
    /// A world whose services follow a script. KeyService always answers.
    pub(crate) async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(Options::default(), script).await
    }

    pub(crate) async fn with(
        mut options: Options,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(folder.path()).unwrap();
        let signer = Arc::new(Signer::new());
        let seen = Arc::new(Seen::default());
        let script: Script = Arc::new(script);
        let mut layers = Layers::new(edge_proxy::DEFAULTS, None, "NOTHING__")
            .unwrap()
            .set("tls.dev_ca_dir", &quoted(folder.path().display()));
        let mut services = Vec::new();
        for (key, name) in
            [("auth", "auth-service"), ("project", "project-service"), ("gateway", "gateway-service")]
        {
            let mut address = "127.0.0.1:1".to_owned();
            if options.services.contains(&name) {
                let own = options.gateway.take_if(|_| name == "gateway-service");
                let routes = own.unwrap_or_else(|| scripted(&script, &signer, &seen));
                let running = serve(name, ca.identity(name).unwrap(), routes, &signer).await;
                address = running.addr.to_string();
                services.push(running);
            }
            layers = layers.set(&format!("upstreams.{key}.address"), &quoted(address));
        }
        for (key, value) in &options.set {
            layers = layers.set(key, value);
        }
        let config: Config = layers.extract().unwrap();
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let edge = edge_proxy::start(config, listeners).await.unwrap();
        Self { edge, signer, seen, ca_file: ca.cert_file().to_owned(), services, _folder: folder }
    }

    /// A good access token.
    pub(crate) fn token(&self) -> String {
        self.signer.token(|_| ())
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token())
    }

    /// The calls so far, without those for keys.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.seen.calls.lock().unwrap().clone()
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
        tokio::time::timeout(Duration::from_secs(5), enough).await.expect("the call is cancelled upstream");
    }

    /// Ends the services, and leaves the edge.
    pub(crate) async fn stop_services(&mut self) {
        for service in self.services.drain(..) {
            service.shutdown().await;
        }
    }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

async fn serve(name: &'static str, identity: Identity, routes: Routes, signer: &Signer) -> Running {
    let config = TokenConfig { issuer: "https://tollgate.local".into(), audience: "tollgate".into() };
    let verifier = Verifier::new(config, Arc::new(Keys(signer.jwks())), Clock::system());
    let server = GrpcServer {
        name,
        identity,
        verifier,
        routes,
        tasks: Tasks::new(),
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap()
}

/// Every method, by a script.
fn scripted(script: &Script, signer: &Arc<Signer>, seen: &Arc<Seen>) -> Routes {
    let (script, signer, seen) = (script.clone(), signer.clone(), seen.clone());
    Routes::from(axum::Router::new().fallback(move |request: axum::extract::Request| {
        let (script, signer, seen) = (script.clone(), signer.clone(), seen.clone());
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path().to_owned();
            if path.ends_with("/GetJwks") {
                return answer(
                    Reply::Message(signer.jwks().encode_to_vec()),
                    axum::body::Body::empty(),
                    &seen,
                )
                .await;
            }
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
