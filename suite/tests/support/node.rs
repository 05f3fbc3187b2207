//! One service as a process of its own: `tollgate serve`, or its own program.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use service_kit::testing::reap_with_us;
use suite::trust::Trust;

use super::wait_for;

/// A process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    admin: String,
    pub(crate) settings: Vec<String>,
    service: &'static str,
    folder: PathBuf,
    program: Option<PathBuf>,
    variables: &'static [(&'static str, &'static str)],
    child: Option<Child>,
}

impl Node {
    pub(crate) fn new(folder: &Path, service: &'static str, name: &str, settings: Vec<String>) -> Self {
        let (address, admin) = (free_address(), free_address());
        let folder = folder.to_owned();
        let name = name.to_owned();
        Self { name, address, admin, settings, service, folder, program: None, variables: &[], child: None }
    }

    /// Run by this program, with these variables in its environment.
    pub(crate) fn run_by(
        mut self,
        program: PathBuf,
        variables: &'static [(&'static str, &'static str)],
    ) -> Self {
        (self.program, self.variables) = (Some(program), variables);
        self
    }

    /// Starts the process, where it was before.
    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => {
                let mut all = Command::new(env!("CARGO_BIN_EXE_tollgate"));
                all.args(["serve", self.service]);
                all
            }
        };
        command.current_dir(&self.folder).envs(self.variables.iter().copied());
        command.args(["--set", &format!("listen={}", self.address)]);
        command.args(["--set", &format!("admin_listen={}", self.admin)]);
        command.args(self.settings.iter().flat_map(|setting| ["--set", setting]));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        // The folder goes with the test; the watcher has one of its own to remove.
        reap_with_us(&child, &self.folder.join(format!("{}.gone", self.name))).unwrap();
        self.child = Some(child);
    }

    pub(crate) async fn ready(&self) {
        let what = format!("{} is ready", self.name);
        let url = format!("http://{}/readyz", self.admin);
        wait_for(&what, async || {
            let answer = reqwest::get(&url).await;
            answer.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
    }

    /// Where clients of an edge find it.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Its admin port.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin.parse().unwrap()
    }

    /// Its number, for what the kernel knows of it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process that runs").id()
    }

    /// What an admin path answers.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap();
        answer.text().await.unwrap()
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    /// Waits for its end after a signal; the exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a process that runs");
        let what = format!("{} ends", self.name);
        wait_for(&what, async || child.try_wait().unwrap()).await.code()
    }

    /// Starts it again if it has ended by itself: whoever runs it in earnest does that too.
    pub(crate) fn revive(&mut self) -> bool {
        let ended = self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.start();
        }
        ended
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What an edge needs behind it, each as a process of its own, on SQLite.
pub(crate) struct Services {
    pub(crate) auth: Node,
    pub(crate) project: Node,
    pub(crate) gateway: Node,
    folder: PathBuf,
}

impl Services {
    /// Starts them in this folder.
    pub(crate) async fn start(folder: &Path) -> Self {
        Self::start_with(folder, |_| Vec::new()).await
    }

    /// The same with more settings, by the name of the service.
    pub(crate) async fn start_with(folder: &Path, settings: impl Fn(&str) -> Vec<String>) -> Self {
        let node = |service, name| Node::new(folder, service, name, settings(name));
        let mut auth = node("auth-service", "auth");
        let mut project = node("project-service", "project");
        let mut gateway = node("gateway-service", "gateway");
        auth.settings.extend(["account.verify_email=false".to_owned(), at("project", &project)]);
        project.settings.extend([at("auth", &auth), at("gateway", &gateway)]);
        gateway.settings.extend([at("auth", &auth), at("project", &project)]);
        // The first one makes the authority that all believe.
        auth.start();
        auth.ready().await;
        project.start();
        gateway.start();
        project.ready().await;
        gateway.ready().await;
        Self { auth, project, gateway, folder: folder.to_owned() }
    }

    /// An edge in front of them, not started yet.
    pub(crate) fn edge(&self, name: &str, settings: &[&str]) -> Node {
        let mut edge = Node::new(&self.folder, "edge-proxy", name, Vec::new());
        edge.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let all = [("auth", &self.auth), ("project", &self.project), ("gateway", &self.gateway)];
        edge.settings.extend(all.map(|(name, node)| at(name, node)));
        edge
    }

    /// Whom clients of an edge believe.
    pub(crate) fn trust(&self) -> Trust {
        Trust::from_ca_file(&self.folder.join("data/tls/ca.pem")).unwrap()
    }
}

fn at(name: &str, node: &Node) -> String {
    format!("upstreams.{name}.address={}", node.address)
}

/// A free address now; nobody keeps it free while a process is away, so the process must insist.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
