use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::PATIENCE;

/// The binary of this build, or what `TOLLGATE` names: a release build, where figures are wanted.
fn binary() -> PathBuf {
    std::env::var_os("TOLLGATE").map_or_else(|| env!("CARGO_BIN_EXE_tollgate").into(), PathBuf::from)
}

/// The real binary, as a process of its own.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    pub(crate) url: String,
}

impl Process {
    pub(crate) async fn start(folder: &Path, config: &Path) -> Self {
        Self::start_with(folder, config, &[]).await
    }

    /// With these variables in its environment.
    pub(crate) async fn start_with(folder: &Path, config: &Path, variables: &[(&str, &str)]) -> Self {
        let log = folder.join("stderr.log");
        let stderr = std::fs::File::create(&log).unwrap();
        let mut child = Command::new(binary())
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join("data"))
            .arg("--config")
            .arg(config)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("ready in time").unwrap();
        let line = line.expect("a line on stdout");
        let url = line.strip_prefix("ready ").expect("the ready line").to_owned();
        assert!(url.starts_with("https://localhost:"), "{line}");
        Self { child, log, url }
    }

    /// Its number, for what the kernel knows of it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// What it has written to stderr.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The lines of its log; it must be told to write JSON.
    pub(crate) fn log_lines(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The admin port of each service, as its log says.
    pub(crate) fn admin_ports(&self) -> Vec<(String, SocketAddr)> {
        let lines = self.log_lines();
        let serving = lines.iter().filter(|line| line["message"] == "serving");
        let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
        serving.map(|line| (text(line, "service"), text(line, "admin_addr").parse().unwrap())).collect()
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) async fn terminate(self) -> Option<i32> {
        self.signal().await;
        self.ended().await
    }

    /// SIGTERM.
    pub(crate) async fn signal(&self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends in time").unwrap().code()
    }
}
