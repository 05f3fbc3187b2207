//! One edge takes the place of another on the same port, both as processes: nobody is refused, and no request fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use suite::{client::Client, trust::Trust};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use crate::support::{PATIENCE, Services, signed_up};

const PATH: &str = "/api/v1/auth/profile";

/// Limits are not what this is about.
const EDGE: &[&str] = &[
    "restart.reuse_port=true",
    "restart.linger_ms=300",
    "limits.address_per_minute=0",
    "limits.user_per_minute=0",
    "limits.token_per_minute=0",
    "limits.connections_per_address=10000",
    "cache.enabled=false",
];

/// What clients do until they are told to stop, and how often it went well.
struct Crowd {
    url: String,
    port: u16,
    trust: Trust,
    token: String,
    done: AtomicBool,
    answered: AtomicUsize,
}

impl Crowd {
    fn client(&self) -> Client {
        Client::new(&self.url, &self.trust).unwrap().with_token(&self.token)
    }

    async fn work(self: Arc<Self>, number: usize) {
        let kept = self.client();
        while !self.done.load(Ordering::Relaxed) {
            match number % 3 {
                // A connection for each request: a refusal or a reset would be seen here. Nothing tries again.
                0 => self.once(number).await,
                // The same over HTTP/2.
                1 => answer(&self.client(), number).await,
                // Connections that stay until the edge says that they end.
                _ => answer(&kept, number).await,
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One request over HTTP/1.1, read to the end of its connection.
    async fn once(&self, number: usize) {
        let mut stream = self.trust.connect("localhost", self.port, "http/1.1").await;
        let stream = stream.as_mut().unwrap_or_else(|error| panic!("client {number} is refused: {error}"));
        let (token, port) = (&self.token, self.port);
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nhost: localhost:{port}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap();
        read.unwrap_or_else(|error| panic!("client {number}: {error} after {answer:?}"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
        assert!(head.starts_with("HTTP/1.1 200"), "client {number}: {answer}");
        assert!(body.ends_with('}'), "client {number}: {answer}");
    }

    /// Waits until so many more requests went well.
    async fn more(&self, count: usize, clients: &mut JoinSet<()>) {
        let enough = self.answered.load(Ordering::Relaxed) + count;
        let more = async {
            while self.answered.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            failed = clients.join_next() => panic!("a client ended: {failed:?}"),
            more = tokio::time::timeout(PATIENCE, more) => more.expect("requests go on"),
        }
    }
}

async fn answer(client: &Client, number: usize) {
    let reply = client.get(PATH).await.unwrap_or_else(|error| panic!("client {number}: {error:#}"));
    assert_eq!(reply.status, 200, "client {number}: {}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_restarted_and_no_connection_is_refused() {
    service_kit::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let services = Services::start(folder.path()).await;
    let mut old = services.edge("edge-0", EDGE);
    old.start();
    old.ready().await;
    let (url, port, trust) = (old.url(), old.port(), services.trust());
    let (client, ..) = signed_up(&Client::new(&url, &trust).unwrap()).await;
    let token = client.token().unwrap().to_owned();
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let crowd = Arc::new(Crowd { url, port, trust, token, done, answered });
    let mut clients = JoinSet::new();
    for number in 0..9 {
        clients.spawn(crowd.clone().work(number));
    }
    crowd.more(50, &mut clients).await;
    for number in 1..=3 {
        let mut new = services.edge(&format!("edge-{number}"), EDGE);
        new.address = old.address.clone();
        new.start();
        new.ready().await;
        // Both at once, then the old one in its last moments, then the new one alone.
        crowd.more(50, &mut clients).await;
        old.signal("-TERM");
        assert_eq!(old.ended().await, Some(0), "it ends by itself, and in order");
        crowd.more(50, &mut clients).await;
        let metrics = new.admin("/metrics").await;
        let served = metrics.lines().any(|line| {
            line.starts_with("http_server_request_duration_seconds_count") && line.contains(PATH)
        });
        assert!(served, "the new one serves: {metrics}");
        old = new;
    }
    crowd.done.store(true, Ordering::Relaxed);
    let end = async {
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("all clients end");
}
