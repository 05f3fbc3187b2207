//! The services behind the edge: their instances, the connections to those, and how calls get through while
//! part of it fails.
//!
//! It knows methods by their policies and never looks into messages. What is sent again, and when, is
//! decided here and nowhere else. No lock is held across an await.

mod answer;
mod balance;
mod breaker;
pub(crate) mod budget;
pub(crate) mod call;
pub(crate) mod config;
mod dial;
mod failure;
mod instance;
mod measure;
mod outlier;
mod pool;
pub(crate) mod report;
mod retry;
mod source;
mod status;
#[cfg(test)]
mod testing;
mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use http::{
    Uri,
    uri::{self, Authority, PathAndQuery, Scheme},
};
use proto::Contract;
use service_kit::{Error, access::timeout_of, shutdown::Tasks, tls::Identity};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::Body;
use balance::Chance;
use breaker::{Breaker, Pass};
use budget::Budget;
use call::{Call, Method, Payload};
use config::{ResilienceConfig, UpstreamConfig};
use dial::Dialer;
use instance::Instance;
use retry::RetryBudget;
use source::Source;

/// One service. Clones share everything; generated clients take it as their transport.
#[derive(Debug, Clone)]
pub(crate) struct Upstream(Arc<Service>);

/// What all calls to one service share.
#[derive(Debug)]
struct Service {
    name: &'static str,
    config: UpstreamConfig,
    resilience: ResilienceConfig,
    dialer: Dialer,
    instances: RwLock<Arc<[Arc<Instance>]>>,
    chance: Chance,
    breaker: Breaker,
    retries: RetryBudget,
    /// Held while it is decided who is left out, so that never too many are.
    ejecting: Mutex<()>,
    stop: CancellationToken,
}

impl Upstream {
    /// Begins to connect to the instances of a service.
    pub(crate) fn start(
        identity: &Identity,
        name: &'static str,
        config: &UpstreamConfig,
        resilience: &ResilienceConfig,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let source = Source::parse(name, &config.address)?;
        let service = Arc::new(Service {
            name,
            dialer: Dialer::new(identity, name)?,
            instances: RwLock::new(Arc::new([])),
            chance: Chance::default(),
            breaker: Breaker::new(resilience),
            retries: RetryBudget::new(resilience),
            ejecting: Mutex::default(),
            stop: tasks.stopping(),
            config: config.clone(),
            resilience: resilience.clone(),
        });
        service.become_these(&source.first(name)?)?;
        if source.changes() {
            tasks.spawn_short(service.clone().follow(source));
        }
        Ok(Self(service))
    }

    /// The service at the other end.
    pub(crate) fn service(&self) -> &'static str {
        self.0.name
    }

    /// Whether an instance says that it serves (`grpc.health.v1`), within a second.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let instance = self.0.pick(false, &[]);
        let instance = instance.ok_or_else(|| anyhow::anyhow!("{} has no instances", self.0.name))?;
        instance.check().await
    }
}

impl Service {
    fn instances(&self) -> Arc<[Arc<Instance>]> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The instance for the next attempt, other than those: one that is well, else one that can be reached,
    /// else any, because it may be back.
    fn pick(&self, streams: bool, tried: &[Arc<Instance>]) -> Option<Arc<Instance>> {
        let instances = self.instances();
        let is_new = |one: &Arc<Instance>| tried.iter().all(|other| !Arc::ptr_eq(one, other));
        let load = |one: &Arc<Instance>| one.load(streams);
        let pick = |may: &dyn Fn(&Arc<Instance>) -> bool| {
            balance::pick(&instances, &self.chance, |one| is_new(one) && may(one), load).cloned()
        };
        let well = pick(&|one| one.is_well());
        well.or_else(|| pick(&|one| !one.is_away())).or_else(|| pick(&|_| true))
    }

    /// Whether there is an instance that was not tried.
    fn has_others(&self, tried: &[Arc<Instance>]) -> bool {
        self.instances().iter().any(|one| tried.iter().all(|other| !Arc::ptr_eq(one, other)))
    }

    /// An instance has not answered as it should.
    fn failed(&self, instance: &Arc<Instance>, pass: Pass) {
        if self.breaker.fail(pass) {
            tracing::warn!(service = self.name, "a service fails too often and is left alone for a moment");
            metrics::counter!("edge_upstream_breaker_opened_total", "service" => self.name).increment(1);
        }
        if !instance.outlier.fail(&self.resilience) {
            return;
        }
        let _deciding = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let instances = self.instances();
        let out = instances.iter().filter(|instance| instance.outlier.is_out()).count();
        if !instance.outlier.is_out() && outlier::may_eject(&self.resilience, instances.len(), out) {
            instance.outlier.eject(&self.resilience);
            let address = &*instance.address;
            tracing::warn!(service = self.name, address, "an instance fails too often and is left out");
            metrics::counter!("edge_upstream_ejections_total", "service" => self.name).increment(1);
        }
    }

    /// Takes other addresses. Instances that stay keep their connections.
    fn become_these(&self, addresses: &[String]) -> anyhow::Result<()> {
        let known = self.instances();
        let instance = |address: &String| match known.iter().find(|known| *known.address == **address) {
            Some(known) => Ok(known.clone()),
            None => Instance::start(address, &self.dialer, &self.config, &self.resilience, &self.stop),
        };
        let instances: Arc<[_]> = addresses.iter().map(instance).collect::<anyhow::Result<Vec<_>>>()?.into();
        *self.instances.write().unwrap_or_else(PoisonError::into_inner) = instances;
        Ok(())
    }

    /// Looks for other addresses until the edge drains. What cannot be read changes nothing.
    async fn follow(self: Arc<Self>, source: Source) {
        let (mut last, mut complaint) = (Vec::new(), String::new());
        let every = Duration::from_millis(self.resilience.resolve_ms);
        loop {
            match source.now().await {
                Ok(addresses) if addresses == last => complaint.clear(),
                Ok(addresses) => {
                    complaint.clear();
                    tracing::info!(service = self.name, ?addresses, "the instances of a service");
                    if let Err(error) = self.become_these(&addresses) {
                        tracing::warn!(service = self.name, error = format!("{error:#}"), "refused");
                    }
                    last = addresses;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != complaint {
                        tracing::warn!(service = self.name, error, "no other instances: the known ones stay");
                    }
                    complaint = error;
                }
            }
            // Without any instance a service is looked for more often.
            let pause = if last.is_empty() { every.min(Duration::from_secs(1)) } else { every };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }
}

/// Where an instance is asked for a method.
fn origin(authority: Authority, path: PathAndQuery) -> Result<Uri, http::Error> {
    let mut parts = uri::Parts::default();
    (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(authority), Some(path));
    Ok(Uri::from_parts(parts)?)
}

/// For generated clients: the same calls, with the deadline of the policy where there is none.
impl tower::Service<http::Request<Body>> for Upstream {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let policy = Contract::get().method(parts.uri.path());
            let policy = policy.ok_or_else(|| Status::unimplemented("no method of the contract"))?;
            let asked = timeout_of(&parts.headers);
            let call = Call {
                method: Method::of(policy),
                headers: parts.headers,
                payload: Payload::Stream(body),
                budget: Budget::new(Instant::now(), asked, policy.max_deadline),
            };
            upstream.call(call).await.map_err(bare)
        })
    }
}

/// An error of the way: without details, so that nobody takes it for the service's own word.
fn bare(error: Error) -> Status {
    tracing::debug!(%error, "a call of our own failed");
    Status::new(error.kind().code(), error.message())
}
