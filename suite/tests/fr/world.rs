//! Where the requirements are tested: one process of the real binary on SQLite and one on PostgreSQL, which all tests
//! share, and which end with them.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, OnceLock},
};

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use service_kit::testing::{TestDatabase, reap_with_us};
use suite::{
    client::Client,
    transport::{Event, Frame, Greeting, Link, Transport},
};
use tokio::time::timeout;

use crate::support::{Account, GatewayAccount, PATIENCE, client, config_file, wait_for};

/// The transports that each requirement holds for.
pub(crate) const ALL: [Transport; 3] = [Transport::WebSocket, Transport::Grpc, Transport::Sse];

/// What is not acknowledged comes again while a test waits, and not while it acknowledges; everything is logged as lines of
/// JSON.
const SETTINGS: &str = "[edge.telemetry]\nformat = \"json\"\nlog = \"info,gateway_service=debug\"\n[gateway.link]\nredeliver_ms = 10000\n";

/// A running suite.
#[derive(Debug)]
pub(crate) struct World {
    /// Its database.
    pub(crate) name: &'static str,
    url: String,
    ca: PathBuf,
    log: PathBuf,
    _process: Mutex<(Child, ChildStdout)>,
    _databases: Vec<TestDatabase>,
}

/// Both worlds; they start with the first test that asks.
pub(crate) fn worlds() -> &'static [World; 2] {
    static WORLDS: OnceLock<[World; 2]> = OnceLock::new();
    WORLDS.get_or_init(|| {
        let mut text = SETTINGS.to_owned();
        let databases: Vec<TestDatabase> = ["auth", "project", "gateway"]
            .into_iter()
            .map(|section| {
                let database = TestDatabase::postgres();
                let (url, schema) = (database.config.url.expose_secret(), &database.config.schema);
                text += &format!("[{section}.database]\nurl = \"{url}\"\nschema = \"{schema}\"\n");
                database
            })
            .collect();
        [World::start("SQLite", SETTINGS, Vec::new()), World::start("PostgreSQL", &text, databases)]
    })
}

/// Runs a test in both worlds, over each transport, each time with a new account.
pub(crate) async fn everywhere(test: impl AsyncFn(&World, &Account, Transport)) {
    for world in worlds() {
        for transport in ALL {
            let account = world.account().await;
            test(world, &account, transport).await;
        }
    }
}

impl World {
    fn start(name: &'static str, settings: &str, databases: Vec<TestDatabase>) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let config = config_file(&folder, settings);
        let log = folder.join("stderr.log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join("data"))
            .arg("--config")
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        reap_with_us(&child, &folder).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(&mut stdout).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("ready ").unwrap_or_else(|| {
            panic!("{name} does not start: {}", std::fs::read_to_string(&log).unwrap_or_default())
        });
        let ca = suite::ca_file(&folder.join("data"));
        Self {
            name,
            url: url.to_owned(),
            ca,
            log,
            _process: Mutex::new((child, stdout)),
            _databases: databases,
        }
    }

    /// A client of its own: connections belong to the runtime of one test.
    pub(crate) fn client(&self) -> Client {
        client(&self.url, &self.ca)
    }

    /// A new account with an organization.
    pub(crate) async fn account(&self) -> Account {
        Account::new(&self.client()).await
    }

    /// How long the log is now.
    pub(crate) fn log_length(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap().len()
    }

    /// Waits until the log has a line in which each of these texts stands.
    pub(crate) async fn logged(&self, texts: &[&str]) -> Value {
        self.logged_after(0, texts).await
    }

    /// The same of what the log has after its first so many bytes.
    pub(crate) async fn logged_after(&self, length: usize, texts: &[&str]) -> Value {
        let what = format!("{}: a line of the log with {texts:?}", self.name);
        wait_for(&what, async || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let found = log[length..].lines().find(|line| texts.iter().all(|text| line.contains(text)));
            found.and_then(|line| serde_json::from_str(line).ok())
        })
        .await
    }
}

/// A link of this gateway.
pub(crate) async fn open(gateway: &GatewayAccount, transport: Transport) -> Box<dyn Link> {
    transport.open(&gateway.client, Greeting::default()).await.unwrap()
}

/// The next event of a link; signs of life are skipped.
pub(crate) async fn next(link: &mut dyn Link) -> Event {
    let next = async {
        loop {
            match link.next().await.unwrap() {
                Frame::Alive => {}
                Frame::Event(event) => return event,
                other => panic!("not an event: {other:?}"),
            }
        }
    };
    timeout(PATIENCE, next).await.expect("an event in time")
}

/// Acknowledges a deployment event.
pub(crate) async fn ack(link: &mut dyn Link, event: &Event, error: Option<&str>) {
    let action = if event.kind == "api.deployed" { "deploy" } else { "undeploy" };
    link.send(suite::transport::Answer::Deployment(event.answer(action, error))).await.unwrap();
}

/// The list that a GET answers with.
pub(crate) async fn list(account: &Account, path: &str) -> Vec<Value> {
    let answer = account.client.get(path).await.unwrap().expect(200).unwrap();
    answer["list"].as_array().cloned().unwrap_or_default()
}

/// The connections of a gateway.
pub(crate) async fn connections(account: &Account, gateway: &str) -> Vec<Value> {
    list(account, &format!("/api/v1/gateways/{gateway}/connections")).await
}

/// Waits until a gateway has so many connections.
pub(crate) async fn wait_for_connections(account: &Account, gateway: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} connections of {gateway}");
    wait_for(&what, async || Some(connections(account, gateway).await).filter(|list| list.len() == count))
        .await
}

/// Whether the gateway counts as connected.
pub(crate) async fn is_active(account: &Account, gateway: &str) -> bool {
    let gateway = account.client.get(&format!("/api/v1/gateways/{gateway}")).await.unwrap();
    gateway.expect(200).unwrap()["isActive"] == json!(true)
}

/// Sends an event of an operator; the status of the answer.
pub(crate) async fn send_event(account: &Account, gateway: &str, kind: &str, payload: Value) -> u16 {
    let body = json!({"type": kind, "payload": payload});
    account.client.post(&format!("/api/v1/gateways/{gateway}/events"), &body).await.unwrap().status
}
