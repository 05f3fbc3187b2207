//! One edge takes the place of another on the same port: no connection is refused, and no request fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::project::Api;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    client::{tls, tls_over},
    harness::{Options, World, ok},
};

/// A connection that a client keeps for its calls, and replaces when it is told to.
pub(crate) struct Kept(Sender);

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl Kept {
    pub(crate) async fn h1(world: &World) -> Self {
        let io = TokioIo::new(tls(world, &["http/1.1"]).await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self(Sender::H1(sender))
    }

    pub(crate) async fn h2(world: &World) -> Self {
        let io = TokioIo::new(tls(world, &["h2"]).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self(Sender::H2(sender))
    }

    /// Whether the edge has said that this connection takes no more.
    async fn is_over(&mut self) -> bool {
        match &mut self.0 {
            Sender::H1(sender) => sender.ready().await.is_err(),
            Sender::H2(sender) => sender.ready().await.is_err(),
        }
    }

    async fn again(&self, world: &World) -> Self {
        match self.0 {
            Sender::H1(_) => Self::h1(world).await,
            Sender::H2(_) => Self::h2(world).await,
        }
    }

    pub(crate) async fn get(&mut self, path: &str, bearer: &str) -> StatusCode {
        let request = |uri: String| {
            let request = Request::get(uri).header("authorization", bearer);
            request.body(Empty::new())
        };
        let answer = match &mut self.0 {
            Sender::H1(sender) => {
                let mut request = request(path.to_owned()).unwrap();
                request.headers_mut().insert("host", "localhost".parse().unwrap());
                sender.send_request(request).await
            }
            Sender::H2(sender) => {
                sender.send_request(request(format!("https://localhost{path}")).unwrap()).await
            }
        };
        let answer = answer.unwrap();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        status
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_another_edge_takes_over() {
    let options = Options { reuse_port: true, ..Options::default() };
    let options = options
        .set("restart.reuse_port", true)
        .set("restart.linger_ms", 300)
        .set("limits.user_per_minute", 0)
        .set("limits.token_per_minute", 0)
        .set("limits.address_per_minute", 0);
    let world = Arc::new(World::with(options, |_| ok(&Api::default())).await);
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..12).map(|number| {
        let (world, done, answered) = (world.clone(), done.clone(), answered.clone());
        tokio::spawn(async move {
            let bearer = world.bearer();
            let mut kept = if number % 2 == 0 { Kept::h1(&world).await } else { Kept::h2(&world).await };
            while !done.load(Ordering::Relaxed) {
                // A third of them connect anew for each call: a refusal would be seen here.
                if number % 3 == 0 || kept.is_over().await {
                    kept = kept.again(&world).await;
                }
                assert_eq!(kept.get("/api/v1/apis/a1", &bearer).await, StatusCode::OK, "client {number}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let more = async |count: usize| {
        let enough = answered.load(Ordering::Relaxed) + count;
        while answered.load(Ordering::Relaxed) < enough {
            assert!(!clients.iter().any(|client| client.is_finished()), "a client failed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    more(100).await;
    let mut running = world.successor().await;
    for _ in 0..4 {
        more(200).await;
        let next = world.successor().await;
        let old = std::mem::replace(&mut running, next);
        super::reload::end(old).await;
        more(200).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in join_all(clients).await {
        client.unwrap();
    }
    super::reload::end(running).await;
}

/// The kernel lets connections in long before the edge does: a socket that is closed refuses all of them.
#[tokio::test]
async fn who_waits_at_the_door_when_it_closes_is_served() {
    for reuse_port in [true, false] {
        let options = Options { reuse_port, ..Options::default() };
        let options = options.set("restart.reuse_port", reuse_port).set("limits.connections", 1);
        let mut world = World::with(options, |_| ok(&Api::default())).await;
        let mut first = tls(&world, &["http/1.1"]).await;
        let get = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        first.write_all(&get[..20]).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(TcpStream::connect(world.edge.addr).await.unwrap());
        }
        let other = World::start(|_| ok(&Api::default())).await;
        let old = std::mem::replace(&mut world.edge, other.edge);
        let end = tokio::spawn(super::reload::end(old));
        first.write_all(&get[20..]).await.unwrap();
        for socket in waiting {
            let mut stream = tls_over(&world, &["http/1.1"], socket).await.expect("it was let in");
            stream.write_all(get).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        }
        end.await.unwrap();
    }
}
