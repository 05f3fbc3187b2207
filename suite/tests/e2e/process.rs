//! `tollgate up` as a process: what it prints, how it ends, what it says when it cannot start.

use std::process::Output;

use tokio::process::Command;

use crate::support::{Process, client, config_file};

async fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_when_it_is_ready_and_drains_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "");
    for _ in 0..2 {
        // The second time the data folder is there already.
        let process = Process::start(folder.path(), &config).await;
        let client = client(&process.url, &suite::ca_file(&folder.path().join("data")));
        client.get("/health").await.unwrap().expect(200).unwrap();
        assert_eq!(process.terminate().await, Some(0));
    }
    for file in ["auth.db", "project.db", "gateway.db", "tls/ca.pem"] {
        assert!(folder.path().join("data").join(file).exists(), "{file} is not in the data folder");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_keeps_it_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = config_file(folder.path(), &format!("[auth]\nadmin_listen = \"{address}\"\n"));
    let config = config.display().to_string();
    let up = ["up", "--data-dir", &data, "--config", &config];

    let ended = tollgate(&[up.as_slice(), &["--listen", &address]].concat()).await;
    let problem = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{problem}");
    assert!(problem.contains(&address), "{problem}");
    assert!(ended.stdout.is_empty(), "it said that it is ready");

    std::fs::write(&config, "[edge]\nlissten = \"x\"\n").unwrap();
    let ended = tollgate(&[up.as_slice(), &["--listen", "127.0.0.1:0"]].concat()).await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("lissten"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effective_configuration_can_be_seen_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let database = "[project.database]\nurl = \"postgres://me:canary@db.example/tollgate\"\n";
    let config = config_file(folder.path(), database).display().to_string();
    let shown = tollgate(&["up", "--print-config", "--config", &config, "--listen", "127.0.0.1:0"]).await;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    assert!(text.contains("postgres://***@db.example/tollgate") && !text.contains("canary"), "{text}");
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["edge"]["limits"]["credential_per_minute"].as_integer(), Some(1_000_000));

    // What `up` would refuse is refused here too.
    let config = config_file(folder.path(), "[project]\nlissten = 1\n").display().to_string();
    let refused = tollgate(&["up", "--print-config", "--config", &config, "--listen", "127.0.0.1:0"]).await;
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lissten"));

    let version = tollgate(&["--version"]).await;
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
}
