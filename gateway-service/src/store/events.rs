//! SQL of the logs.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use service_kit::{
    Error, Ids, Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{
    Batch, EventStore, Outcome, SqlStore,
    acks::Acknowledge as _,
    appends::AppendAll as _,
    deliveries::Deliver as _,
    dialect::{Dialect as _, rows},
    instances::Reports as _,
    keys::push_replaces,
    push_in,
};
use crate::domain::{
    acks::State,
    instances::Author,
    log::{Appended, Delivery, NewEvent, Requeue, comes_again},
    retries::payload_naming,
};

/// `UPDATE` that locks the log of a gateway, and says whether there is one.
pub(super) const LOCK: &str = "UPDATE gateways SET head = head WHERE id = $1";

#[derive(sqlx::FromRow)]
struct NewestRow {
    revision: i64,
    state: String,
    r#type: String,
    payload_json: String,
    artifact_id: String,
    deployment_id: String,
    event_key: String,
    user_id: String,
    named_id: String,
}

impl NewestRow {
    fn copy(self, gateway_id: &str, ids: &Ids) -> NewEvent {
        NewEvent {
            id: ids.next(),
            gateway_id: gateway_id.to_owned(),
            event_type: self.r#type,
            payload_json: if self.named_id.is_empty() {
                self.payload_json
            } else {
                payload_naming(&self.payload_json, &self.deployment_id)
            },
            artifact_id: self.artifact_id,
            deployment_id: self.deployment_id,
            event_key: self.event_key,
            user_id: self.user_id,
        }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl EventStore for SqlStore<Pool> {
    async fn append(&self, events: &[NewEvent], deliveries: &[Delivery], now: i64) -> Result<Appended> {
        let mut tx = self.pool.begin().await?;
        let mut appended = tx.append_events(events, now).await?;
        appended.taken = tx.deliver_all(deliveries, now).await?;
        tx.commit().await?;
        Ok(appended)
    }

    async fn write(&self, batch: &Batch, now: i64) -> Result<Outcome> {
        let mut tx = self.pool.begin().await?;
        let delivered = batch.deliveries.iter().map(|delivery| delivery.gateway_id.as_str());
        let answering = batch.answers.iter().map(|answer| answer.gateway_id.as_str());
        tx.lock(delivered.chain(answering).collect()).await?;
        // What is answered need not be sent.
        let verdicts = tx.acknowledge_all(&batch.answers, now).await?;
        let taken = tx.deliver_all(&batch.deliveries, now).await?;
        tx.commit().await?;
        Ok(Outcome { taken, verdicts })
    }

    async fn complete(&self, author: Author<'_>, revisions: &[i64], now: i64) -> Result<bool> {
        let gateway_id = author.gateway_id;
        let mut tx = self.pool.begin().await?;
        if !tx.admits(author).await? {
            return Ok(false);
        }
        let input: Vec<_> = revisions.iter().map(|revision| (gateway_id, revision)).collect();
        let done: Vec<(i64, String)> = sqlx::query_as(Pool::sql(
            "UPDATE gateway_events SET state = 'acked', acked_at = $2 FROM json_each($1) AS i
             WHERE gateway_events.gateway_id = i.value ->> 0
               AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)
               AND gateway_events.state = 'delivered'
             RETURNING gateway_events.revision, gateway_events.event_key",
        ))
        .bind(rows(&input)?)
        .bind(now)
        .fetch_all(&mut *tx)
        .await?;
        let done: Vec<_> = done.into_iter().map(|(rev, key)| (gateway_id.to_owned(), rev, key)).collect();
        tx.supersede_older(&done).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn requeue(&self, asked: Requeue<'_>, ids: &Ids, now: i64) -> Result<(usize, i64)> {
        let gateway_id = asked.gateway_id;
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        let mut query = QueryBuilder::new(
            "SELECT e.revision, e.state, e.type, e.payload_json, e.artifact_id, e.deployment_id, e.event_key,
               e.user_id, e.named_id
             FROM gateway_events e WHERE e.event_key <> '' AND e.gateway_id = ",
        );
        query.push_bind(gateway_id);
        if let Some(artifact_id) = asked.artifact_id {
            query.push(" AND e.artifact_id = ").push_bind(artifact_id);
        }
        query.push(" AND NOT EXISTS (SELECT 1 FROM gateway_events n WHERE ");
        push_replaces!(query);
        query.push(") ORDER BY e.revision");
        let newest: Vec<NewestRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let mut copies = Vec::new();
        let mut replaced = Vec::new();
        let mut keys = HashSet::new();
        for row in newest {
            let state = State::of(&row.state).ok_or_else(|| {
                Error::internal(anyhow::anyhow!("unknown state {:?} in the log", row.state))
            })?;
            // What of a key comes after something that comes again has to come after it once more.
            if keys.contains(&row.event_key) || comes_again(state, &row.r#type, asked.full) {
                keys.insert(row.event_key.clone());
                replaced.push((gateway_id, row.revision));
                copies.push(row.copy(gateway_id, ids));
            }
        }
        tx.append_events(&copies, now).await?;
        sqlx::query(Pool::sql(
            "UPDATE gateway_events SET state = 'superseded' FROM json_each($1) AS i
             WHERE gateway_events.gateway_id = i.value ->> 0
               AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)
               AND gateway_events.state IN ('pending', 'delivered')",
        ))
        .bind(rows(&replaced)?)
        .execute(&mut *tx)
        .await?;
        let head: Option<i64> = sqlx::query_scalar("SELECT head FROM gateways WHERE id = $1")
            .bind(gateway_id)
            .fetch_optional(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok((copies.len(), head.unwrap_or(0)))
    }

    async fn unanswered(&self, sent: &[(String, i64)]) -> Result<HashMap<String, Vec<i64>>> {
        let open: Vec<(String, i64)> = sqlx::query_as(Pool::sql(
            "SELECT e.gateway_id, e.revision FROM json_each($1) AS i
             JOIN gateway_events e ON e.gateway_id = i.value ->> 0
               AND e.revision = CAST(i.value ->> 1 AS BIGINT)
             WHERE e.state = 'delivered' ORDER BY e.gateway_id, e.revision",
        ))
        .bind(rows(sent)?)
        .fetch_all(self.pool.read())
        .await?;
        let mut by_gateway: HashMap<String, Vec<i64>> = HashMap::new();
        for (gateway, revision) in open {
            by_gateway.entry(gateway).or_default().push(revision);
        }
        Ok(by_gateway)
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
