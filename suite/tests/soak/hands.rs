//! One worker: its connections, the kinds of calls that it makes in turn, and what it may do with an answer.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use suite::{client::Client, controller::Dice, grpc, trust::Trust};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use super::tally::Tally;

/// The longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A call is given up within this, most of them before their answer has come.
const GIVE_UP_MICROS: usize = 25_000;

/// Whom the clients call, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) trust: Trust,
    pub(crate) email: String,
    /// Who does nothing but log in: an account has so many sessions, and then the oldest ends.
    pub(crate) visitor: String,
    pub(crate) token: String,
    pub(crate) organization: String,
    pub(crate) project: String,
    /// One for each worker.
    pub(crate) apis: Vec<String>,
    /// Ids and tokens of gateways.
    pub(crate) gateways: Vec<(String, String)>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal)*) => {
        /// What a worker does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind { $($kind),* }

        /// All kinds, in the order in which they are done.
        pub(crate) const KINDS: &[Kind] = &[$(Kind::$kind),*];

        impl Kind {
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

kinds! {
    RestH2 "REST, h2"
    RestH1 "REST, h1"
    RestNewH2 "REST, h2, new connection"
    RestNewH1 "REST, h1, new connection"
    Write "REST, make and delete"
    Deploy "REST, deploy and undeploy"
    Batch "batch"
    Login "login and refresh"
    Grpc "gRPC"
    GrpcNew "gRPC, new connection"
    Web "gRPC-Web"
    WebStream "gRPC-Web, stream"
    Connect "Connect"
    ConnectGet "Connect, GET"
    ConnectStream "Connect, stream"
    Socket "WebSocket, call"
    Cancelled "cancelled"
    BrokenH1 "body broken off, h1"
    BrokenH2 "body broken off, h2"
    BadInput "bad input"
    Garbage "garbage on the wire"
    WrongToken "wrong token"
}

/// What most clients do most of the time.
const ORDINARY: &[Kind] =
    &[Kind::RestH2, Kind::RestH1, Kind::Write, Kind::Grpc, Kind::Web, Kind::Connect, Kind::ConnectGet];

/// What may be cancelled in the middle.
const CANCELLED: &[Kind] = &[
    Kind::RestH2,
    Kind::RestH1,
    Kind::RestNewH2,
    Kind::RestNewH1,
    Kind::Write,
    Kind::Deploy,
    Kind::Batch,
    Kind::Login,
    Kind::Grpc,
    Kind::GrpcNew,
    Kind::Web,
    Kind::Connect,
    Kind::ConnectStream,
    Kind::Socket,
];

/// An answer, whatever it says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The status, when it is one of these.
    pub(crate) fn expect(&self, wanted: &[u16]) -> anyhow::Result<String> {
        anyhow::ensure!(wanted.contains(&self.status), "{} {}", self.status, self.text());
        Ok(self.status.to_string())
    }

    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(300).collect()
    }
}

/// A client of HTTP with connections of its own.
pub(crate) fn http(world: &World, protocol: &str) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(world.trust.client_config(&[protocol]))
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// A worker's hands.
#[derive(Debug)]
pub(crate) struct Hands {
    pub(crate) world: Arc<World>,
    pub(crate) number: usize,
    pub(crate) dice: Dice,
    pub(crate) h1: reqwest::Client,
    pub(crate) h2: reqwest::Client,
    pub(crate) client: Client,
    pub(crate) channel: Channel,
}

impl Hands {
    pub(crate) fn new(world: &Arc<World>, number: usize) -> Self {
        let client = Client::new(&world.url, &world.trust).unwrap().with_token(&world.token);
        Self {
            world: world.clone(),
            number,
            dice: Dice::fresh(),
            h1: http(world, "http/1.1"),
            h2: http(world, "h2"),
            channel: grpc::channel(&client).unwrap(),
            client,
        }
    }

    /// Makes calls of all kinds in turn, ordinary ones so many times, until it is time, and then lets go of everything.
    pub(crate) async fn work(mut self, until: Instant, ordinary: usize, tally: Tally) {
        let first = self.number * KINDS.len() / self.world.apis.len();
        let calls = KINDS.iter().cycle().skip(first);
        let times = |kind: &Kind| if ORDINARY.contains(kind) { ordinary } else { 1 };
        for kind in calls.flat_map(|kind| std::iter::repeat_n(*kind, times(kind))) {
            if Instant::now() >= until {
                return;
            }
            let outcome = self.call(kind).await;
            tally.note(kind.name(), outcome);
        }
    }

    /// The worker's API.
    pub(crate) fn api(&self) -> &str {
        &self.world.apis[self.number]
    }

    /// A request as the account's user.
    pub(crate) fn request(&self, http: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        http.request(method, format!("{}{path}", self.world.url)).bearer_auth(&self.world.token)
    }

    /// One call; the outcome in a word, or what is wrong with it.
    fn call(&mut self, kind: Kind) -> BoxFuture<'_, anyhow::Result<String>> {
        async move {
            match kind {
                Kind::RestH2 => self.read(&self.h2.clone()).await,
                Kind::RestH1 => self.read(&self.h1.clone()).await,
                Kind::RestNewH2 => self.read(&http(&self.world, "h2")).await,
                Kind::RestNewH1 => self.read(&http(&self.world, "http/1.1")).await,
                Kind::Write => self.write().await,
                Kind::Deploy => self.deploy().await,
                Kind::Batch => self.batch().await,
                Kind::Login => self.login().await,
                Kind::Grpc => self.grpc(self.channel.clone()).await,
                Kind::GrpcNew => self.grpc(grpc::channel(&self.client)?).await,
                Kind::Web => self.web().await,
                Kind::WebStream => self.stream("application/grpc-web+proto").await,
                Kind::Connect => self.connect().await,
                Kind::ConnectGet => self.connect_get().await,
                Kind::ConnectStream => self.stream("application/connect+json").await,
                Kind::Socket => self.socket().await,
                Kind::Cancelled => self.cancelled().await,
                Kind::BrokenH1 => self.broken_h1().await,
                Kind::BrokenH2 => self.broken_h2().await,
                Kind::BadInput => self.bad_input().await,
                Kind::Garbage => self.garbage().await,
                Kind::WrongToken => self.wrong_token().await,
            }
        }
        .boxed()
    }

    /// Some call, and the client leaves in the middle of it.
    async fn cancelled(&mut self) -> anyhow::Result<String> {
        let kind = CANCELLED[self.dice.below(CANCELLED.len())];
        let patience = Duration::from_micros(u64::try_from(self.dice.below(GIVE_UP_MICROS))?);
        match timeout(patience, self.call(kind)).await {
            Ok(outcome) => outcome.map(|_| "too late".to_owned()),
            Err(_) => Ok("left".to_owned()),
        }
    }
}

/// The answer to a request, read to its end.
pub(crate) async fn answer(request: RequestBuilder) -> anyhow::Result<Answer> {
    let response = request.send().await.context("no answer")?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.context("the answer broke off")?;
    Ok(Answer { status, headers, body })
}
