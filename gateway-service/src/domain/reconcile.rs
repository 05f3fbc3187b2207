//! Reconciliation: what project-service wants of a gateway, compared with the newest of its log.
//!
//! Events come through project-service's outbox, and none is lost there. This finds what was lost all the same:
//! by a database that came back from a backup, or by somebody's hand. The log is read first, then what is wanted:
//! whatever the log knows, project-service knew before. A repair is the very event that is missing, with its own
//! id; it is written only while the log still is what was read. So it cannot be doubled, whoever else writes.

mod drift;
mod plan;
mod schedule;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use service_kit::{
    Clock, Result,
    bus::{Bus, Message},
};

use self::plan::Plan;
pub(crate) use self::{
    drift::Drifted,
    plan::{Repair, Told, Wanted},
};
use crate::{config::LinkConfig, domain::log::SUBJECT, store::ReconcileStore};

/// How many repairs one transaction writes.
const CHUNK: usize = 200;

/// Who owns what is wanted.
#[async_trait]
pub(crate) trait WantedState: fmt::Debug + Send + Sync + 'static {
    /// What is wanted of a gateway that serves on `vhost`, each with its event. UNAVAILABLE when it cannot be had.
    async fn wanted(&self, gateway_id: &str, vhost: &str) -> Result<Vec<Wanted>>;
}

/// What came of a look at one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The log says what is wanted.
    Same,
    /// So many events were appended.
    Repaired(usize),
    /// Something is to be removed, unless the next look finds it wanted.
    Suspect,
    /// Too much would be removed: an operator must ask for it.
    Refused,
    /// There is no such gateway (any more).
    Gone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Repaired(_) => "repaired",
            Self::Suspect => "suspect",
            Self::Refused => "refused",
            Self::Gone => "gone",
        }
    }
}

/// What a look found that nobody wants any more: artifacts and the revisions that deployed them.
type Suspects = BTreeMap<String, i64>;

/// Compares and repairs. Clones share what they suspect.
#[derive(Debug, Clone)]
pub(crate) struct Reconciliation {
    pub(crate) store: Arc<dyn ReconcileStore>,
    pub(crate) wanted: Arc<dyn WantedState>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
    pub(crate) link: LinkConfig,
    /// By gateway, with the time of the first look.
    pub(crate) suspects: Arc<Mutex<HashMap<String, (Instant, Suspects)>>>,
}

impl Reconciliation {
    /// Looks at one gateway and appends what its log lacks. With `by_operator` also what would be refused, or
    /// looked at once more.
    pub(crate) async fn look(&self, gateway_id: &str, by_operator: bool) -> Result<Outcome> {
        let looked = self.compared(gateway_id, by_operator).await;
        let outcome = looked.as_ref().map_or("unavailable", |outcome| outcome.name());
        metrics::counter!("tollgate_gateway_reconciliations_total", "outcome" => outcome).increment(1);
        looked
    }

    async fn compared(&self, gateway_id: &str, by_operator: bool) -> Result<Outcome> {
        let Some((vhost, told)) = self.store.told(gateway_id).await? else { return Ok(Outcome::Gone) };
        let wanted = self.wanted.wanted(gateway_id, &vhost).await?;
        let mut plan = Plan::of(gateway_id, &told, &wanted);
        if plan.is_wipe() && !by_operator {
            tracing::error!(
                gateway = gateway_id,
                removals = plan.removals(),
                deployed = plan.deployed,
                "project-service wants most of what is deployed removed: not done unless an operator asks for a \
                 full resync"
            );
            return Ok(Outcome::Refused);
        }
        let suspect = !plan.unknown.is_empty() && !by_operator && !self.confirmed(gateway_id, &plan.unknown);
        if suspect {
            if wanted.is_empty() && plan.deployed > 0 {
                let deployed = plan.deployed;
                tracing::warn!(
                    gateway = gateway_id,
                    deployed,
                    "project-service wants nothing of what is deployed"
                );
            }
            plan.unknown.clear();
        } else {
            self.forget(gateway_id);
        }
        let repairs: Vec<Repair> = plan.changes.into_iter().chain(plan.unknown).collect();
        let mut repaired = 0;
        for some in repairs.chunks(CHUNK) {
            repaired += self.store.repair(gateway_id, some, self.clock.now_ms()).await?;
        }
        if repaired > 0 {
            self.tell(gateway_id, repaired).await;
            return Ok(Outcome::Repaired(repaired));
        }
        Ok(if suspect { Outcome::Suspect } else { Outcome::Same })
    }

    /// Whether an earlier look, long enough ago, found the same to be removed.
    fn confirmed(&self, gateway_id: &str, unknown: &[Repair]) -> bool {
        let found: Suspects = unknown.iter().map(|one| (one.artifact_id.clone(), one.seen)).collect();
        let mut suspects = self.suspects();
        match suspects.get(gateway_id) {
            Some((since, known)) if *known == found => since.elapsed() >= self.pause() / 2,
            _ => {
                suspects.insert(gateway_id.to_owned(), (Instant::now(), found));
                false
            }
        }
    }

    fn forget(&self, gateway_id: &str) {
        self.suspects().remove(gateway_id);
    }

    fn suspects(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Suspects)>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, gateway_id: &str, repaired: usize) {
        metrics::counter!("tollgate_gateway_repaired_events_total")
            .increment(u64::try_from(repaired).unwrap_or(u64::MAX));
        tracing::warn!(gateway = gateway_id, events = repaired, "the log lacked events: repaired");
        let hint = Message { subject: format!("{SUBJECT}{gateway_id}"), payload: Bytes::new() };
        if let Err(error) = self.bus.publish(hint).await {
            tracing::warn!(gateway = gateway_id, %error, "hint not published: the next look at the log finds it");
        }
    }

    /// How long it is from one look at a gateway to the next.
    fn pause(&self) -> Duration {
        Duration::from_millis(self.link.reconcile_ms.max(1))
    }
}
