//! A process on a core of its own, and what it costs.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::cost;

/// A process that runs; it ends with this.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts `program` on one core, in `folder`, which gets its log.
    pub(crate) fn start(
        name: &'static str,
        core: &str,
        folder: &Path,
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        environment: &[(&str, &str)],
    ) -> Self {
        let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(program).args(arguments).current_dir(folder);
        command.envs(environment.iter().copied()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, child }
    }

    /// Waits until somebody listens.
    pub(crate) async fn listens(self, address: &str, folder: &Path) -> Self {
        for _ in 0..300 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return self;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = fs::read_to_string(folder.join(format!("{}.log", self.name))).unwrap_or_default();
        panic!("{} does not listen: {log}", self.name);
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        cost::resident_kib(self.child.id())
    }

    /// CPU time so far, of all threads.
    pub(crate) fn cpu(&self) -> Duration {
        cost::cpu(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            eprintln!("{}: {error}", self.name);
        }
    }
}
