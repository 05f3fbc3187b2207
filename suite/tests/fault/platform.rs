//! The platform of a fault test: every process on its own, over a PostgreSQL and a Redis of its own.

use std::path::PathBuf;

use secrecy::ExposeSecret;
use service_kit::testing::{TestPostgres, TestRedis};
use suite::{client::Client, trust::Trust};
use tempfile::TempDir;

use crate::support::Node;

/// Shorter times than the defaults, so that a test of a minute sees what otherwise takes minutes.
const GATEWAY: &[&str] = &[
    "link.heartbeat_ms=4000",
    "link.silence_ms=12000",
    "link.poll_ms=1000",
    "link.redeliver_ms=3000",
    // Nobody is there to ask for what could not be fetched.
    "link.refused_retries=10",
    "link.reconcile_ms=10000",
    "link.node_timeout_ms=5000",
];
const EDGE: &[&str] = &[
    "gateway_link.ping_seconds=4",
    "gateway_link.dead_seconds=12",
    "limits.credential_per_minute=1000000",
    "limits.sign_up_per_hour=1000000",
    "limits.gateway_connects_per_minute=1000000",
    "limits.address_per_minute=0",
    "limits.user_per_minute=0",
    "limits.token_per_minute=0",
    "limits.heavy_per_minute=0",
    "limits.connections_per_address=10000",
];

/// All of it.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) postgres: TestPostgres,
    pub(crate) redis: TestRedis,
    pub(crate) project: Node,
    pub(crate) gateways: Vec<Node>,
    pub(crate) edges: Vec<Node>,
    _auth: Node,
    trust: Trust,
    folder: TempDir,
}

impl Platform {
    /// Starts three gateway-services, two edges, and one of each other.
    pub(crate) async fn start() -> Self {
        service_kit::tls::install_provider();
        let (postgres, redis) = (TestPostgres::start(), TestRedis::start());
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let node = |service, name: &str, settings: &[&str]| {
            Node::new(folder, service, name, settings.iter().map(|text| (*text).to_owned()).collect())
        };
        let database =
            |schema: &str| [format!("database.url={}", postgres.url()), format!("database.schema={schema}")];
        let mut auth = node(
            "auth-service",
            "auth",
            &["account.verify_email=false", "session.access_lifetime=900", "audit.export_every=3600"],
        );
        let mut project = node("project-service", "project", &[]);
        let mut gateways: Vec<Node> =
            (1..=3).map(|number| node("gateway-service", &format!("gateway-{number}"), GATEWAY)).collect();
        let mut edges: Vec<Node> =
            (1..=2).map(|number| node("edge-proxy", &format!("edge-{number}"), EDGE)).collect();
        let addresses: Vec<&str> = gateways.iter().map(|gateway| gateway.address.as_str()).collect();
        let addresses = addresses.join(",");
        let at = |name: &str, address: &str| format!("upstreams.{name}.address={address}");
        auth.settings.extend(database("auth"));
        auth.settings.push(at("project", &project.address));
        project.settings.extend(database("project"));
        project.settings.extend([at("auth", &auth.address), at("gateway", &addresses)]);
        for gateway in &mut gateways {
            gateway.settings.extend(database("gateway"));
            gateway.settings.extend([at("auth", &auth.address), at("project", &project.address)]);
            gateway.settings.push(format!("bus.url={}", ExposeSecret::expose_secret(&redis.config().url)));
        }
        for edge in &mut edges {
            edge.settings.extend([at("auth", &auth.address), at("project", &project.address)]);
            edge.settings.push(at("gateway", &addresses));
        }
        // The first one makes the authority that all believe.
        auth.start();
        auth.ready().await;
        project.start();
        gateways.iter_mut().chain(&mut edges).for_each(Node::start);
        for node in [&auth, &project].into_iter().chain(&gateways).chain(&edges) {
            node.ready().await;
        }
        let trust = Trust::from_ca_file(&folder.join("data/tls/ca.pem")).unwrap();
        Self { postgres, redis, project, gateways, edges, _auth: auth, trust, folder: temporary }
    }

    /// How clients find an edge.
    pub(crate) fn door(&self, edge: usize) -> Door {
        let port = self.edges[edge % self.edges.len()].address.rsplit_once(':').unwrap().1;
        Door { url: format!("https://localhost:{port}"), trust: self.trust.clone() }
    }

    /// Keeps the logs for whoever looks for what went wrong.
    pub(crate) fn keep_logs(self) -> PathBuf {
        self.folder.keep()
    }

    /// Every process that can be started again.
    pub(crate) fn nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.gateways.iter_mut().chain(&mut self.edges).chain([&mut self.project])
    }
}

/// An edge, from the outside.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    url: String,
    trust: Trust,
}

impl Door {
    /// A client with connections of its own.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url, &self.trust).unwrap()
    }
}
