//! What is judged: the whole suite in one process, or a program of the edge with the services behind it.

use std::{fs, net::SocketAddr, path::Path};

use toml::{Table, Value};

use crate::support::{Node, Process, Services, admin, config_file};

/// The cache of the edge may hold 64 MiB, and those of 27 connections to SQLite 60 MiB, which a run would fill bit by bit
/// with rows; a connection more has a thread and some 300 KiB of statements. So much less is full after the warm-up. And
/// what is remembered until access tokens expire is for five minutes.
const SETTINGS: &str = "
[auth.session]
access_lifetime = 300
[auth.database]
max_connections = 2
cache_kib = 128
[project.database]
max_connections = 2
cache_kib = 128
[gateway.database]
max_connections = 2
cache_kib = 128
[edge.cache]
max_bytes = 262144
[edge.telemetry]
format = \"json\"
log = \"error,service_kit::server=info,edge_proxy=info\"
";

/// glibc keeps blocks like the 19 MiB of a password's hash in whatever arena they were freed: steps of 19 MiB up and down
/// in what is measured. With this they go back at once, so that what stays is what somebody holds. And errors do not
/// carry stacks with them, which they do in CI but not where somebody runs it.
const ENVIRONMENT: &[(&str, &str)] = &[("MALLOC_MMAP_THRESHOLD_", "1048576"), ("RUST_BACKTRACE", "0")];

/// What is judged.
pub(crate) enum Subject {
    Suite(Box<Process>),
    /// With its services, each a process of its own.
    Edge(Box<(Node, Services)>),
}

impl Subject {
    /// The program that `EDGE` names, or else the suite.
    pub(crate) async fn start(folder: &Path) -> Self {
        let config = config_file(folder, SETTINGS);
        let Some(program) = std::env::var_os("EDGE") else {
            return Self::Suite(Box::new(Process::start_with(folder, &config, ENVIRONMENT).await));
        };
        // It is started in a folder of its own.
        let program = fs::canonicalize(&program).unwrap_or_else(|error| panic!("EDGE={program:?}: {error}"));
        service_kit::tls::install_provider();
        let sections: Table = fs::read_to_string(config).unwrap().parse().unwrap();
        let settings = |service: &str| {
            let mut settings = Vec::new();
            write(&mut settings, "", &sections[service]);
            settings
        };
        let services = Services::start_with(folder, settings).await;
        let mut edge = services.edge("edge", &[]).run_by(program, ENVIRONMENT);
        edge.settings.extend(settings("edge"));
        edge.start();
        edge.ready().await;
        Self::Edge(Box::new((edge, services)))
    }

    /// Where clients find it.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Suite(process) => process.url.clone(),
            Self::Edge(all) => all.0.url(),
        }
    }

    /// The number of the process.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Suite(process) => process.pid(),
            Self::Edge(all) => all.0.pid(),
        }
    }

    /// The admin port of its edge.
    pub(crate) fn admin(&self) -> SocketAddr {
        match self {
            Self::Suite(process) => {
                let ports = process.admin_ports();
                ports.iter().find(|(service, _)| service == "edge-proxy").unwrap().1
            }
            Self::Edge(all) => all.0.admin_address(),
        }
    }

    /// What it measures, and gateway-service with it.
    pub(crate) async fn metrics(&self) -> String {
        match self {
            Self::Suite(_) => admin(self.admin(), "/metrics").await.1,
            Self::Edge(all) => {
                let (edge, services) = &**all;
                edge.admin("/metrics").await + &services.gateway.admin("/metrics").await
            }
        }
    }

    /// Asks it to end; its exit code.
    pub(crate) async fn terminate(self) -> Option<i32> {
        match self {
            Self::Suite(process) => process.terminate().await,
            Self::Edge(all) => {
                let (mut edge, _services) = *all;
                edge.signal("-TERM");
                edge.ended().await
            }
        }
    }
}

/// `cache.max_bytes=262144` for each value in a section of the suite's settings.
fn write(settings: &mut Vec<String>, name: &str, value: &Value) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                write(settings, &name, value);
            }
        }
        value => settings.push(format!("{name}={value}")),
    }
}
