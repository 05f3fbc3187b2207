//! The gateways of a fault test: of several kinds, spread over the edges.

use std::collections::BTreeMap;

use suite::{
    controller::{Controller, Dice, Options, State, Store, Tempo},
    gateway::GatewayClient,
    transport::Transport,
};

use super::platform::{Door, Platform};
use crate::support::Account;

/// A controller, and how to start it again.
pub(crate) struct Member {
    pub(crate) gateway: String,
    pub(crate) kind: String,
    pub(crate) running: Option<Controller>,
    token: String,
    door: Door,
    transport: Transport,
    resumes_as: Option<String>,
    store: Store,
}

/// All controllers.
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
    /// What those knew that were started again.
    pub(crate) past: Vec<(String, State)>,
}

impl Member {
    fn start(&mut self) {
        let options = Options {
            transport: self.transport,
            // Signs of life come every 4 s here, not every 20 s.
            tempo: Tempo {
                factor: 0.1,
                silence: std::time::Duration::from_secs(12),
                heartbeat: std::time::Duration::from_secs(4),
            },
            store: self.store.clone(),
            resumes_as: self.resumes_as.clone(),
            ..Options::default()
        };
        let (door, token) = (self.door.clone(), self.token.clone());
        let client = move || GatewayClient::new(&door.client(), &token);
        self.running = Some(Controller::spawn_as(options, client));
    }

    pub(crate) fn state(&self) -> State {
        self.running.as_ref().expect("a controller that runs").state()
    }
}

impl Fleet {
    /// Starts `size` controllers: a fifth in pairs on one database, a tenth that keep their revision.
    pub(crate) async fn start(platform: &Platform, account: &Account, size: usize, dice: &mut Dice) -> Self {
        let mut members: Vec<Member> = Vec::new();
        while members.len() < size {
            let gateway = account.gateway().await;
            let store = Store::default();
            let throw = members.len() % 10;
            let (count, resumes) = match throw {
                3 if members.len() + 2 <= size => (2, false),
                8 => (1, true),
                _ => (1, false),
            };
            for number in 0..count {
                let transport = match dice.below(10) {
                    // A WebSocket has no place for what it needs.
                    one if resumes && one < 5 => Transport::Grpc,
                    _ if resumes => Transport::Sse,
                    0 | 1 => Transport::Grpc,
                    2 => Transport::Sse,
                    _ => Transport::WebSocket,
                };
                let kind = match (count, resumes) {
                    (2, _) => "pair",
                    (_, true) => "resuming",
                    _ => "single",
                };
                members.push(Member {
                    gateway: gateway.id.clone(),
                    kind: format!("{kind} {}", transport.name()),
                    running: None,
                    token: gateway.token.clone(),
                    door: platform.door(members.len() + number),
                    transport,
                    resumes_as: resumes.then(|| "instance-1".to_owned()),
                    store: store.clone(),
                });
            }
        }
        members.iter_mut().for_each(Member::start);
        Self { members, past: Vec::new() }
    }

    /// The gateways, each once.
    pub(crate) fn gateways(&self) -> Vec<String> {
        let mut gateways: Vec<String> = self.members.iter().map(|member| member.gateway.clone()).collect();
        gateways.dedup();
        gateways
    }

    /// Ends a controller and starts it again on its database.
    pub(crate) async fn restart(&mut self, at: usize) {
        let member = &mut self.members[at];
        if let Some(running) = member.running.take() {
            self.past.push((member.gateway.clone(), running.stop().await));
        }
        member.start();
    }

    /// Cuts the links of every `nth` controller.
    pub(crate) fn cut(&self, nth: usize, first: usize) {
        for member in self.members.iter().skip(first).step_by(nth) {
            if let Some(running) = &member.running {
                running.cut();
            }
        }
    }

    /// What everybody knew, those that were started again first.
    pub(crate) fn states(&self) -> Vec<(String, State)> {
        let now = self.members.iter().map(|member| (member.gateway.clone(), member.state()));
        self.past.iter().cloned().chain(now).collect()
    }

    /// How many controllers there are of each kind.
    pub(crate) fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for member in &self.members {
            *kinds.entry(member.kind.clone()).or_default() += 1;
        }
        kinds
    }
}
