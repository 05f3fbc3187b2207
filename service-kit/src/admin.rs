//! The admin port: `/livez`, `/readyz`, `/metrics`. Never public.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::net::TcpListener;

use crate::shutdown::Tasks;

type Check = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// What must answer before a service is ready. Clones share their state.
#[derive(Clone, Default)]
pub struct Readiness {
    draining: Arc<AtomicBool>,
    checks: Vec<(&'static str, Check)>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|(name, _)| name).collect();
        f.debug_struct("Readiness").field("draining", &self.draining).field("checks", &names).finish()
    }
}

impl Readiness {
    /// Ready at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also needs this check, which may take a second.
    pub fn with(
        mut self,
        name: &'static str,
        check: impl Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name, Arc::new(check)));
        self
    }

    /// Also needs the database.
    pub fn with_database(self, database: &crate::db::Database) -> Self {
        let database = database.clone();
        self.with("database", move || {
            let database = database.clone();
            Box::pin(async move { Ok(database.ping().await?) })
        })
    }

    /// Not ready any more.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the service drains.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// What is not ready; empty when all is.
    pub async fn failing(&self) -> Vec<String> {
        let mut failing = Vec::new();
        if self.is_draining() {
            failing.push("draining".to_owned());
        }
        for (name, check) in &self.checks {
            match tokio::time::timeout(Duration::from_secs(1), check()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failing.push(format!("{name}: {error:#}")),
                Err(_) => failing.push(format!("{name}: no answer in 1 s")),
            }
        }
        failing
    }
}

/// Serves the admin port.
pub fn spawn(tasks: &Tasks, listener: TcpListener, readiness: Readiness) {
    spawn_with(tasks, listener, readiness, Router::new());
}

/// Serves the admin port with more routes.
pub fn spawn_with(tasks: &Tasks, listener: TcpListener, readiness: Readiness, more: Router) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { crate::telemetry::render_metrics() }))
        .with_state(readiness)
        .merge(more);
    let end = tasks.ending();
    tasks.spawn_last("admin listener", async move {
        // The admin port outlives all other tasks: it says "draining" until they have ended.
        axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await?;
        Ok(())
    });
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let failing = readiness.failing().await;
    if failing.is_empty() {
        (StatusCode::OK, Json(json!({"status": "ready"})))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not ready", "failing": failing})))
    }
}
