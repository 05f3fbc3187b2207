//! What services can take: calls beyond it wait a little, and are then refused at once instead of late.
//!
//! The surface is two calls around the one upstream call: [`Load::enter`] before it, and [`Permit::answered`] when
//! its answer begins. A permit that is dropped after the call's deadline says that the service was too slow; one
//! that is dropped before (the client left, nobody could be reached) teaches nothing. Links of gateways, and what streams for long, are never held up, and health does not come by here.

mod gate;
mod gradient;

use std::sync::Arc;

use foldhash::HashMap;
use proto::{Contract, MethodPolicy, policy::RateClass};
use service_kit::{Error, Kind, telemetry};
use tokio::time::Instant;

use crate::{
    client::Marks,
    config::ConcurrencyConfig,
    rescue::{Problem, Refusal},
};
use gate::{Gate, Pass, Usual};

/// The ways into all services.
#[derive(Debug)]
pub(crate) struct Load {
    gates: HashMap<&'static str, Arc<Gate>>,
    /// What each method usually takes.
    usual: HashMap<&'static str, Usual>,
}

/// What a call matters: the lowest is shed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Expensive calls: imports, deployments.
    Heavy,
    /// Whatever else.
    Ordinary,
    /// Logins and the like: without them nobody can do anything.
    Credential,
    /// Links of gateways, and other streams.
    Always,
}

impl Priority {
    /// How many of them wait.
    const WAITING: usize = 3;

    fn of(policy: &MethodPolicy, class: RateClass) -> Self {
        let streams = policy.client_streaming || policy.server_streaming;
        match class {
            RateClass::Link => Self::Always,
            _ if streams => Self::Always,
            RateClass::Heavy => Self::Heavy,
            RateClass::Default => Self::Ordinary,
            RateClass::Credential | RateClass::Refresh | RateClass::SignUp | RateClass::Mail => {
                Self::Credential
            }
        }
    }

    /// Its line in the queue, the first to be served first.
    fn line(self) -> Option<usize> {
        match self {
            Self::Credential => Some(0),
            Self::Ordinary => Some(1),
            Self::Heavy => Some(2),
            Self::Always => None,
        }
    }

    /// How much of a queue it may see filled.
    fn room(self, queue: usize) -> usize {
        match self {
            Self::Heavy => queue / 2,
            Self::Ordinary => queue * 3 / 4,
            Self::Credential | Self::Always => queue,
        }
    }
}

/// A call on its way to a service.
#[derive(Debug)]
pub(crate) struct Call<'c> {
    pub(crate) service: &'static str,
    pub(crate) policy: &'static MethodPolicy,
    pub(crate) class: RateClass,
    pub(crate) deadline: Option<Instant>,
    pub(crate) marks: &'c Marks,
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Permit<'l> {
    _pass: Pass,
    gate: &'l Arc<Gate>,
    /// `None` once it was used, and for streams: how long one takes says nothing.
    usual: Option<&'l Usual>,
    deadline: Option<Instant>,
    marks: &'l Marks,
    asked: Instant,
    entered: Instant,
}

impl Load {
    pub(crate) fn new(config: &ConcurrencyConfig, services: &[&'static str]) -> anyhow::Result<Self> {
        let ConcurrencyConfig { initial, least, most, .. } = *config;
        anyhow::ensure!(
            1 <= least && least <= initial && initial <= most,
            "[concurrency] needs 1 <= least <= initial <= most"
        );
        let gates = services.iter().map(|service| (*service, Gate::new(config))).collect();
        let usual = Contract::get().methods().map(|method| (method.path.as_str(), Usual::new(0))).collect();
        Ok(Self { gates, usual })
    }

    /// Shows operators the figures of the moment whenever they ask for the metrics.
    pub(crate) fn show_at_scrapes(self: &Arc<Self>) {
        let load = Arc::downgrade(self);
        telemetry::at_scrape(move || load.upgrade().map(|load| load.show()).is_some());
    }

    fn show(&self) {
        for (service, (inflight, limit, waiting)) in self.figures() {
            let gauge = |gauge: metrics::Gauge, count: usize| gauge.set(count as f64);
            gauge(metrics::gauge!("tollgate_edge_concurrency_inflight", "service" => service), inflight);
            gauge(metrics::gauge!("tollgate_edge_concurrency_limit", "service" => service), limit);
            gauge(metrics::gauge!("tollgate_edge_concurrency_waiting", "service" => service), waiting);
        }
    }

    /// Lets a call through to its service, at once or after a short wait.
    pub(crate) async fn enter<'l>(&'l self, call: &Call<'l>) -> Result<Permit<'l>, Refusal> {
        let Call { service, policy, class, deadline, marks } = *call;
        marks.goes_to(service);
        let asked = Instant::now();
        let Some(gate) = self.gates.get(service) else {
            return Err(Error::internal(anyhow::anyhow!("there is no way into {service}")).into());
        };
        let priority = Priority::of(policy, class);
        match gate.enter(priority).await {
            Ok((pass, has_waited)) => {
                let usual = (priority != Priority::Always).then(|| self.usual.get(policy.path.as_str()));
                let (usual, entered) = (usual.flatten(), if has_waited { Instant::now() } else { asked });
                Ok(Permit { _pass: pass, gate, usual, deadline, marks, asked, entered })
            }
            Err(full) => {
                let why = match full {
                    gate::Full::Queue => "full",
                    gate::Full::Waited => "late",
                };
                metrics::counter!("tollgate_edge_shed_total", "service" => service, "why" => why)
                    .increment(1);
                tracing::debug!(service, why, "a call was shed");
                Err(overloaded())
            }
        }
    }

    /// Makes a call when it is let through. What it takes is measured until the service begins to answer.
    pub(crate) async fn around<T>(
        &self,
        call: &Call<'_>,
        work: impl Future<Output = service_kit::Result<T>>,
    ) -> Result<T, Refusal> {
        let permit = self.enter(call).await?;
        let answer = work.await?;
        permit.answered();
        Ok(answer)
    }

    /// Calls under way, the limit and those that wait, of each service by name.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (&'static str, (usize, usize, usize))> {
        self.gates.iter().map(|(service, gate)| (*service, gate.figures()))
    }
}

impl Permit<'_> {
    /// The service has begun to answer, whatever it says: calls that it refuses are work too.
    pub(crate) fn answered(mut self) {
        let took = self.entered.elapsed();
        self.marks.called(self.entered - self.asked, took);
        if let Some(usual) = self.usual.take() {
            self.gate.answered(usual, took);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // A call that was given up because its time was over; one whose client has left says nothing.
        if self.usual.is_some() && self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.gate.dropped();
        }
    }
}

fn overloaded() -> Refusal {
    let error = Error::new(Kind::Unavailable, "OVERLOADED", "there is more to do than can be done right now");
    Refusal::from(error.retry_after(std::time::Duration::from_secs(1))).of_type(Problem::ReducedCapacity)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::{Load, Priority};
    use crate::config::ConcurrencyConfig;

    #[tokio::test]
    async fn operators_see_what_is_under_way_when_they_ask() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = |load: &Load| {
            metrics::with_local_recorder(&recorder, || load.show());
            recorder.handle().render()
        };
        let config = ConcurrencyConfig { initial: 2, least: 1, most: 3, queue: 8, wait_ms: 1_000 };
        let load = Load::new(&config, &["a-service"]).unwrap();
        let seen = |inflight: usize, waiting: usize| {
            let text = shown(&load);
            for (name, count) in [("inflight", inflight), ("limit", 2), ("waiting", waiting)] {
                let line = format!("tollgate_edge_concurrency_{name}{{service=\"a-service\"}} {count}\n");
                assert!(text.contains(&line), "{line}{text}");
            }
        };
        seen(0, 0);
        let gate = &load.gates["a-service"];
        let first = gate.enter(Priority::Ordinary).await.unwrap();
        seen(1, 0);
        let second = gate.enter(Priority::Ordinary).await.unwrap();
        let mut third = Box::pin(gate.enter(Priority::Ordinary));
        assert!(third.as_mut().now_or_never().is_none());
        seen(2, 1);
        drop((first, second));
        let third = third.await.unwrap();
        seen(1, 0);
        drop(third);
        seen(0, 0);
    }
}
