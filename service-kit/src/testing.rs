//! Helpers for tests: databases of both kinds that nobody else uses, an identity, a served service.

mod postgres;
pub mod properties;
mod redis;
mod signer;

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;
use secrecy::SecretString;
use tempfile::TempDir;

use crate::db::DatabaseConfig;

pub use self::{postgres::TestPostgres, redis::TestRedis, signer::Signer};

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
        let mut config = config(TestPostgres::shared().url().to_owned());
        config.schema = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { config, _folder: None }
    }

    /// One of each kind: store tests run on both.
    pub fn both() -> [Self; 2] {
        [Self::sqlite(), Self::postgres()]
    }
}

fn config(url: String) -> DatabaseConfig {
    DatabaseConfig {
        url: SecretString::from(url),
        max_connections: 8,
        schema: "test".to_owned(),
        cache_kib: 2_000,
    }
}

/// Starts a watcher that ends a process and removes its folder when this process is gone, however it ended.
pub fn reap_with_us(server: &Child, folder: &std::path::Path) -> anyhow::Result<()> {
    // Not longer than the server is there: its number may be another's later.
    let script = r#"while kill -0 "$1" 2>/dev/null; do kill -0 "$2" 2>/dev/null || exit 0; sleep 0.2; done
        kill -INT "$2"; sleep 1; rm -rf "$3""#;
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
