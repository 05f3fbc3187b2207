//! SQL that appends once more what gateways refused.

use std::collections::BTreeSet;

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    RetryStore, SqlStore,
    appends::AppendAll as _,
    dialect::{Dialect as _, rows},
};
use crate::domain::{
    acks::State,
    retries::{Entry, MISMATCH, PROCESSING_ERROR, RetryRule, named_next},
};

/// The newest events of keys that are refused and may go well the next time; when they were, and how often: a
/// removal that names one deployment after the other is refused once.
const REFUSED: &str = "SELECT e.gateway_id, e.revision, e.event_id, e.type, e.payload_json, e.artifact_id,
       e.deployment_id, e.event_key, e.user_id, e.named_id, e.state, e.error_code,
       COALESCE(e.acked_at, e.created_at) AS refused_at,
       (SELECT COUNT(*) FROM gateway_events b WHERE b.gateway_id = e.gateway_id AND b.event_key = e.event_key
         AND b.type = e.type AND b.deployment_id = e.deployment_id AND b.state = 'failed' AND b.named_id = '') AS times
     FROM json_each($1) AS i JOIN gateway_events e ON e.gateway_id = i.value ->> 0
     WHERE e.state = 'failed' AND e.event_key <> '' AND e.error_code IN ($2, $3)
       AND NOT EXISTS (SELECT 1 FROM gateway_events n WHERE n.gateway_id = e.gateway_id
         AND n.event_key = e.event_key AND n.revision > e.revision)
     ORDER BY e.gateway_id, e.revision";

/// The newest events of the key of an event.
const HISTORY: &str = "SELECT e.gateway_id, e.revision, e.event_id, e.type, e.payload_json, e.artifact_id,
       e.deployment_id, e.event_key, e.user_id, e.named_id, e.state, e.error_code,
       CAST(0 AS BIGINT) AS refused_at, CAST(0 AS BIGINT) AS times
     FROM gateway_events e WHERE e.gateway_id = $1 AND e.event_key <> '' AND e.event_key =
       (SELECT event_key FROM gateway_events WHERE gateway_id = $1 AND revision = $2)
     ORDER BY e.revision DESC LIMIT 500";

#[derive(sqlx::FromRow)]
struct EntryRow {
    gateway_id: String,
    revision: i64,
    event_id: String,
    r#type: String,
    payload_json: String,
    artifact_id: String,
    deployment_id: String,
    event_key: String,
    user_id: String,
    named_id: String,
    state: String,
    error_code: String,
    refused_at: i64,
    times: i64,
}

impl EntryRow {
    fn entry(self) -> Result<Entry> {
        let state = State::of(&self.state)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("unknown state {:?} in the log", self.state)))?;
        Ok(Entry {
            revision: self.revision,
            event_id: self.event_id,
            event_type: self.r#type,
            payload_json: self.payload_json,
            artifact_id: self.artifact_id,
            deployment_id: self.deployment_id,
            event_key: self.event_key,
            user_id: self.user_id,
            named_id: self.named_id,
            state,
            reason: self.error_code,
        })
    }
}

/// Appends what was refused within a transaction that holds the locks of the logs.
#[async_trait]
pub(super) trait Retry {
    /// For each of these removals (gateway, revision) that name another deployment than the gateway has: one that
    /// names the next that may be there, unless something newer is in the log.
    async fn name_another(&mut self, refused: &[(String, i64)], now: i64) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Retry for Connection {
    async fn name_another(&mut self, refused: &[(String, i64)], now: i64) -> Result<()> {
        for (gateway_id, revision) in refused {
            let history: Vec<EntryRow> =
                sqlx::query_as(HISTORY).bind(gateway_id).bind(revision).fetch_all(&mut *self).await?;
            let history = history.into_iter().map(EntryRow::entry).collect::<Result<Vec<_>>>()?;
            let Some(newest) = history.first().filter(|newest| newest.revision == *revision) else {
                continue;
            };
            let reported: Option<String> = sqlx::query_scalar(
                "SELECT deployment_id FROM gateway_reported
                 WHERE gateway_id = $1 AND instance_id = '' AND artifact_id = $2",
            )
            .bind(gateway_id)
            .bind(&newest.artifact_id)
            .fetch_optional(&mut *self)
            .await?;
            let Some(named) = named_next(&history, reported.as_deref().unwrap_or_default()) else { continue };
            let event = newest.naming(gateway_id, &named);
            self.append_events(std::slice::from_ref(&event), now).await?;
            sqlx::query("UPDATE gateway_events SET named_id = $2 WHERE event_id = $1")
                .bind(&event.id)
                .bind(&named)
                .execute(&mut *self)
                .await?;
        }
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl RetryStore for SqlStore<Pool> {
    async fn retry(&self, gateway_ids: &[String], rule: RetryRule) -> Result<Vec<String>> {
        let asked: Vec<_> = gateway_ids.iter().map(|gateway| (gateway,)).collect();
        let is_due = |row: &EntryRow| rule.is_due(row.times, row.refused_at);
        let refused: Vec<EntryRow> = sqlx::query_as(Pool::sql(REFUSED))
            .bind(rows(&asked)?)
            .bind(PROCESSING_ERROR)
            .bind(MISMATCH)
            .fetch_all(self.pool.read())
            .await?;
        let due: BTreeSet<String> = refused.into_iter().filter(is_due).map(|row| row.gateway_id).collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.pool.begin().await?;
        tx.lock(due.iter().map(String::as_str).collect()).await?;
        // Another instance may have been faster, and the gateway too.
        let asked: Vec<_> = due.iter().map(|gateway| (gateway,)).collect();
        let refused: Vec<EntryRow> = sqlx::query_as(Pool::sql(REFUSED))
            .bind(rows(&asked)?)
            .bind(PROCESSING_ERROR)
            .bind(MISMATCH)
            .fetch_all(&mut *tx)
            .await?;
        let mut events = Vec::new();
        for row in refused.into_iter().filter(is_due) {
            let gateway_id = row.gateway_id.clone();
            events.push(row.entry()?.again(&gateway_id));
        }
        let appended = tx.append_events(&events, rule.now).await?;
        tx.commit().await?;
        Ok(appended.grown.into_keys().collect())
    }
}
