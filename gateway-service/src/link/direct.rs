//! Events go out with the transaction that appends them: what the connections of this instance can take is taken out
//! of the log in it, and is on its way when the append has been committed. Everything else the lanes find.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::OwnedMutexGuard;

use super::{
    connection::Link,
    delivery::{ask, give},
    hub::{Hub, Lane},
};
use crate::domain::log::{Delivery, Taken};

/// Lanes that wait for an append: nobody else gives them anything before this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    hub: Hub,
    claimed: Vec<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    lane: Arc<Lane>,
    ready: Vec<Arc<Link>>,
    delivery: Delivery,
    is_given: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Hub {
    /// Claims those of these gateways that are connected here and can take something now. It never waits: a lane that
    /// is busy looks at its log itself.
    pub(crate) fn claim<'a>(&self, gateway_ids: impl Iterator<Item = &'a str>) -> Claim {
        let gateways: BTreeSet<&str> = gateway_ids.collect();
        let claim = |id| {
            let lane = self.lane(id)?;
            let turn = lane.turn.clone().try_lock_owned().ok()?;
            let (ready, delivery) = ask(&lane, &lane.links())?;
            Some(Claimed { lane, ready, delivery, is_given: false, _turn: turn })
        };
        Claim { hub: self.clone(), claimed: gateways.into_iter().filter_map(claim).collect() }
    }

    /// A hint says that a log goes up to here.
    pub(super) fn has_grown(&self, gateway_id: &str, head: Option<i64>) {
        if let Some(lane) = self.lane(gateway_id)
            && head.is_none_or(|head| lane.given() < head)
        {
            lane.wake.notify_one();
        }
    }
}

impl Claim {
    /// What to take out of the logs, together with the append.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.claimed.iter().map(|claimed| claimed.delivery.clone()).collect()
    }

    /// Sends what was taken, one for each delivery.
    pub(crate) fn give(mut self, taken: Vec<Taken>) {
        for (claimed, taken) in self.claimed.iter_mut().zip(taken) {
            let (lane, last) = (&claimed.lane, taken.last);
            match give(&self.hub, lane, &claimed.ready, taken) {
                Ok(more) => {
                    claimed.is_given = true;
                    // Instances that resume are given to by their lane.
                    if more || lane.links().iter().any(|link| link.resume.is_some()) {
                        lane.wake.notify_one();
                    } else {
                        lane.set_given(last);
                    }
                }
                // It is told again by the lane, which finds the same.
                Err(error) => tracing::warn!(gateway = lane.gateway_id, %error, "events not sent yet"),
            }
        }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // Whether the append was committed is not known.
        if !self.is_given {
            self.lane.wake.notify_one();
        }
    }
}
