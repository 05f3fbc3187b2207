//! A Redis for one test, on a Unix socket in a temporary folder.

use std::{
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::bus::BusConfig;

/// A Redis that nobody else uses; gone when it is dropped.
#[derive(Debug)]
pub struct TestRedis {
    folder: TempDir,
    server: Option<Child>,
}

impl TestRedis {
    /// Starts it.
    pub fn start() -> Self {
        let mut redis = Self::away();
        redis.restart();
        redis
    }

    /// One that is not there yet.
    pub fn away() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), server: None }
    }

    /// How a bus finds it.
    pub fn config(&self) -> BusConfig {
        BusConfig { url: self.url().into() }
    }

    /// Starts it (again), empty, where it was.
    pub fn restart(&mut self) {
        self.stop();
        let server = self.serve().expect("Redis for the tests (run `make test`, which installs it)");
        self.server = Some(server);
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("a process of ours");
            server.wait().expect("a process of ours");
        }
    }

    /// Makes it stand still: it takes connections and answers nothing.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Makes it forget everything.
    pub fn flush(&self) {
        let client = redis::Client::open(self.url()).expect("an address");
        let mut connection = client.get_connection().expect("a Redis that runs");
        redis::cmd("FLUSHALL").exec(&mut connection).expect("a Redis that obeys");
    }

    fn url(&self) -> String {
        format!("redis+unix://{}/redis.sock", self.folder.path().display())
    }

    fn serve(&self) -> anyhow::Result<Child> {
        let socket = self.folder.path().join("redis.sock");
        let mut server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run redis-server")?;
        super::reap_with_us(&server, self.folder.path())?;
        for _ in 0..400 {
            if UnixStream::connect(&socket).is_ok() {
                return Ok(server);
            }
            anyhow::ensure!(server.try_wait()?.is_none(), "redis-server ended at once");
            std::thread::sleep(Duration::from_millis(25));
        }
        anyhow::bail!("Redis did not start in 10 s")
    }

    fn signal(&self, signal: &str) {
        let server = self.server.as_ref().expect("a Redis that runs").id().to_string();
        let sent = Command::new("kill").args([signal, &server]).status().expect("the program kill");
        assert!(sent.success(), "kill {signal} {server}");
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.stop();
    }
}
