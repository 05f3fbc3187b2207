//! What the tests of the suite share: a suite of their own on free ports, accounts, gateways.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod account;
#[path = "../../../auth-service/tests/grpc/authenticator.rs"]
mod authenticator;
mod node;
#[path = "../../../auth-service/tests/grpc/oidc_server.rs"]
mod oidc_server;
mod process;
mod provider;

use std::{net::SocketAddr, path::Path, time::Duration};

use secrecy::ExposeSecret as _;
use service_kit::testing::TestDatabase;
use suite::{Suite, SuiteConfig, client::Client, trust::Trust};
use tempfile::TempDir;

pub(crate) use account::{Account, GatewayAccount, PASSWORD, signed_up, unique};
pub(crate) use authenticator::Authenticator;
pub(crate) use node::{Node, Services};
pub(crate) use process::Process;
pub(crate) use provider::Provider;

/// How long the platform may take for what it does on its own; two slow cores run many tests at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// All tests come from one address: its limits are not what they test.
const LIMITS: &str = "[edge.limits]
credential_per_minute = 1000000
sign_up_per_hour = 1000000
mail_per_hour = 1000000
refresh_per_minute = 1000000
gateway_connects_per_minute = 1000000
";

/// A suite for one test; its folder goes with it.
pub(crate) struct TestSuite {
    pub(crate) suite: Suite,
    pub(crate) folder: TempDir,
    pub(crate) client: Client,
    pub(crate) _databases: Vec<TestDatabase>,
}

impl TestSuite {
    /// On SQLite.
    pub(crate) async fn start() -> Self {
        Self::with(String::new(), Vec::new()).await
    }

    /// On SQLite with more settings.
    pub(crate) async fn configured(text: &str) -> Self {
        Self::with(text.to_owned(), Vec::new()).await
    }

    /// On PostgreSQL: each service has a schema of its own.
    pub(crate) async fn on_postgres() -> Self {
        Self::on_postgres_configured("").await
    }

    /// On PostgreSQL with more settings.
    pub(crate) async fn on_postgres_configured(text: &str) -> Self {
        let mut text = text.to_owned();
        let mut databases = Vec::new();
        for section in ["auth", "project", "gateway"] {
            let database = TestDatabase::postgres();
            let url = database.config.url.expose_secret();
            text +=
                &format!("[{section}.database]\nurl = \"{url}\"\nschema = \"{}\"\n", database.config.schema);
            databases.push(database);
        }
        Self::with(text, databases).await
    }

    async fn with(text: String, databases: Vec<TestDatabase>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = config_file(folder.path(), &text);
        let data_dir = folder.path().join("data");
        let config = SuiteConfig { data_dir, listen: "127.0.0.1:0".to_owned(), file: Some(file) };
        let suite = Box::pin(Suite::start(config)).await.unwrap();
        let client = client(suite.edge_url(), suite.ca_file());
        Self { suite, folder, client, _databases: databases }
    }

    /// A new account with an organization.
    pub(crate) async fn account(&self) -> Account {
        Account::new(&self.client).await
    }
}

/// Writes the suite's configuration of a test.
pub(crate) fn config_file(folder: &Path, more: &str) -> std::path::PathBuf {
    let file = folder.join("suite.toml");
    // Limits of a test's own are what it tests.
    let limits = if more.contains("[edge.limits]") { "" } else { LIMITS };
    std::fs::write(&file, format!("{limits}{more}")).unwrap();
    file
}

/// A client of the suite at `url`.
pub(crate) fn client(url: &str, ca: &Path) -> Client {
    service_kit::tls::install_provider();
    Client::new(url, &Trust::from_ca_file(ca).unwrap()).unwrap()
}

/// The origin of the suite's pages, as browsers write it.
pub(crate) fn origin(client: &Client) -> &str {
    client.base().as_str().trim_end_matches('/')
}

/// An authenticator for the pages of the suite.
pub(crate) fn authenticator(client: &Client) -> Authenticator {
    let mut authenticator = Authenticator::new();
    authenticator.origin = origin(client).to_owned();
    authenticator
}

/// What an admin port answers: status and body.
pub(crate) async fn admin(port: SocketAddr, path: &str) -> (u16, String) {
    let answer = reqwest::get(format!("http://{port}{path}")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Waits until `probe` says something.
pub(crate) async fn wait_for<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
