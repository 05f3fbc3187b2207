//! Exports signed heads: from time to time, when much is new, and at the end. A failure is told and tried
//! again; it never stops the service, because a full disk must not keep people out.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use service_kit::{Clock, seal::Sealer, shutdown::Tasks};
use tokio::time::Instant;

use super::{key::AuditKey, series::Series};
use crate::{
    config::Config,
    store::audit_log::{AuditLogStore, Head},
};

/// So many new events of a chain do not wait for the next export.
const SOON: i64 = 1_000;
/// How often to look for that.
const LOOK: Duration = Duration::from_secs(1);
/// When to try again after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// How many heads are written at a time.
const BATCH: i64 = 500;

/// Exports heads of the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Exporter {
    store: Arc<dyn AuditLogStore>,
    clock: Clock,
    sealer: Sealer,
    key_file: PathBuf,
    series: Series,
    every: Duration,
}

impl Exporter {
    pub(crate) fn new(config: &Config, store: Arc<dyn AuditLogStore>, sealer: Sealer, clock: Clock) -> Self {
        let every = Duration::from_secs(u64::from(config.audit.export_every));
        let series = Series::new(&config.audit.heads_folder);
        Self { store, clock, sealer, key_file: config.audit_key_file(), series, every }
    }

    /// Exports every head that changed since it was exported last; says how many. A head counts as
    /// exported once it is on disk, so a failure in the middle at worst exports some of them twice.
    pub(crate) async fn export(&self) -> anyhow::Result<usize> {
        let key = Arc::new(self.ready().await?);
        let (mut count, mut after) = (0, String::new());
        loop {
            let heads = self.store.unexported(&after, BATCH).await?;
            let Some(last) = heads.last() else { return Ok(count) };
            last.chain.clone_into(&mut after);
            count += heads.len();
            let heads = self.append(heads, key.clone()).await?;
            for head in heads {
                self.store.exported(&head.chain, head.sequence).await?;
            }
        }
    }

    /// The key, and the folder ready to take heads.
    async fn ready(&self) -> anyhow::Result<AuditKey> {
        let this = self.clone();
        let ready = move || {
            let key = AuditKey::load_or_create(&this.key_file, &this.sealer)?;
            this.series.prepare(key.public())?;
            anyhow::Ok(key)
        };
        tokio::task::spawn_blocking(ready).await?
    }

    async fn append(&self, heads: Vec<Head>, key: Arc<AuditKey>) -> anyhow::Result<Vec<Head>> {
        let (series, now) = (self.series.clone(), self.clock.now_ms());
        let append = move || {
            series.append(&heads, &key, now).context("cannot write heads")?;
            anyhow::Ok(heads)
        };
        tokio::task::spawn_blocking(append).await?
    }

    /// Exports until the very end of the service, so that what its last calls did is exported too.
    pub(crate) fn spawn(self, tasks: &Tasks) {
        let end = tasks.ending();
        // There from the beginning, so that the first failure is a change.
        metrics::counter!("tollgate_audit_export_failures_total").increment(0);
        tasks.spawn_last("audit export", async move {
            loop {
                let done = self.export_or_tell().await;
                tokio::select! {
                    () = self.due(done) => {}
                    () = end.cancelled() => break,
                }
            }
            self.export_or_tell().await;
            Ok(())
        });
    }

    /// Says whether all went well.
    async fn export_or_tell(&self) -> bool {
        match self.export().await {
            Ok(count) => {
                tracing::debug!(count, "heads of the audit log exported");
                true
            }
            Err(error) => {
                metrics::counter!("tollgate_audit_export_failures_total").increment(1);
                tracing::error!(error = format!("{error:#}"), "cannot export heads of the audit log");
                false
            }
        }
    }

    /// Waits until the next export.
    async fn due(&self, done: bool) {
        if !done {
            return tokio::time::sleep(RETRY.min(self.every)).await;
        }
        let next = Instant::now() + self.every;
        loop {
            tokio::time::sleep_until(next.min(Instant::now() + LOOK)).await;
            if Instant::now() >= next {
                return;
            }
            match self.store.is_behind(SOON).await {
                Ok(true) => return,
                Ok(false) => {}
                // The export will say more.
                Err(error) => tracing::debug!(%error, "cannot look how far the export is behind"),
            }
        }
    }
}
