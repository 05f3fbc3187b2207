//! SQL of the logs.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    outbox::Append as _,
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{EventStore, SqlStore, Stamp, acks::Acknowledge as _, push_in};
use crate::domain::{
    acks::{Ack, REPORTS, Verdict, delivered_report},
    log::{Appended, LogEvent, NewEvent, Sending},
};

/// `UPDATE` that locks the log of a gateway, and says whether there is one.
pub(super) const LOCK: &str = "UPDATE gateways SET head = head WHERE id = $1";

/// Events before a revision that is answered, about the same artifact: sent again, they would undo it.
pub(super) const SUPERSEDE: &str = "UPDATE gateway_events SET state = 'superseded'
     WHERE gateway_id = $1 AND revision < $2 AND state = 'delivered' AND artifact_id <> '' AND artifact_id =
       (SELECT done.artifact_id FROM gateway_events done WHERE done.gateway_id = $1 AND done.revision = $2)";

/// The next `performedAt` of an artifact on a gateway: now, or just after the last.
const NEXT_PERFORMED: &str = "INSERT INTO gateway_artifacts (gateway_id, artifact_id, performed_at)
     VALUES ($1, $2, $3)
     ON CONFLICT (gateway_id, artifact_id) DO UPDATE SET performed_at =
       CASE WHEN excluded.performed_at > gateway_artifacts.performed_at
            THEN excluded.performed_at ELSE gateway_artifacts.performed_at + 1 END
     RETURNING performed_at";

#[derive(sqlx::FromRow)]
struct EventRow {
    revision: i64,
    r#type: String,
    payload_json: String,
    artifact_id: String,
    deployment_id: String,
}

impl From<EventRow> for LogEvent {
    fn from(row: EventRow) -> Self {
        Self {
            revision: row.revision,
            event_type: row.r#type,
            payload_json: row.payload_json,
            artifact_id: row.artifact_id,
            deployment_id: row.deployment_id,
        }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl EventStore for SqlStore<Pool> {
    async fn append(&self, events: &[NewEvent], now: i64) -> Result<Appended> {
        let mut tx = self.pool.begin().await?;
        // In the order of ids: two appends cannot wait for each other.
        let gateways: BTreeSet<&str> = events.iter().map(|event| event.gateway_id.as_str()).collect();
        let mut grown: HashMap<&str, bool> = HashMap::new();
        for gateway in gateways.into_iter().filter(|id| service_kit::id::is_id(id)) {
            let locked = sqlx::query(LOCK).bind(gateway).execute(&mut *tx).await?;
            if locked.rows_affected() > 0 {
                grown.insert(gateway, false);
            }
        }
        let mut appended = Appended::default();
        for event in events {
            let Some(grows) = grown.get_mut(event.gateway_id.as_str()) else {
                appended.unknown.push(event.id.clone());
                continue;
            };
            let known: Option<i64> =
                sqlx::query_scalar("SELECT revision FROM gateway_events WHERE event_id = $1")
                    .bind(&event.id)
                    .fetch_optional(&mut *tx)
                    .await?;
            if known.is_some() {
                continue;
            }
            let performed_at: i64 = sqlx::query_scalar(NEXT_PERFORMED)
                .bind(&event.gateway_id)
                .bind(&event.artifact_id)
                .bind(now)
                .fetch_one(&mut *tx)
                .await?;
            let revision: i64 =
                sqlx::query_scalar("UPDATE gateways SET head = head + 1 WHERE id = $1 RETURNING head")
                    .bind(&event.gateway_id)
                    .fetch_one(&mut *tx)
                    .await?;
            sqlx::query(
                "INSERT INTO gateway_events (gateway_id, revision, event_id, type, artifact_id, deployment_id,
                   payload_json, state, performed_at, correlation_id, sendings, error_code, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', $8, '', 0, '', $9)",
            )
            .bind(&event.gateway_id)
            .bind(revision)
            .bind(&event.id)
            .bind(&event.event_type)
            .bind(&event.artifact_id)
            .bind(&event.deployment_id)
            .bind(&event.payload_json)
            .bind(performed_at)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            *grows = true;
        }
        tx.commit().await?;
        appended.grown = grown.into_iter().filter(|(_, grows)| *grows).map(|(id, _)| id.to_owned()).collect();
        Ok(appended)
    }

    async fn open_after(&self, gateway_id: &str, revision: i64, most: usize) -> Result<Vec<LogEvent>> {
        let rows: Vec<EventRow> = sqlx::query_as(
            "SELECT revision, type, payload_json, artifact_id, deployment_id FROM gateway_events
             WHERE gateway_id = $1 AND revision > $2 AND state IN ('pending', 'delivered')
             ORDER BY revision LIMIT $3",
        )
        .bind(gateway_id)
        .bind(revision)
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(LogEvent::from).collect())
    }

    async fn stamp(&self, gateway_id: &str, events: Vec<Stamp>, now: i64) -> Result<Vec<Sending>> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        let mut sendings = Vec::with_capacity(events.len());
        for Stamp { event, correlation_id, report_id } in events {
            let open: Option<i64> = sqlx::query_scalar(
                "SELECT sendings FROM gateway_events
                 WHERE gateway_id = $1 AND revision = $2 AND state IN ('pending', 'delivered')",
            )
            .bind(gateway_id)
            .bind(event.revision)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(before) = open else { continue };
            let performed_at: i64 = sqlx::query_scalar(NEXT_PERFORMED)
                .bind(gateway_id)
                .bind(&event.artifact_id)
                .bind(now)
                .fetch_one(&mut *tx)
                .await?;
            sqlx::query(
                "UPDATE gateway_events SET state = 'delivered', performed_at = $3, correlation_id = $4,
                   sendings = sendings + 1, delivered_at = COALESCE(delivered_at, $5)
                 WHERE gateway_id = $1 AND revision = $2",
            )
            .bind(gateway_id)
            .bind(event.revision)
            .bind(performed_at)
            .bind(&correlation_id)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            let report = delivered_report(gateway_id, &event.event_type, &event.deployment_id, now);
            if let Some(report) = report.filter(|_| before == 0) {
                tx.append(REPORTS, &report_id, report).await?;
            }
            sendings.push(Sending { event, performed_at, correlation_id });
        }
        tx.commit().await?;
        Ok(sendings)
    }

    async fn complete(&self, gateway_id: &str, revisions: &[i64], now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        for revision in revisions {
            sqlx::query(
                "UPDATE gateway_events SET state = 'acked', acked_at = $3
                 WHERE gateway_id = $1 AND revision = $2 AND state = 'delivered'",
            )
            .bind(gateway_id)
            .bind(revision)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            sqlx::query(SUPERSEDE).bind(gateway_id).bind(revision).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn acknowledge(&self, gateway_id: &str, ack: &Ack, now: i64) -> Result<Verdict> {
        let mut tx = self.pool.begin().await?;
        let verdict = tx.acknowledge(gateway_id, ack, now).await?;
        tx.commit().await?;
        Ok(verdict)
    }

    async fn performed(&self, gateway_id: &str) -> Result<Vec<(String, i64)>> {
        // Before it is acknowledged an event must look newer than the list: a gateway that takes the list
        // first would else find the event stale, and never acknowledge it.
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT e.artifact_id, COALESCE(e.acked_performed_at, e.performed_at - 1) FROM gateway_events e
             JOIN (SELECT artifact_id, MAX(revision) AS revision FROM gateway_events
                   WHERE gateway_id = $1 AND artifact_id <> '' GROUP BY artifact_id) newest
               ON newest.revision = e.revision
             WHERE e.gateway_id = $1",
        )
        .bind(gateway_id)
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows)
    }

    async fn heads(&self, gateway_ids: &[String]) -> Result<Vec<(String, i64)>> {
        let mut query = QueryBuilder::new("SELECT id, head FROM gateways WHERE ");
        push_in!(query, "id", gateway_ids);
        Ok(query.build_query_as().fetch_all(self.pool.read()).await?)
    }
}
