//! Nothing that is secret shows up where it must not: logs at their most talkative, traces, the files of the
//! data folder, the database, metrics, the bodies of errors.

#[path = "secrets/factors.rs"]
mod factors;
#[path = "secrets/identity.rs"]
mod identity;
#[path = "secrets/misplaced.rs"]
mod misplaced;
#[path = "secrets/platform.rs"]
mod platform;

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use serde_json::Value;
use service_kit::testing::TestDatabase;
use suite::client::{Client, Reply};

use crate::{
    otlp::Collector,
    support::{Account, Process, Provider, admin, client, config_file},
};

const TELEMETRY: &str = "[edge.telemetry]\nlog = \"debug\"\nformat = \"json\"\n";

/// A secret must be at least this long to be looked for: shorter ones are found by chance.
const SHORTEST: usize = 8;

/// What must not be found, each with a name for the message, and the errors that were answered.
#[derive(Default)]
struct Canaries {
    secrets: Vec<Canary>,
    errors: Vec<(String, String)>,
}

struct Canary {
    name: &'static str,
    text: String,
    /// Whether the database may hold it: no secret to who can read that.
    stored: bool,
}

impl Canaries {
    fn keep(&mut self, name: &'static str, secret: &str) {
        assert!(secret.len() >= SHORTEST, "{name} is too short to be looked for");
        self.secrets.push(Canary { name, text: secret.to_owned(), stored: false });
    }

    /// A token as a whole and its secret half: the last part, after the id (`_`) or the claims (`.`).
    fn keep_token(&mut self, name: &'static str, token: &str, separator: char) {
        self.keep(name, token);
        let secret = token.rsplit(separator).next().unwrap();
        assert!(secret.len() > 20, "{name} has no secret part");
        self.keep(name, secret);
    }

    /// The text at a JSON pointer of an answer.
    fn keep_at(&mut self, name: &'static str, answer: &Value, pointer: &str) -> String {
        let text = suite::client::text_at(answer, pointer).unwrap().to_owned();
        self.keep(name, &text);
        text
    }

    /// Something that is nowhere but in the database.
    fn keep_stored(&mut self, name: &'static str, text: &str) {
        self.keep(name, text);
        self.secrets.last_mut().unwrap().stored = true;
    }

    fn refused(&mut self, reply: &Reply) {
        assert!((400..500).contains(&reply.status), "{}: {} {}", reply.request, reply.status, reply.text());
        self.answered(reply);
    }

    /// Takes down an answer that holds no secret, however it went. An error names the path that was asked
    /// for, in `instance`, as it was asked for; nothing else of it comes back.
    fn answered(&mut self, reply: &Reply) {
        assert_ne!(reply.status, 500, "{}: {}", reply.request, reply.text());
        let path = reply.request.split([' ', '?']).nth(1).unwrap();
        let instance = format!("\"instance\":\"{path}\"");
        let shown = format!("{:?} {}", reply.headers, reply.text().replacen(&instance, "", 1));
        self.errors.push((reply.request.clone(), shown));
    }

    fn none_in(&self, place: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for canary in &self.secrets {
            canary.not_in(&canary.text, place, &text);
        }
    }

    /// The same of something that holds the database, in which bytes are hexadecimal.
    fn none_stored_in(&self, place: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for canary in self.secrets.iter().filter(|canary| !canary.stored) {
            canary.not_in(&canary.text, place, &text);
            let hex: String = canary.text.bytes().map(|byte| format!("{byte:02x}")).collect();
            canary.not_in(&hex, place, &text);
        }
    }
}

impl Canary {
    fn not_in(&self, secret: &str, place: &str, text: &str) {
        let Some(at) = text.find(secret) else { return };
        let before: String = text[..at].chars().rev().take(200).collect();
        panic!("{} is in {place}: {}", self.name, before.chars().rev().collect::<String>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_secret() {
    let folder = tempfile::tempdir().unwrap();
    secrets_stay_secret_in(folder.path(), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_secret_on_postgresql() {
    let folder = tempfile::tempdir().unwrap();
    let databases = ["auth", "project", "gateway"].map(|section| (section, TestDatabase::postgres()));
    let settings = databases.iter().map(|(section, database)| {
        let url = database.config.url.expose_secret();
        format!("[{section}.database]\nurl = \"{url}\"\nschema = \"{}\"\n", database.config.schema)
    });
    let canaries = secrets_stay_secret_in(folder.path(), &settings.collect::<String>()).await;
    for (section, database) in &databases {
        let dump = tokio::process::Command::new("pg_dump")
            .args(["--inserts", "--schema", &database.config.schema, "--dbname"])
            .arg(database.config.url.expose_secret())
            .output()
            .await
            .unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        assert!(dump.stdout.windows(11).any(|window| window == b"INSERT INTO"), "{section} is empty");
        canaries.none_stored_in(&format!("the database of {section}"), &dump.stdout);
    }
}

/// Puts canaries through everything, and looks for them everywhere but in mail: there they belong.
async fn secrets_stay_secret_in(folder: &Path, settings: &str) -> Canaries {
    let (provider, mail) = (Provider::start().await, folder.join("mail"));
    let (collector, endpoint) = Collector::start().await;
    let settings = format!(
        "{TELEMETRY}otlp_endpoint = \"{endpoint}\"\n[auth.mail]\nfolder = {:?}\n{}{settings}",
        mail.display().to_string(),
        provider.settings()
    );
    let process = Process::start(folder, &config_file(folder, &settings)).await;
    let data = folder.join("data");
    let anybody = client(&process.url, &suite::ca_file(&data));
    let mut canaries = Canaries::default();
    canaries.keep("the secret that a provider knows us by", &provider.client_secret);
    identity::passwords(&anybody, &mail, &mut canaries).await;
    identity::cookies(&anybody, &mut canaries).await;
    identity::providers(&anybody, &provider, &mut canaries).await;
    factors::totp(&anybody, &mut canaries).await;
    factors::passkeys(&anybody, &mut canaries).await;
    let account = Account::new(&anybody).await;
    identity::programs(&account, &anybody, &mut canaries).await;
    identity::devices(&account, &anybody, &mut canaries).await;
    let api = platform::private_key(&account, &mut canaries).await;
    platform::link(&account, &api, &mut canaries).await;
    misplaced::everything(&anybody, &account, &mut canaries).await;
    misplaced::forged_lines(&anybody, &account, &mut canaries).await;

    for (request, body) in &canaries.errors {
        canaries.none_in(&format!("the error of {request}"), body.as_bytes());
    }
    for (service, port) in process.admin_ports() {
        canaries.none_in(&format!("the metrics of {service}"), admin(port, "/metrics").await.1.as_bytes());
    }
    // While it runs, and after its end: what was in the write-ahead log is then in the database.
    in_files(&data, &canaries);
    let log = folder.join("stderr.log");
    assert_eq!(process.terminate().await, Some(0));
    let (traces, spans) = collector.text();
    assert!(spans > 100, "only {spans} spans were exported");
    canaries.none_in("the traces", traces.as_bytes());
    let files = in_files(&data, &canaries);
    for wanted in ["audit-heads", "auth-at-rest.key"] {
        let there = files.iter().any(|file| file.components().any(|part| part.as_os_str() == wanted));
        assert!(there, "no {wanted} in {files:?}");
    }
    let log = std::fs::read(log).unwrap();
    assert!(log.windows(5).any(|window| window == b"DEBUG"), "the log is not talkative");
    canaries.none_in("stderr", &log);
    misplaced::lines_are_objects(&log);
    canaries
}

/// Looks through every file below a folder; the files.
fn in_files(folder: &Path, canaries: &Canaries) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(in_files(&path, canaries));
        } else {
            match std::fs::read(&path) {
                Ok(bytes) => canaries.none_stored_in(&path.display().to_string(), &bytes),
                // A draft or a journal of those that are writing.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{}: {error}", path.display()),
            }
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{} is empty", folder.display());
    found
}

/// Posts to the part of the API that is about identity; the answer.
async fn post(client: &Client, path: &str, body: &Value) -> Reply {
    client.post(&format!("/api/v1/auth/{path}"), body).await.unwrap()
}

/// The same where it must work; what is answered.
async fn posted(client: &Client, path: &str, body: &Value) -> Value {
    let reply = post(client, path, body).await;
    reply.expect(reply.status_of(&[200, 201, 202, 204])).unwrap()
}
