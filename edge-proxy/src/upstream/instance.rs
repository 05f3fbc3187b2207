//! One instance of a service: its connections, its health, and how it did lately.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::uri::{Authority, PathAndQuery};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::service_fn;

use super::{
    balance::Chance,
    config::{ResilienceConfig, UpstreamConfig},
    dial::Dialer,
    measure::Measures,
    outlier::Outlier,
    pool::{Bounds, NoStream, Pool},
    wire::{Incoming, Messages, Outgoing, Shape},
};
use crate::Body;

/// How long a health check may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How soon an instance that is not well is asked again.
const SOON: Duration = Duration::from_millis(300);

/// So many checks in a row must fail: one may be lost to a busy moment.
const STRIKES: u32 = 2;

/// One instance.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) address: Arc<str>,
    pub(super) authority: Authority,
    calls: Arc<Pool>,
    streams: Arc<Pool>,
    pub(super) outlier: Outlier,
    pub(super) measures: Measures,
    /// Whether its health checks fail.
    is_ill: AtomicBool,
    /// Ends the watch with the last user.
    _watched: DropGuard,
}

impl Instance {
    /// Begins to watch an instance, and with that to connect.
    pub(super) fn start(
        address: &str,
        dialer: &Dialer,
        config: &UpstreamConfig,
        resilience: &ResilienceConfig,
        stop: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let bounds = Bounds {
            min: config.connections.max(1),
            max: config.max_connections,
            streams: config.streams_per_connection,
            queue: resilience.queue,
            idle: Duration::from_secs(resilience.idle_seconds),
        };
        let gone = stop.child_token();
        let text: Arc<str> = address.into();
        let pool = |shape, bounds| Pool::new(text.clone(), dialer.clone(), shape, bounds);
        let instance = Arc::new(Self {
            authority: address.parse()?,
            calls: pool(Shape::CALLS, bounds),
            // Links are many: only the instance bounds how many a connection carries.
            streams: pool(Shape::STREAMS, Bounds { streams: 0, ..bounds }),
            outlier: Outlier::default(),
            measures: Measures::new(address),
            is_ill: AtomicBool::new(false),
            _watched: gone.clone().drop_guard(),
            address: text.clone(),
        });
        let every = Duration::from_millis(resilience.health_ms);
        tokio::spawn(watch(Arc::downgrade(&instance), instance.calls.clone(), every, gone));
        Ok(instance)
    }

    /// Whether it says that it serves, asked now.
    pub(super) async fn check(&self) -> anyhow::Result<()> {
        check(&self.calls).await.map_err(|why| anyhow::anyhow!("{}: {}", self.address, why.text))
    }

    /// The connections for long streams, or for calls.
    pub(super) fn pool(&self, streams: bool) -> &Arc<Pool> {
        if streams { &self.streams } else { &self.calls }
    }

    /// Whether calls should go there.
    pub(super) fn is_well(&self) -> bool {
        !self.is_ill() && !self.is_away() && !self.outlier.is_out()
    }

    /// Whether its health checks fail.
    pub(super) fn is_ill(&self) -> bool {
        self.is_ill.load(Ordering::Relaxed)
    }

    /// Whether it cannot be reached.
    pub(super) fn is_away(&self) -> bool {
        self.calls.is_away()
    }

    /// How much it has to do.
    pub(super) fn load(&self, streams: bool) -> usize {
        self.pool(streams).open()
    }

    fn set_ill(&self, is_ill: bool, why: &str) {
        if self.is_ill.swap(is_ill, Ordering::Relaxed) != is_ill {
            let address = &*self.address;
            if is_ill {
                tracing::warn!(address, why, "an instance is not well");
            } else {
                tracing::info!(address, "an instance is well again");
            }
        }
    }
}

/// Keeps an instance connected, and asks how it is, until nobody needs it any more.
async fn watch(instance: Weak<Instance>, calls: Arc<Pool>, every: Duration, gone: CancellationToken) {
    let (chance, mut strikes, mut made) = (Chance::default(), 0, 0);
    loop {
        let pause = {
            let Some(instance) = instance.upgrade() else { return };
            calls.fill();
            calls.trim();
            instance.streams.trim();
            if calls.connections() == 0 {
                calls.pause().unwrap_or(every)
            } else {
                if calls.made() != made && std::mem::replace(&mut made, calls.made()) != 0 {
                    // Connected again after all connections were lost: most likely another process.
                    renewed(&instance);
                }
                match check(&calls).await {
                    Ok(()) => {
                        strikes = 0;
                        instance.set_ill(false, "");
                    }
                    Err(why) => {
                        strikes += 1;
                        if why.is_own_word || strikes >= STRIKES {
                            instance.set_ill(true, &why.text);
                        }
                    }
                }
                if strikes > 0 { SOON.min(every) } else { every }
            }
        };
        let woken = tokio::time::timeout(chance.jittered(pause), calls.event.notified());
        tokio::select! {
            _ = woken => {}
            () = gone.cancelled() => return,
        }
    }
}

/// What was held against an instance that is another process now.
fn renewed(instance: &Instance) {
    if instance.calls.connections() == 1 {
        instance.outlier.forget();
    }
}

/// Why a check was not passed.
struct NotWell {
    /// It says so itself.
    is_own_word: bool,
    text: String,
}

/// `grpc.health.v1`. Who does not know of it is well as long as it answers.
async fn check(calls: &Arc<Pool>) -> Result<(), NotWell> {
    let silent = |text: String| NotWell { is_own_word: false, text };
    let pool = calls.clone();
    let mut client = HealthClient::new(service_fn(move |request| send(pool.clone(), request)));
    let answer = tokio::time::timeout(PATIENCE, client.check(HealthCheckRequest::default())).await;
    match answer.map_err(|_| silent("no answer in a second".to_owned()))? {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => {
            Err(NotWell { is_own_word: true, text: answer.get_ref().status().as_str_name().to_owned() })
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) => Err(silent(status.message().to_owned())),
    }
}

async fn send(
    pool: Arc<Pool>,
    mut request: http::Request<Body>,
) -> Result<http::Response<Incoming>, tonic::Status> {
    let lease = pool.take().await.map_err(|error| match error {
        NoStream::Away(why) => tonic::Status::unavailable(why),
        NoStream::Full => tonic::Status::unavailable("too many calls wait"),
    })?;
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let origin = super::origin(Authority::from_static("instance"), path);
    *request.uri_mut() = origin.map_err(|error| tonic::Status::internal(error.to_string()))?;
    let (head, body) = request.into_parts();
    let head = http::Request::from_parts(head, ());
    let sent = lease.send(Outgoing { head, messages: Messages::Stream(body) }).map_err(|unsent| unsent.error);
    let answer = match sent {
        Ok(sent) => sent.answer().await,
        Err(error) => Err(error),
    };
    answer.map_err(|error| tonic::Status::unavailable(error.to_string()))
}
