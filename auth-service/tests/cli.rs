//! The program: what it says of itself, and its commands beside a running service.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use proto::auth::{
    LoginRequest, RefreshRequest, SignUpRequest, TokenPair, auth_service_client::AuthServiceClient,
};
use serde_json::Value;
use service_kit::{
    Error,
    client::{Upstream, UpstreamConfig},
    tls::{Identity, TlsConfig},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tonic::{Response, Status};

const EMAIL: &str = "jane@example.com";
const PASSWORD: &str = "canary-p4ss-of-a-test";
const PATIENCE: Duration = Duration::from_secs(30);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_auth-service"));
    command.env_clear();
    command
}

/// A configuration file whose data lies in `folder`.
fn configure(folder: &Path) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.default.toml")).unwrap();
    let data = format!("{}/", folder.display());
    let text = text
        .replace("\"data/", &format!("\"{data}"))
        .replace("sqlite:data/", &format!("sqlite:{data}"))
        .replace("127.0.0.1:9000", "127.0.0.1:0")
        .replace("127.0.0.1:9001", "127.0.0.1:0")
        .replace("verify_email = true", "verify_email = false")
        .replace("format = \"text\"", "format = \"json\"");
    fs::write(folder.join("config.toml"), text).unwrap();
}

async fn run(folder: &Path, arguments: &[&str]) -> Output {
    let config = folder.join("config.toml");
    program().args(arguments).arg("--config").arg(config).output().await.unwrap()
}

/// Standard output of a run that must succeed.
async fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments).await;
    let problem = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), problem.as_ref()), (Some(0), ""), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of a run that must not.
async fn refused(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(folder, arguments).await;
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// `auth-service` without a command, as a process.
struct Service {
    child: Child,
    addr: SocketAddr,
    admin_addr: SocketAddr,
    folder: TempDir,
}

impl Service {
    async fn start(folder: TempDir, arguments: &[&str]) -> Self {
        service_kit::tls::install_provider();
        configure(folder.path());
        let mut child = program()
            .arg("--config")
            .arg(folder.path().join("config.toml"))
            .args(arguments)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["message"] == "serving" {
                    return line;
                }
            }
            panic!("it ended")
        };
        let line = tokio::time::timeout(PATIENCE, serving).await.expect("it serves in time");
        // Nobody else reads it, and it must not stand still when the pipe is full.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        Self { child, addr: address("addr"), admin_addr: address("admin_addr"), folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn client(&self) -> AuthServiceClient<Upstream> {
        let (dev_ca_dir, none) = (self.path().join("tls"), std::path::PathBuf::new);
        let tls = TlsConfig { dev_ca_dir, ca: none(), cert: none(), key: none() };
        let identity = Identity::load(&tls, "edge-proxy").unwrap();
        let config = UpstreamConfig { address: self.addr.to_string(), connections: 1 };
        AuthServiceClient::new(Upstream::new(&identity, "auth-service", &config).unwrap())
    }

    async fn login(&self) -> Result<TokenPair, Error> {
        let (email, password) = (EMAIL.to_owned(), PASSWORD.to_owned());
        answer(self.client().login(LoginRequest { email, password, ..LoginRequest::default() }).await)
    }

    async fn sign_up(&self) {
        let (email, password, name) = (EMAIL.to_owned(), PASSWORD.to_owned(), "Jane".to_owned());
        self.client().sign_up(SignUpRequest { email, password, name }).await.unwrap();
    }

    /// Waits until so many exports have failed, and says how many.
    async fn failed_exports(&self, at_least: u64) -> u64 {
        let failed = async {
            loop {
                let mut socket = TcpStream::connect(self.admin_addr).await.unwrap();
                let ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
                socket.write_all(ask).await.unwrap();
                let mut text = String::new();
                socket.read_to_string(&mut text).await.unwrap();
                let mut counts = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("tollgate_audit_export_failures_total "));
                let count: u64 = counts.next().expect("the counter is there").parse().unwrap();
                if count >= at_least {
                    return count;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, failed).await.expect("exports fail")
    }

    /// SIGTERM; the exit code.
    async fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code()
    }
}

fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(Error::from)
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let list =
        help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    list.filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn it_explains_itself() {
    let mut text = String::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(command) = open.pop() {
        let output = program().args(&command).arg("--help").output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        open.extend(commands(&help).into_iter().rev().map(|name| [command.clone(), vec![name]].concat()));
        let line = [command.as_slice(), &["--help".to_owned()]].concat().join(" ");
        text += &format!("$ auth-service {line}\n{help}\n");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help.txt");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&file, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&file).unwrap(), "UPDATE_EXPECT=1 writes tests/help.txt anew");
    assert!(text.contains("auth-service audit verify --help"), "{text}");
}

#[tokio::test]
async fn it_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path());
    for arguments in [
        &["audit"] as &[&str],
        &["audit", "verify", "--nothing"],
        &["users", "disable"],
        &["users", "forget", EMAIL],
        &["nothing"],
    ] {
        let (code, _) = refused(folder.path(), arguments).await;
        assert_eq!(code, 2, "{arguments:?}");
    }
    // Without a database nothing is done, and none is made.
    for (arguments, code) in
        [(&["audit", "verify"] as &[&str], 2), (&["audit", "export"], 1), (&["users", "disable", EMAIL], 1)]
    {
        let (ended, problem) = refused(folder.path(), arguments).await;
        assert_eq!(ended, code, "{arguments:?}: {problem}");
        assert!(problem.starts_with("auth-service: "), "{problem}");
    }
    let (_, problem) = refused(folder.path(), &["audit", "verify"]).await;
    assert!(problem.contains("auth.db"), "{problem}");
    for made in ["auth.db", "auth-at-rest.key", "audit-signing.key", "audit-heads"] {
        assert!(!folder.path().join(made).exists(), "{made} was made");
    }
    let printed = done(folder.path(), &["audit", "verify", "--print-config"]).await;
    assert!(printed.contains("[audit]"), "{printed}");
    let (code, problem) = refused(folder.path(), &["audit", "verify", "--set", "audit.export_every=0"]).await;
    assert!(code == 2 && problem.contains("audit.export_every"), "{problem}");
}

#[tokio::test]
async fn an_account_is_disabled_and_enabled_beside_the_service() {
    let service = Service::start(tempfile::tempdir().unwrap(), &[]).await;
    service.sign_up().await;
    let pair = service.login().await.unwrap();

    for said in ["Jane@Example.com is disabled\n", "Jane@Example.com is disabled, as before\n"] {
        assert_eq!(done(service.path(), &["users", "disable", "Jane@Example.com"]).await, said);
    }
    assert_eq!(service.login().await.unwrap_err().reason(), "INVALID_CREDENTIALS");
    let request = RefreshRequest { refresh_token: pair.refresh_token };
    let refused_token = answer(service.client().refresh(request).await).unwrap_err();
    assert_eq!(refused_token.reason(), "INVALID_GRANT");

    assert_eq!(done(service.path(), &["users", "enable", EMAIL]).await, "jane@example.com is enabled\n");
    service.login().await.unwrap();

    let (code, problem) = refused(service.path(), &["users", "disable", "joan@example.com"]).await;
    assert!(code == 1 && problem.contains("no such account"), "{problem}");
    let (code, problem) = refused(service.path(), &["users", "disable", "nonsense"]).await;
    assert!(code == 1 && problem.contains("email"), "{problem}");

    let said = done(service.path(), &["audit", "verify"]).await;
    assert!(said.starts_with("the audit log is intact: "), "{said}");
    done(service.path(), &["audit", "export"]).await;
    let heads = fs::read_dir(service.path().join("audit-heads")).unwrap();
    assert!(heads.count() >= 2);
    assert_eq!(service.terminate().await, Some(0));
}

#[tokio::test]
async fn signing_keys_are_listed_rotated_and_revoked_beside_the_service() {
    let service = Service::start(tempfile::tempdir().unwrap(), &[]).await;
    let list = async || -> Vec<(String, String)> {
        let text = done(service.path(), &["keys", "list"]).await;
        let words = text.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| (words[0].clone(), words[2].clone())).collect()
    };
    let before = list().await;
    let [(state, first)] = before.as_slice() else { panic!("one key: {before:?}") };
    assert_eq!(state, "signing");

    let said = done(service.path(), &["keys", "rotate"]).await;
    let second = said.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(said.starts_with("waiting ") && second != *first, "{said}");
    let (code, problem) = refused(service.path(), &["keys", "rotate"]).await;
    assert!(code == 1 && problem.contains("waits"), "{problem}");

    let said = done(service.path(), &["keys", "revoke", first]).await;
    assert_eq!(said, format!("{first} is revoked; {second} signs now\n"));
    let said = done(service.path(), &["keys", "revoke", first]).await;
    assert_eq!(said, format!("{first} is revoked, as before\n"));
    let expected = [("revoked", first), ("signing", &second)];
    let expected = expected.map(|(state, kid)| (state.to_owned(), kid.clone()));
    assert_eq!(list().await, expected);
    let (code, problem) = refused(service.path(), &["keys", "revoke", "-unknown"]).await;
    assert!(code == 1 && problem.contains("no such signing key"), "{problem}");
    assert_eq!(service.terminate().await, Some(0));
}

#[tokio::test]
async fn a_folder_that_takes_no_heads_is_told_and_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    // A file stands where the folder should be.
    let taken = folder.path().join("taken");
    fs::write(&taken, "").unwrap();
    let heads = format!("audit.heads_folder=\"{}\"", taken.join("heads").display());
    let service = Service::start(folder, &["--set", &heads, "--set", "audit.export_every=1"]).await;
    let failures = service.failed_exports(1).await;
    service.sign_up().await;
    service.login().await.unwrap();
    service.failed_exports(failures + 1).await;

    fs::remove_file(&taken).unwrap();
    let exported = async {
        while !fs::read_dir(taken.join("heads")).is_ok_and(|files| {
            files.map(|file| file.unwrap().path()).any(|file| file.extension().is_some_and(|e| e == "jsonl"))
        }) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, exported).await.expect("it tries again");
    let said = done(service.path(), &["audit", "verify", "--set", &heads]).await;
    assert!(said.starts_with("the audit log is intact: "), "{said}");
    assert_eq!(service.terminate().await, Some(0));
}
