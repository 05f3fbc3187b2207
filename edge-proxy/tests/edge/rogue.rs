//! An instance of a service that breaks every rule it is told to, frame by frame, under mutual TLS.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde_json::Value;
use service_kit::tls::DevCa;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    client::frame,
    harness::{Options, Reply, World},
};

type Pairs = Vec<(&'static str, &'static str)>;

/// What becomes of one call.
#[derive(Clone)]
pub(crate) enum Act {
    /// One message and status OK.
    Answer(Vec<u8>),
    /// The same, as soon as there is a permit.
    Gated(Vec<u8>, Arc<Semaphore>),
    /// No message; the status comes in the trailers.
    Trailers(Pairs),
    /// Nothing but headers, with a status in them.
    Only(Pairs),
    /// An answer that is no gRPC.
    Http(u16, Pairs),
    /// RST_STREAM in place of an answer.
    Reset(Reason),
    /// A part of an answer, then RST_STREAM.
    BeginAndReset(Vec<u8>, Reason),
    /// A part of an answer, then the connection is gone.
    BeginAndDie(Vec<u8>),
    /// A message, then the end without a status.
    NoStatus(Vec<u8>),
    /// More is announced than comes: in `content-length`.
    ShortBody(Vec<u8>),
    /// More is announced than comes: in the frame of the message.
    ShortMessage,
    /// Nothing ever.
    Hang,
    /// An answer, and the connection takes no more.
    AnswerAndLeave(Vec<u8>),
}

type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;

/// What an instance saw.
#[derive(Default)]
pub(crate) struct Record {
    calls: Mutex<Vec<HeaderMap>>,
    pub(crate) open: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
    pub(crate) is_ill: AtomicBool,
}

/// The instance.
pub(crate) struct Rogue {
    pub(crate) addr: SocketAddr,
    pub(crate) record: Arc<Record>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

/// A folder with a CA, in which rogues and a world meet.
pub(crate) struct Stage {
    folder: TempDir,
    ca: DevCa,
}

impl Stage {
    pub(crate) fn new() -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(folder.path()).unwrap();
        Self { folder, ca }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// An instance of project-service whose calls come to this, by their number.
    pub(crate) async fn rogue(&self, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Rogue {
        self.rogue_at("127.0.0.1:0", 4_096, script).await
    }

    pub(crate) async fn rogue_at(
        &self,
        at: &str,
        streams: u32,
        script: impl Fn(usize) -> Act + Send + Sync + 'static,
    ) -> Rogue {
        self.rogue_of("project-service", at, streams, script).await
    }

    /// An instance of another service.
    pub(crate) async fn rogue_of(
        &self,
        service: &str,
        at: &str,
        streams: u32,
        script: impl Fn(usize) -> Act + Send + Sync + 'static,
    ) -> Rogue {
        let listener = TcpListener::bind(at).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(self.ca.identity(service).unwrap().server.clone());
        let (record, stop) = (Arc::new(Record::default()), CancellationToken::new());
        let keep = keep(listener, tls, streams, Arc::new(script), record.clone(), stop.clone());
        Rogue { addr, record, stop, ended: tokio::spawn(keep) }
    }

    /// A world whose project-service is at this address.
    pub(crate) async fn world(&self, address: impl ToString, set: &[(&'static str, &str)]) -> World {
        let mut options = Options { services: vec!["auth-service"], ..Options::default() };
        options.ca_folder = Some(self.folder.path().to_owned());
        let address = format!("\"{}\"", address.to_string());
        options = options.set("upstreams.project.address", address);
        options = set.iter().fold(options, |options, (key, value)| options.set(key, value));
        World::with(options, |_| Reply::Hang).await
    }
}

async fn keep(
    listener: TcpListener,
    tls: TlsAcceptor,
    streams: u32,
    script: Script,
    record: Arc<Record>,
    stop: CancellationToken,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (tls, script, record) = (tls.clone(), script.clone(), record.clone());
        let die = stop.child_token();
        tokio::spawn(async move {
            let served = connection(socket, tls, streams, script, record, die.clone());
            tokio::select! { biased; () = die.cancelled() => {}, () = served => {} }
        });
    }
}

/// Counts for as long as it is there.
struct Count(Arc<Record>, fn(&Record) -> &AtomicUsize);

impl Count {
    fn new(record: &Arc<Record>, of: fn(&Record) -> &AtomicUsize) -> Self {
        of(record).fetch_add(1, Ordering::SeqCst);
        Self(record.clone(), of)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(
    socket: tokio::net::TcpStream,
    tls: TlsAcceptor,
    streams: u32,
    script: Script,
    record: Arc<Record>,
    die: CancellationToken,
) {
    let Ok(stream) = tls.accept(socket).await else { return };
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let _count = Count::new(&record, |record| &record.connections);
    while let Some(Ok((request, respond))) = connection.accept().await {
        if request.uri().path().starts_with("/grpc.health.") {
            let word = if record.is_ill.load(Ordering::SeqCst) { 2 } else { 1 };
            tokio::spawn(play(
                request,
                respond,
                Act::Answer(vec![8, word]),
                record.clone(),
                None,
                die.clone(),
            ));
            continue;
        }
        let number = {
            let mut calls = record.calls.lock().unwrap();
            calls.push(request.headers().clone());
            calls.len() - 1
        };
        let act = script(number);
        if matches!(act, Act::AnswerAndLeave(_)) {
            connection.graceful_shutdown();
        }
        let count = Some(Count::new(&record, |record| &record.open));
        tokio::spawn(play(request, respond, act, record.clone(), count, die.clone()));
    }
}

async fn play(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    act: Act,
    record: Arc<Record>,
    _count: Option<Count>,
    die: CancellationToken,
) {
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let ok = &[("content-type", "application/grpc")][..];
    let fine = || vec![("grpc-status", "0")];
    // Whoever has gone does not hear the rest.
    let _ = match act {
        Act::Answer(message) | Act::AnswerAndLeave(message) => {
            say(&mut respond, ok, Some(frame(&message)), Some(fine()))
        }
        Act::Gated(message, gate) => {
            tokio::select! {
                permit = gate.acquire() => permit.unwrap().forget(),
                _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return,
            }
            say(&mut respond, ok, Some(frame(&message)), Some(fine()))
        }
        Act::Trailers(trailers) => say(&mut respond, ok, None, Some(trailers)),
        Act::Only(pairs) => {
            let pairs = [ok, &pairs].concat();
            respond.send_response(response(200, &pairs), true).map(drop)
        }
        Act::Http(status, pairs) => respond.send_response(response(status, &pairs), true).map(drop),
        Act::Reset(reason) => {
            respond.send_reset(reason);
            Ok(())
        }
        Act::BeginAndReset(message, reason) => {
            let mut stream = respond.send_response(response(200, ok), false).unwrap();
            let sent = stream.send_data(frame(&message), false);
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send_reset(reason);
            sent
        }
        Act::BeginAndDie(message) => {
            let mut stream = respond.send_response(response(200, ok), false).unwrap();
            let sent = stream.send_data(frame(&message), false);
            tokio::time::sleep(Duration::from_millis(50)).await;
            die.cancel();
            // Dropped before the connection has gone, it would be reset first.
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            sent
        }
        Act::NoStatus(message) => {
            let mut stream = respond.send_response(response(200, ok), false).unwrap();
            stream.send_data(frame(&message), true)
        }
        Act::ShortBody(message) => {
            let pairs = [ok, &[("content-length", "1000")]].concat();
            say(&mut respond, &pairs, Some(frame(&message)), Some(fine()))
        }
        Act::ShortMessage => {
            let lie = Bytes::from_static(&[0, 0, 0, 1, 0, 7]);
            say(&mut respond, ok, Some(lie), Some(fine()))
        }
        Act::Hang => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            record.cancelled.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
}

fn say(
    respond: &mut SendResponse<Bytes>,
    headers: &[(&'static str, &'static str)],
    data: Option<Bytes>,
    trailers: Option<Pairs>,
) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(response(200, headers), false)?;
    if let Some(data) = data {
        stream.send_data(data, false)?;
    }
    stream.send_trailers(map(&trailers.unwrap_or_default()))
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

fn response(status: u16, headers: &[(&'static str, &'static str)]) -> Response<()> {
    let mut response = Response::builder().status(status).body(()).unwrap();
    *response.headers_mut() = map(headers);
    response
}

impl Rogue {
    /// How many calls came.
    pub(crate) fn calls(&self) -> usize {
        self.record.calls.lock().unwrap().len()
    }

    /// A header of each call.
    pub(crate) fn headers(&self, name: &str) -> Vec<Option<String>> {
        let calls = self.record.calls.lock().unwrap();
        let header = |headers: &HeaderMap| Some(headers.get(name)?.to_str().unwrap().to_owned());
        calls.iter().map(header).collect()
    }

    /// Is gone at once, with all its connections.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.ended.abort();
        // Its socket is closed when this returns: the address is free again.
        let _ = self.ended.await;
        self.stop.cancel();
        self.addr
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// project-service as `/upstreams` of the admin port has it.
pub(crate) async fn report(world: &World) -> Value {
    report_of(world, "project-service").await
}

/// A service as `/upstreams` has it.
async fn report_of(world: &World, service: &str) -> Value {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(world.edge.admin_addr).await.unwrap();
    let request = "GET /upstreams HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let report: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let services = report["upstreams"].as_array().unwrap().iter();
    let mut services: HashMap<_, _> =
        services.map(|service| (service["service"].as_str().unwrap(), service)).collect();
    services.remove(service).unwrap().clone()
}

/// Waits until each instance is in this state.
pub(crate) async fn states(world: &World, expected: &[&str]) {
    until(&format!("states {expected:?}"), async || {
        let report = report(world).await;
        let instances = report["instances"].as_array().unwrap().clone();
        instances.iter().map(|instance| instance["state"].as_str().unwrap()).eq(expected.iter().copied())
    })
    .await;
}

/// Waits until nothing is open any more, as the edge counts and as the instance does.
pub(crate) async fn nothing_leaks(world: &World, rogue: &Rogue) {
    nothing_leaks_at(world, "project-service", rogue).await;
}

/// The same of an instance of another service.
pub(crate) async fn nothing_leaks_at(world: &World, service: &str, rogue: &Rogue) {
    until("nothing is open", async || {
        let report = report_of(world, service).await;
        let instances = report["instances"].as_array().unwrap().clone();
        let open = |pool: &str| instances.iter().map(|i| i[pool]["open"].as_u64().unwrap()).sum::<u64>();
        open("calls") + open("streams") == 0 && rogue.record.open.load(Ordering::SeqCst) == 0
    })
    .await;
}
