//! A PostgreSQL cluster in a temporary folder, on a Unix socket and no TCP port.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::Context as _;

/// A cluster that ends with this process: a watcher sees to that.
#[derive(Debug)]
pub struct TestPostgres {
    url: String,
    folder: PathBuf,
    server: Mutex<Child>,
}

impl TestPostgres {
    /// The cluster of this process.
    pub(super) fn shared() -> &'static Self {
        static CLUSTER: OnceLock<TestPostgres> = OnceLock::new();
        CLUSTER.get_or_init(Self::start)
    }

    /// Starts a cluster that nobody else uses.
    pub fn start() -> Self {
        Self::try_start().expect("PostgreSQL for the tests (run `make test`, which installs it)")
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Shuts it down at once (its connections break, nothing that was committed is lost) and starts it again.
    pub fn restart(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let interrupt = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
        assert!(interrupt.expect("the program kill").success(), "PostgreSQL is gone");
        server.wait().expect("a process of ours");
        *server = serve(&self.folder).expect("PostgreSQL again");
    }

    fn try_start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tollgate-pg-").tempdir()?.keep();
        if is_root()? {
            let chown = Command::new("chown").arg("postgres:postgres").arg(&folder).status()?;
            anyhow::ensure!(chown.success(), "cannot give {} to postgres", folder.display());
        }
        let made = program("initdb")?
            .args(["--auth=trust", "--username=test", "--encoding=UTF8", "--no-sync", "--locale=C", "-D"])
            .arg(folder.join("data"))
            .stdout(Stdio::null())
            .output()
            .context("cannot run initdb")?;
        anyhow::ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let server = Mutex::new(serve(&folder)?);
        let host = folder.display().to_string().replace('/', "%2F");
        Ok(Self { url: format!("postgres://test@{host}/postgres"), folder, server })
    }
}

/// Starts the server and waits until it takes connections.
fn serve(folder: &Path) -> anyhow::Result<Child> {
    let settings = ["listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=16MB"];
    let server = program("postgres")?
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        .arg("-k")
        .arg(folder)
        .arg("-D")
        .arg(folder.join("data"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run postgres")?;
    super::reap_with_us(&server, folder)?;
    let socket = folder.join(".s.PGSQL.5432");
    for _ in 0..400 {
        if socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    anyhow::bail!("PostgreSQL did not start in 10 s")
}

/// One of the server's programs, as a user that they do not refuse.
fn program(name: &str) -> anyhow::Result<Command> {
    let program = find(name);
    if !is_root()? {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    Ok(command)
}

fn is_root() -> anyhow::Result<bool> {
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
