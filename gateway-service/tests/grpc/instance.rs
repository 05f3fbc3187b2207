//! A gateway instance of the resumable kind: it keeps what it has applied, answers everything in order, and
//! goes on from there on its next connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proto::gateway::{
    Event, EventAck, Heartbeat, Hello, Snapshot, gateway_frame::Frame as From, platform_frame::Frame as To,
};
use service_kit::testing::TestDatabase;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::{
    gateway::{TestGateway, payload},
    harness::{World, quick},
};

pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) token: String,
    /// What it runs: deployments by artifact.
    pub(crate) running: BTreeMap<String, String>,
    /// The newest revision that it has applied.
    pub(crate) applied: u64,
    /// Artifacts whose deployments it refuses.
    pub(crate) refuses: BTreeSet<String>,
    /// Whether it says what it runs when it connects.
    pub(crate) says_hash: bool,
}

/// The capabilities of an instance.
pub(crate) fn able() -> Vec<String> {
    ["ack", "resume", "fly"].map(str::to_owned).to_vec()
}

/// An answer to an event.
pub(crate) fn answer(event: &Event, refusal: &str) -> From {
    From::EventAck(EventAck {
        revision: event.revision,
        nonce: event.correlation_id.clone(),
        error_code: refusal.to_owned(),
        error_message: String::new(),
    })
}

/// An answer to a snapshot.
pub(crate) fn answer_all(snapshot: &Snapshot, refusal: &str) -> From {
    From::EventAck(EventAck {
        revision: snapshot.revision,
        nonce: snapshot.nonce.clone(),
        error_code: refusal.to_owned(),
        error_message: String::new(),
    })
}

impl Instance {
    pub(crate) fn new(id: &str, token: &str) -> Self {
        Self {
            id: id.to_owned(),
            token: token.to_owned(),
            running: BTreeMap::new(),
            applied: 0,
            refuses: BTreeSet::new(),
            says_hash: true,
        }
    }

    pub(crate) fn hash(&self) -> String {
        let lines: String = self.running.iter().fold(String::new(), |mut lines, (artifact, deployment)| {
            writeln!(lines, "{artifact} {deployment}").unwrap();
            lines
        });
        Sha256::digest(lines).iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    pub(crate) fn hello(&self) -> From {
        From::Hello(Hello {
            instance_id: self.id.clone(),
            version: "2.0.0".into(),
            capabilities: able(),
            applied_revision: self.applied,
            state_hash: if self.says_hash { self.hash() } else { String::new() },
            ..Hello::default()
        })
    }

    pub(crate) fn beat(&self) -> From {
        From::Heartbeat(Heartbeat { revision: self.applied, state_hash: self.hash() })
    }

    pub(crate) async fn try_connect(&self, world: &World) -> Result<TestGateway, Status> {
        TestGateway::try_connect(world, &self.token, self.hello()).await
    }

    pub(crate) async fn connect(&self, world: &World) -> TestGateway {
        self.try_connect(world).await.unwrap()
    }

    /// Connects for the first time: it gets the whole state, and applies it.
    pub(crate) async fn begin(&mut self, world: &World) -> TestGateway {
        let mut link = self.connect(world).await;
        let parts = snapshot(&mut link).await;
        self.apply_all(&link, &parts).await;
        link
    }

    /// Performs an event. Says why not.
    pub(crate) fn apply(&mut self, event: &Event) -> &'static str {
        let said = payload(event);
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let api = text("apiId");
        if self.refuses.contains(&api) {
            return "BAD_ARTIFACT";
        }
        match event.r#type.as_str() {
            "api.deployed" => drop(self.running.insert(api, text("deploymentId"))),
            "api.undeployed" | "api.deleted" => drop(self.running.remove(&api)),
            _ => {}
        }
        self.applied = event.revision;
        ""
    }

    /// Performs an event and answers.
    pub(crate) async fn perform(&mut self, link: &TestGateway, event: &Event) {
        let refusal = self.apply(event);
        link.send(answer(event, refusal)).await;
    }

    /// Replaces what it runs, and says what it refuses and that the rest is done.
    pub(crate) async fn apply_all(&mut self, link: &TestGateway, parts: &[Snapshot]) {
        let before = std::mem::take(&mut self.running);
        for event in parts.iter().flat_map(|part| &part.events) {
            let refusal = self.apply(event);
            if !refusal.is_empty() {
                let api = payload(event)["apiId"].as_str().unwrap().to_owned();
                if let Some(last_good) = before.get(&api) {
                    self.running.insert(api, last_good.clone());
                }
                link.send(answer(event, refusal)).await;
            }
        }
        let last = parts.last().unwrap();
        self.applied = last.revision;
        link.send(answer_all(last, "")).await;
    }
}

/// The parts of a snapshot, which come next.
pub(crate) async fn snapshot(link: &mut TestGateway) -> Vec<Snapshot> {
    let mut parts: Vec<Snapshot> = Vec::new();
    while parts.last().is_none_or(|part| !part.last) {
        match link.frame().await {
            Some(To::Snapshot(part)) => parts.push(part),
            Some(To::Heartbeat(_)) => {}
            other => panic!("no snapshot: {other:?}"),
        }
    }
    let first = &parts[0];
    assert!(parts.iter().all(|part| (part.revision, &part.nonce) == (first.revision, &first.nonce)));
    assert!(service_kit::id::is_id(&first.nonce));
    parts
}

/// Worlds whose platform says often that it lives: between two such signs everything else has come.
pub(crate) async fn beating() -> Vec<World> {
    let mut limits = quick();
    limits.heartbeat_ms = 50;
    let mut worlds = Vec::new();
    for database in TestDatabase::both() {
        worlds.push(World::start(database, limits).await);
    }
    worlds
}

/// The next frame; `None` when a sign of life comes first.
pub(crate) async fn frame_or_beat(link: &mut TestGateway) -> Option<To> {
    match link.frame().await.expect("the link stands") {
        To::Heartbeat(_) => None,
        frame => Some(frame),
    }
}

/// The artifacts and deployments of a snapshot.
pub(crate) fn contents(parts: &[Snapshot]) -> BTreeMap<String, String> {
    let events = parts.iter().flat_map(|part| &part.events);
    let entry = |event: &Event| {
        let said = payload(event);
        (said["apiId"].as_str().unwrap().to_owned(), said["deploymentId"].as_str().unwrap().to_owned())
    };
    events.map(entry).collect()
}
