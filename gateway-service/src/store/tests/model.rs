//! The log against a model of gateways that keep the wire contract: whatever is appended, sent, lost, answered,
//! refused and repeated in whatever order, and wherever the clock jumps.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use proto::project::{DeploymentReport, DeploymentStatus};
use service_kit::{Clock, Ids, db::Database, testing::TestDatabase};

use super::{MIB, answer, gateway, new_event};
use crate::{
    domain::{
        acks::{AckFrom, REPORTS, Verdict},
        log::{Delivery, NewEvent, Pick, Requeue, Stamped, Taken},
        retries::RetryRule,
    },
    store::{Batch, Stores},
};

const LINKS: usize = 2;
const KEYS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A new deployment of an API, or the removal of its newest.
    Append(usize, bool),
    /// The same, and a connection gets it at once, with what it has not got yet.
    Direct(usize, bool, usize),
    /// Sends the next events on a connection.
    Deliver(usize, usize),
    /// Sends again what a connection has got before.
    Again(usize, usize),
    /// The gateway reads one event of a connection and performs it, or refuses.
    Perform(usize, bool),
    /// The platform reads up to so many answers of a connection at once, the first of them twice.
    Answer(usize, usize),
    /// A connection is lost with everything on its way, and there is a new one.
    Reconnect(usize),
    Requeue(bool),
    Jump(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let link = 0..LINKS;
    prop_oneof![
        3 => (0..KEYS, any::<bool>()).prop_map(|(key, deploy)| Step::Append(key, deploy)),
        2 => (0..KEYS, any::<bool>(), link.clone()).prop_map(|(key, deploy, link)| Step::Direct(key, deploy, link)),
        4 => (link.clone(), 1..4usize).prop_map(|(link, most)| Step::Deliver(link, most)),
        1 => (link.clone(), 0..8usize).prop_map(|(link, which)| Step::Again(link, which)),
        4 => (link.clone(), prop::bool::weighted(0.8)).prop_map(|(link, well)| Step::Perform(link, well)),
        4 => (link.clone(), 1..4usize).prop_map(|(link, most)| Step::Answer(link, most)),
        1 => link.prop_map(Step::Reconnect),
        1 => any::<bool>().prop_map(Step::Requeue),
        1 => prop_oneof![Just(-300_000), Just(300_000), 1..50i64].prop_map(Step::Jump),
    ]
}

/// A connection: what was sent on it, what is on its way, and what was answered.
#[derive(Debug, Default)]
struct Line {
    cursor: i64,
    sent: Vec<i64>,
    events: VecDeque<Stamped>,
    answers: VecDeque<AckFrom>,
}

/// What a gateway has of an API: the deployment that it names, whether that runs, and when it was last changed.
#[derive(Debug, Clone, Default)]
struct Held {
    deployment_id: String,
    runs: bool,
    performed_at: i64,
}

/// Two connections of one gateway that share what they know, and the platform's log of it.
struct World {
    stores: Stores,
    ids: Ids,
    gateway_id: String,
    now: i64,
    lines: [Line; LINKS],
    /// By API: what the gateway has.
    held: HashMap<String, Held>,
    /// By API: the newest sending.
    sent_at: HashMap<String, i64>,
    /// By API: the events, oldest first: type and deployment.
    wanted: BTreeMap<String, Vec<(&'static str, String)>>,
    said: HashSet<(String, String, i32)>,
}

impl World {
    async fn new(stores: Stores, ids: Ids) -> Self {
        let gateway_id = gateway(&stores, &ids).await;
        Self {
            stores,
            ids,
            gateway_id,
            now: 1_766_000_000_000,
            lines: Default::default(),
            held: HashMap::new(),
            sent_at: HashMap::new(),
            wanted: BTreeMap::new(),
            said: HashSet::new(),
        }
    }

    fn api(&self, key: usize) -> String {
        format!("{}-{key}", &self.gateway_id[..30])
    }

    async fn step(&mut self, step: Step) {
        self.now += 1;
        match step {
            Step::Append(key, deploy) => self.append(key, deploy, None).await,
            Step::Direct(key, deploy, line) => self.append(key, deploy, Some(line)).await,
            Step::Deliver(line, most) => drop(self.deliver(line, most).await),
            Step::Again(line, which) => self.again(line, which).await,
            Step::Perform(line, well) => self.perform(line, well),
            Step::Answer(line, most) => self.answer(line, most).await,
            Step::Reconnect(line) => self.lines[line] = Line::default(),
            Step::Requeue(full) => {
                let asked = Requeue { gateway_id: &self.gateway_id, artifact_id: None, full };
                self.stores.events.requeue(asked, &self.ids, self.now).await.unwrap();
            }
            Step::Jump(by) => self.now += by,
        }
    }

    /// With a line: what that takes goes out in the same transaction.
    async fn append(&mut self, key: usize, deploy: bool, line: Option<usize>) {
        let (api, newest) = (self.api(key), self.ids.next());
        let history = self.wanted.entry(api.clone()).or_default();
        let (event_type, deployment_id) = match (deploy, history.last()) {
            (false, Some(("api.deployed", last))) => ("api.undeployed", last.clone()),
            _ => ("api.deployed", newest),
        };
        history.push((event_type, deployment_id.clone()));
        let id = self.ids.next();
        let payload_json = format!(r#"{{"deploymentId":"{deployment_id}"}}"#);
        let event = new_event(&self.ids, &self.gateway_id, &api, event_type);
        let event = NewEvent { id, deployment_id, payload_json, ..event };
        let twice = [event.clone(), event];
        let delivery = line.map(|line| Delivery {
            gateway_id: self.gateway_id.clone(),
            pick: Pick::After { revision: self.lines[line].cursor, most: 3, bytes: MIB },
        });
        let mut appended = self.stores.events.append(&twice, delivery.as_slice(), self.now).await.unwrap();
        assert_eq!(appended.grown.keys().collect::<Vec<_>>(), [&self.gateway_id]);
        assert_eq!(appended.taken.len(), usize::from(line.is_some()));
        if let (Some(line), Some(taken)) = (line, appended.taken.pop()) {
            self.check_times(&taken);
            assert!(
                taken.more || taken.last == appended.grown[&self.gateway_id],
                "the new one is among them"
            );
            self.receive(line, taken);
        }
        assert!(self.stores.events.append(&twice, &[], self.now).await.unwrap().grown.is_empty());
    }

    async fn take(&mut self, pick: Pick) -> Taken {
        let delivery = Delivery { gateway_id: self.gateway_id.clone(), pick };
        let batch = Batch { deliveries: vec![delivery], answers: vec![] };
        let taken = self.stores.events.write(&batch, self.now).await.unwrap().taken.remove(0);
        self.check_times(&taken);
        taken
    }

    fn check_times(&mut self, taken: &Taken) {
        for stamped in &taken.events {
            let last = self.sent_at.insert(stamped.event.artifact_id.clone(), stamped.performed_at);
            assert!(last < Some(stamped.performed_at), "performedAt only grows");
        }
    }

    async fn deliver(&mut self, line: usize, most: usize) -> bool {
        let taken = self.take(Pick::After { revision: self.lines[line].cursor, most, bytes: MIB }).await;
        self.receive(line, taken)
    }

    fn receive(&mut self, line: usize, taken: Taken) -> bool {
        let line = &mut self.lines[line];
        for stamped in taken.events {
            assert!(stamped.event.revision > line.cursor, "the order never goes back");
            line.cursor = stamped.event.revision;
            line.sent.push(line.cursor);
            line.events.push_back(stamped);
        }
        line.cursor = taken.last.max(line.cursor);
        taken.more
    }

    async fn again(&mut self, line: usize, which: usize) {
        let sent = &self.lines[line].sent;
        let Some(revision) = sent.get(which % sent.len().max(1)).copied() else { return };
        let taken = self.take(Pick::Again(vec![revision])).await;
        assert!(taken.events.is_sorted_by_key(|stamped| stamped.event.revision));
        // What the connection has not got yet comes in its turn.
        let line = &mut self.lines[line];
        line.events.extend(taken.events.into_iter().filter(|stamped| stamped.event.revision <= line.cursor));
    }

    /// As the wire contract says: only what is newer counts, and what is there is removed by its own name only.
    fn perform(&mut self, line: usize, well: bool) {
        let Some(Stamped { event, performed_at }) = self.lines[line].events.pop_front() else { return };
        let held = self.held.get(&event.artifact_id).cloned().unwrap_or_default();
        if performed_at <= held.performed_at {
            return;
        }
        let payload: serde_json::Value = serde_json::from_str(&event.payload_json).unwrap();
        let named = payload["deploymentId"].as_str().unwrap().to_owned();
        let runs = event.event_type == "api.deployed";
        let failure = match (well, runs || held.deployment_id.is_empty() || held.deployment_id == named) {
            (false, _) => Some("GATEWAY_PROCESSING_ERROR"),
            (true, false) => Some("DEPLOYMENT_ID_MISMATCH"),
            (true, true) => None,
        };
        if failure.is_none() {
            let held = Held { deployment_id: named.clone(), runs, performed_at };
            self.held.insert(event.artifact_id.clone(), held);
        }
        let mut answer = answer(&self.gateway_id, &event, performed_at, failure);
        answer.ack.deployment_id = named;
        self.lines[line].answers.push_back(answer);
    }

    async fn answer(&mut self, line: usize, most: usize) {
        let line = &mut self.lines[line];
        let mut answers: Vec<AckFrom> = line.answers.drain(..most.min(line.answers.len())).collect();
        let Some(first) = answers.first().cloned() else { return };
        answers.push(first);
        let count = answers.len();
        let batch = Batch { deliveries: vec![], answers };
        let verdicts = self.stores.events.write(&batch, self.now).await.unwrap().verdicts;
        assert_eq!(verdicts.len(), count);
        assert!(!matches!(verdicts.last(), Some(Verdict::Change(_))), "said twice, it counts once");
        assert!(!verdicts.contains(&Verdict::Fenced) && !verdicts.contains(&Verdict::Unknown));
    }

    /// From now on nothing is lost: everything is sent, performed and answered.
    async fn settle(&mut self) {
        for _ in 0..20 {
            // What was refused comes again by itself, sooner or later.
            self.now += 3_600_000;
            let rule = RetryRule { now: self.now, first_pause: 1, most: 10 };
            self.stores.retries.retry(std::slice::from_ref(&self.gateway_id), rule).await.unwrap();
            for line in 0..LINKS {
                while self.deliver(line, 3).await {}
                while !self.lines[line].events.is_empty() {
                    self.perform(line, true);
                }
                while !self.lines[line].answers.is_empty() {
                    self.answer(line, 3).await;
                }
            }
            // What is stale was not answered: it comes again, newer.
            self.lines = Default::default();
        }
        let taken = self.take(Pick::After { revision: 0, most: 100, bytes: MIB }).await;
        assert_eq!(taken, Taken::default(), "everything is answered");
        self.read_reports().await;
        for (api, history) in &self.wanted {
            let (event_type, deployment) = history.last().unwrap();
            let held = self.held.get(api).cloned().unwrap_or_default();
            let (runs, status) = match *event_type {
                "api.deployed" => (true, DeploymentStatus::Deployed),
                _ => (false, DeploymentStatus::Undeployed),
            };
            let is_right = held.runs == runs && (!runs || held.deployment_id == *deployment);
            assert!(is_right, "{api}: {held:?} after {history:?}");
            let said = self.said.contains(&(api.clone(), deployment.clone(), status.into()));
            assert!(said, "{api}: {status:?} of {deployment} is not reported: {history:?}");
        }
    }

    /// Reads the reports so far: each transition is reported once.
    async fn read_reports(&mut self) {
        let entries = self.stores.outbox.0.oldest(REPORTS, 10_000).await.unwrap();
        let mut seen = HashSet::new();
        for entry in entries {
            assert!(seen.insert(entry.id.clone()), "reported twice: {}", entry.id);
            let report = DeploymentReport::decode(entry.payload.as_slice()).unwrap();
            let apis = self.wanted.iter();
            let of = apis.filter(|(_, history)| history.iter().any(|(_, id)| *id == report.deployment_id));
            for (api, _) in of {
                self.said.insert((api.clone(), report.deployment_id.clone(), report.status));
            }
        }
    }
}

#[test]
fn nothing_is_lost_reordered_or_said_twice() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let test = TestDatabase::sqlite();
    let database = runtime.block_on(Database::open(&test.config, &sqlx::migrate!())).unwrap();
    let (stores, ids) = (Stores::new(&database), Ids::new(Clock::system()));
    proptest!(|(steps in vec(step(), 1..60))| {
        runtime.block_on(async {
            let mut world = World::new(stores.clone(), ids.clone()).await;
            for step in steps {
                world.step(step).await;
            }
            world.settle().await;
            assert!(stores.gateways.delete(&world.gateway_id, world.now).await.unwrap());
            stores.outbox.0.delete_through(REPORTS, i64::MAX).await.unwrap();
        });
    });
}
