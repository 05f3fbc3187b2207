//! The four services as processes of their own on SQLite, and what they cost.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use suite::{client::Client, trust::Trust};

use crate::cost;

/// A service that runs; it ends with this.
pub(crate) struct Service {
    name: &'static str,
    child: Child,
}

/// All services, in a temporary folder.
pub(crate) struct Fleet {
    pub(crate) auth: Service,
    pub(crate) project: Service,
    pub(crate) gateway: Service,
    pub(crate) edge: Service,
    pub(crate) gateway_address: String,
    pub(crate) client: Client,
    gateway_admin: String,
    folder: tempfile::TempDir,
}

impl Fleet {
    /// Starts each service by `tollgate serve` and waits until the edge is ready.
    pub(crate) async fn start(tollgate: &Path, links: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<String> = free_ports(8);
        let (auth, project, gateway) = (&ports[0], &ports[1], &ports[2]);
        let start = |name: &'static str, listen: &str, admin: &str, settings: Vec<String>| {
            let mut command = Command::new(tollgate);
            let log = fs::File::create(folder.path().join(format!("{name}.log"))).unwrap();
            command.args(["serve", name]).current_dir(folder.path()).stdout(Stdio::null()).stderr(log);
            for setting in [format!("listen=\"{listen}\""), format!("admin_listen=\"{admin}\"")]
                .into_iter()
                .chain([String::from("telemetry.log=warn")])
                .chain(settings)
            {
                command.args(["--set", &setting]);
            }
            let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
            Service { name, child }
        };
        let to = |upstream: &str, address: &str| format!("upstreams.{upstream}.address=\"{address}\"");
        let fleet = Self {
            auth: start(
                "auth-service",
                auth,
                &ports[4],
                vec![to("project", project), "account.verify_email=false".into()],
            ),
            project: start(
                "project-service",
                project,
                &ports[5],
                vec![to("auth", auth), to("gateway", gateway)],
            ),
            gateway: start(
                "gateway-service",
                gateway,
                &ports[6],
                vec![
                    to("auth", auth),
                    to("project", project),
                    format!("link.max_connections={}", links + 10),
                    format!("link.max_connections_per_organization={}", links + 10),
                ],
            ),
            edge: start(
                "edge-proxy",
                &ports[3],
                &ports[7],
                vec![
                    to("auth", auth),
                    to("project", project),
                    to("gateway", gateway),
                    "limits.gateway_connects_per_minute=1000000".into(),
                    "limits.credential_per_minute=1000000".into(),
                    "limits.address_per_minute=0".into(),
                    "limits.user_per_minute=0".into(),
                    "limits.token_per_minute=0".into(),
                    "limits.heavy_per_minute=0".into(),
                    "limits.connections_per_address=100000".into(),
                ],
            ),
            gateway_address: gateway.clone(),
            client: {
                let trust = wait_for(|| Trust::from_ca_file(&ca_file(folder.path())).ok()).await;
                let port = ports[3].rsplit_once(':').unwrap().1;
                Client::new(&format!("https://localhost:{port}"), &trust).unwrap()
            },
            gateway_admin: ports[6].clone(),
            folder,
        };
        let admin = format!("http://{}/readyz", ports[7]);
        for _ in 0..600 {
            if reqwest::get(&admin).await.is_ok_and(|answer| answer.status().is_success()) {
                return fleet;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the services did not get ready: see {}", fleet.folder.keep().display());
    }

    /// Where gateway-service tells its metrics.
    pub(crate) fn gateway_metrics(&self) -> String {
        format!("http://{}/metrics", self.gateway_admin)
    }

    /// The folder with the development CA.
    pub(crate) fn tls_folder(&self) -> PathBuf {
        self.folder.path().join("data/tls")
    }
}

fn ca_file(folder: &Path) -> PathBuf {
    suite::ca_file(&folder.join("data"))
}

async fn wait_for<T>(mut get: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = get() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not there after 30 s");
}

/// Addresses that were free a moment ago.
fn free_ports(count: usize) -> Vec<String> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

impl Service {
    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        cost::resident_kib(self.child.id())
    }

    /// CPU time so far, of all threads.
    pub(crate) fn cpu(&self) -> Duration {
        cost::cpu(self.child.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            eprintln!("{}: {error}", self.name);
        }
    }
}
