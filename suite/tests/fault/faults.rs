//! What goes wrong in a fault test, and how it ends.

use std::{collections::BTreeMap, time::Duration};

use suite::controller::Dice;
use tokio::time::{Instant, sleep_until};

use super::{fleet::Fleet, platform::Platform};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillGatewayService,
    FreezeGatewayService,
    CutSockets,
    RestartController,
    KillEdge,
    FreezeEdge,
    RestartPostgres,
    KillRedis,
    FlushRedis,
    KillProjectService,
}

const ALL: [Fault; 10] = [
    Fault::KillGatewayService,
    Fault::FreezeGatewayService,
    Fault::CutSockets,
    Fault::RestartController,
    Fault::KillEdge,
    Fault::FreezeEdge,
    Fault::RestartPostgres,
    Fault::KillRedis,
    Fault::FlushRedis,
    Fault::KillProjectService,
];

/// What is to be put right, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    Gateway(usize),
    Thaw(usize),
    Edge(usize),
    ThawEdge(usize),
    Redis,
    Project,
}

/// Injects faults from a seed.
pub(crate) struct Injector {
    pub(crate) dice: Dice,
    /// How long a process stands still, in seconds: from, and how much longer at most.
    pub(crate) freeze: (u64, u64),
    /// The mean time between two faults.
    pub(crate) every: Duration,
    pub(crate) injected: BTreeMap<Fault, usize>,
    due: Vec<(Instant, Recovery)>,
}

impl Injector {
    pub(crate) fn new(dice: Dice, freeze: (u64, u64), every: Duration) -> Self {
        Self { dice, freeze, every, injected: BTreeMap::new(), due: Vec::new() }
    }

    /// Lets things go wrong until `end`, every kind of them at least once if there is time, and puts right what is
    /// left.
    pub(crate) async fn run(&mut self, platform: &mut Platform, fleet: &mut Fleet, end: Instant) {
        let mut hand: Vec<Fault> = Vec::new();
        let mut next = Instant::now() + self.every;
        while next < end {
            self.recover_until(platform, next).await;
            if hand.is_empty() {
                hand.extend(ALL);
            }
            let fault = hand.swap_remove(self.dice.below(hand.len()));
            if self.inject(fault, platform, fleet).await {
                tracing::info!(?fault, "injected");
                *self.injected.entry(fault).or_default() += 1;
            }
            next = Instant::now() + self.every.mul_f64(0.5 + self.dice.share());
        }
        self.recover_until(platform, end).await;
        while let Some(at) = self.due.iter().map(|(at, _)| *at).max() {
            self.recover_until(platform, at).await;
        }
        for node in platform.nodes() {
            node.ready().await;
        }
    }

    /// Says whether it could be done now.
    async fn inject(&mut self, fault: Fault, platform: &mut Platform, fleet: &mut Fleet) -> bool {
        let soon = Instant::now() + Duration::from_millis(500 + self.dice.any() % 2_500);
        match fault {
            Fault::KillGatewayService | Fault::FreezeGatewayService => {
                let at = self.dice.below(platform.gateways.len());
                if self
                    .is_down(|down| matches!(down, Recovery::Gateway(one) | Recovery::Thaw(one) if one == at))
                {
                    return false;
                }
                if fault == Fault::KillGatewayService {
                    platform.gateways[at].kill();
                    self.due.push((soon, Recovery::Gateway(at)));
                } else {
                    platform.gateways[at].signal("-STOP");
                    let thaw = self.thaw_at();
                    self.due.push((thaw, Recovery::Thaw(at)));
                }
            }
            Fault::CutSockets => fleet.cut(3, self.dice.below(3)),
            Fault::RestartController => {
                for _ in 0..fleet.members.len().div_ceil(10) {
                    let at = self.dice.below(fleet.members.len());
                    fleet.restart(at).await;
                }
            }
            Fault::KillEdge | Fault::FreezeEdge => {
                let at = self.dice.below(platform.edges.len());
                if self.is_down(
                    |down| matches!(down, Recovery::Edge(one) | Recovery::ThawEdge(one) if one == at),
                ) {
                    return false;
                }
                if fault == Fault::KillEdge {
                    platform.edges[at].kill();
                    self.due.push((soon, Recovery::Edge(at)));
                } else {
                    platform.edges[at].signal("-STOP");
                    let thaw = self.thaw_at();
                    self.due.push((thaw, Recovery::ThawEdge(at)));
                }
            }
            Fault::RestartPostgres => {
                let postgres = &platform.postgres;
                tokio::task::block_in_place(|| postgres.restart());
            }
            Fault::KillRedis => {
                platform.redis.stop();
                self.due.push((soon, Recovery::Redis));
            }
            Fault::FlushRedis if self.is_down(|down| down == Recovery::Redis) => return false,
            Fault::FlushRedis => {
                let redis = &platform.redis;
                tokio::task::block_in_place(|| redis.flush());
            }
            Fault::KillProjectService => {
                if self.is_down(|down| down == Recovery::Project) {
                    return false;
                }
                platform.project.kill();
                self.due.push((soon, Recovery::Project));
            }
        }
        true
    }

    /// When a process that is to stand still now goes on.
    fn thaw_at(&mut self) -> Instant {
        Instant::now() + Duration::from_secs(self.freeze.0 + self.dice.any() % self.freeze.1)
    }

    fn is_down(&self, what: impl Fn(Recovery) -> bool) -> bool {
        self.due.iter().any(|(_, recovery)| what(*recovery))
    }

    async fn recover_until(&mut self, platform: &mut Platform, until: Instant) {
        loop {
            let tick = Instant::now() + Duration::from_millis(200);
            let now = Instant::now();
            let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
            self.due = later;
            let due: Vec<(Instant, Recovery)> = due;
            for (_, recovery) in due {
                match recovery {
                    Recovery::Gateway(at) => platform.gateways[at].start(),
                    Recovery::Thaw(at) => platform.gateways[at].signal("-CONT"),
                    Recovery::Edge(at) => platform.edges[at].start(),
                    Recovery::ThawEdge(at) => platform.edges[at].signal("-CONT"),
                    Recovery::Redis => {
                        let redis = &mut platform.redis;
                        tokio::task::block_in_place(|| redis.restart());
                    }
                    Recovery::Project => platform.project.start(),
                }
            }
            for node in platform.nodes() {
                if node.revive() {
                    tracing::info!(node = node.name, "ended by itself, started again");
                }
            }
            if Instant::now() >= until {
                return;
            }
            sleep_until(tick.min(until)).await;
        }
    }
}
