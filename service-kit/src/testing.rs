//! Helpers for tests: databases of both kinds that nobody else uses, an identity, a served service.

pub mod properties;
mod signer;

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context as _;
use secrecy::SecretString;
use tempfile::TempDir;

use crate::db::DatabaseConfig;

pub use signer::Signer;

/// A database for one test; gone when it is dropped.
#[derive(Debug)]
pub struct TestDatabase {
    /// How to open it.
    pub config: DatabaseConfig,
    _folder: Option<TempDir>,
}

impl TestDatabase {
    /// An empty SQLite file.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        Self { config: config(url), _folder: Some(folder) }
    }

    /// An empty schema in a PostgreSQL cluster that this process started for its tests.
    pub fn postgres() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut config = config(Cluster::shared().url.clone());
        config.schema = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { config, _folder: None }
    }

    /// One of each kind: store tests run on both.
    pub fn both() -> [Self; 2] {
        [Self::sqlite(), Self::postgres()]
    }
}

fn config(url: String) -> DatabaseConfig {
    DatabaseConfig { url: SecretString::from(url), max_connections: 8, schema: "test".to_owned() }
}

/// A PostgreSQL cluster in a temporary folder, on a Unix socket and no TCP port.
#[derive(Debug)]
struct Cluster {
    url: String,
}

impl Cluster {
    /// The cluster of this process. It ends with the process: its server watches for that.
    fn shared() -> &'static Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            Self::start().expect("PostgreSQL for the tests (run `make test`, which installs it)")
        })
    }

    fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tollgate-pg-").tempdir()?.keep();
        let root = rustix_is_root()?;
        let run = |program: &str| -> Command {
            let program = find(program);
            if root {
                // initdb and postgres refuse root.
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
                command
            } else {
                Command::new(program)
            }
        };
        if root {
            let chown = Command::new("chown").arg("postgres:postgres").arg(&folder).status()?;
            anyhow::ensure!(chown.success(), "cannot give {} to postgres", folder.display());
        }
        let data = folder.join("data");
        let made = run("initdb")
            .args(["--auth=trust", "--username=test", "--encoding=UTF8", "--no-sync", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .output()
            .context("cannot run initdb")?;
        anyhow::ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut server = run("postgres");
        server
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=200",
                "-c",
                "shared_buffers=16MB",
                "-k",
            ])
            .arg(&folder)
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = server.spawn().context("cannot run postgres")?;
        reap_with_us(&server, &folder)?;
        let socket = folder.join(".s.PGSQL.5432");
        for _ in 0..400 {
            if socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                let host = folder.display().to_string().replace('/', "%2F");
                return Ok(Self { url: format!("postgres://test@{host}/postgres") });
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        anyhow::bail!("PostgreSQL did not start in 10 s")
    }
}

/// A watcher that ends the server and removes its folder when this process is gone, however it ended.
fn reap_with_us(server: &Child, folder: &std::path::Path) -> anyhow::Result<()> {
    let script =
        r#"while kill -0 "$1" 2>/dev/null; do sleep 0.2; done; kill -INT "$2"; sleep 1; rm -rf "$3""#;
    Command::new("sh")
        .args(["-c", script, "sh", &std::process::id().to_string(), &server.id().to_string()])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the watcher")?;
    Ok(())
}

fn rustix_is_root() -> anyhow::Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot run id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

/// Debian keeps the server's programs out of PATH.
fn find(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(program))
}
