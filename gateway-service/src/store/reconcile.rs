//! SQL of reconciliation: the newest of a log about each artifact, what is missing in it, and what has drifted.

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    ReconcileStore, SqlStore,
    appends::AppendAll as _,
    drift::{join_said, push_differs, push_undone, push_wanted},
    push_in,
};
use crate::domain::{
    acks::State,
    log::NewEvent,
    reconcile::{Drifted, Repair, Told},
};
use crate::events::API_TYPES;

#[derive(sqlx::FromRow)]
struct ToldRow {
    artifact_id: String,
    revision: i64,
    event_id: String,
    r#type: String,
    deployment_id: String,
    state: String,
}

impl ToldRow {
    fn told(self) -> Result<Told> {
        let state = State::of(&self.state)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("unknown state {:?} in the log", self.state)))?;
        Ok(Told {
            artifact_id: self.artifact_id,
            revision: self.revision,
            event_id: self.event_id,
            event_type: self.r#type,
            deployment_id: self.deployment_id,
            state,
        })
    }
}

#[derive(sqlx::FromRow)]
struct DriftedRow {
    gateway_id: String,
    instance_id: String,
    artifact_id: String,
    revision: i64,
    r#type: String,
    deployment_id: String,
    reason: String,
}

impl From<DriftedRow> for Drifted {
    fn from(row: DriftedRow) -> Self {
        Self {
            gateway_id: row.gateway_id,
            instance_id: row.instance_id,
            artifact_id: row.artifact_id,
            revision: row.revision,
            event_type: row.r#type,
            deployment_id: row.deployment_id,
            reason: row.reason,
        }
    }
}

/// Appends ` FROM` the newest event `e` of each artifact of gateways.
macro_rules! push_newest {
    ($query:expr, $gateways:expr) => {{
        $query.push(
            " FROM gateway_events e JOIN (SELECT gateway_id, artifact_id, MAX(revision) AS revision
                FROM gateway_events WHERE ",
        );
        push_in!($query, "gateway_id", $gateways);
        $query.push(" AND ");
        push_in!($query, "type", API_TYPES.map(str::to_owned));
        $query.push(
            " GROUP BY gateway_id, artifact_id) n ON n.gateway_id = e.gateway_id AND n.revision = e.revision ",
        );
    }};
}

/// Repairs within a transaction, of a log that is locked.
#[async_trait]
trait Mend {
    /// The event to append; nothing when somebody else was faster.
    async fn missing(&mut self, gateway_id: &str, repair: &Repair) -> sqlx::Result<Option<NewEvent>>;
    /// Whether any log has this event.
    async fn has_event(&mut self, event_id: &str) -> sqlx::Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Mend for Connection {
    async fn missing(&mut self, gateway_id: &str, repair: &Repair) -> sqlx::Result<Option<NewEvent>> {
        let [a, b, c] = API_TYPES;
        let newest: Option<i64> = sqlx::query_scalar(
            "SELECT MAX(revision) FROM gateway_events
             WHERE gateway_id = $1 AND artifact_id = $2 AND type IN ($3, $4, $5)",
        )
        .bind(gateway_id)
        .bind(&repair.artifact_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .fetch_one(&mut *self)
        .await?;
        if newest.unwrap_or(0) != repair.seen {
            return Ok(None);
        }
        let id = match &repair.again_id {
            _ if !self.has_event(&repair.event_id).await? => &repair.event_id,
            Some(again) if !self.has_event(again).await? => again,
            _ => return Ok(None),
        };
        Ok(Some(NewEvent {
            id: id.clone(),
            gateway_id: gateway_id.to_owned(),
            event_type: repair.event_type.clone(),
            payload_json: repair.payload_json.clone(),
            artifact_id: repair.artifact_id.clone(),
            deployment_id: repair.deployment_id.clone(),
            event_key: repair.artifact_id.clone(),
            user_id: String::new(),
        }))
    }

    async fn has_event(&mut self, event_id: &str) -> sqlx::Result<bool> {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT revision FROM gateway_events WHERE event_id = $1")
                .bind(event_id)
                .fetch_optional(&mut *self)
                .await?;
        Ok(known.is_some())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ReconcileStore for SqlStore<Pool> {
    async fn told(&self, gateway_id: &str) -> Result<Option<(String, Vec<Told>)>> {
        let vhost: Option<String> = sqlx::query_scalar("SELECT vhost FROM gateways WHERE id = $1")
            .bind(gateway_id)
            .fetch_optional(self.pool.read())
            .await?;
        let Some(vhost) = vhost else { return Ok(None) };
        let mut query = QueryBuilder::new(
            "SELECT e.artifact_id, e.revision, e.event_id, e.type, e.deployment_id, e.state",
        );
        push_newest!(query, [gateway_id.to_owned()]);
        query.push("ORDER BY e.revision");
        let rows: Vec<ToldRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        Ok(Some((vhost, rows.into_iter().map(ToldRow::told).collect::<Result<_>>()?)))
    }

    async fn repair(&self, gateway_id: &str, repairs: &[Repair], now: i64) -> Result<usize> {
        let mut tx = self.pool.begin().await?;
        tx.lock([gateway_id].into()).await?;
        let mut events = Vec::with_capacity(repairs.len());
        for repair in repairs {
            events.extend(tx.missing(gateway_id, repair).await?);
        }
        let appended = tx.append_events(&events, now).await?;
        tx.commit().await?;
        Ok(events.len() - appended.unknown.len())
    }

    async fn drifted(&self, gateway_ids: &[String], before: i64) -> Result<Vec<Drifted>> {
        if gateway_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new(
            "SELECT e.gateway_id, '' AS instance_id, e.artifact_id, e.revision, e.type, e.deployment_id,
               e.error_code AS reason FROM gateway_events e WHERE ",
        );
        push_in!(query, "e.gateway_id", gateway_ids);
        query.push(" AND ");
        push_wanted!(query);
        query.push(" AND ");
        push_undone!(query, before);
        let mut rows: Vec<DriftedRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        // One instance has done it: have the others?
        let mut query = QueryBuilder::new(concat!(
            "SELECT e.gateway_id, c.instance_id, e.artifact_id, e.revision, e.type, e.deployment_id,
               COALESCE(r.reason, '') AS reason
             FROM gateway_events e JOIN connections c ON c.gateway_id = e.gateway_id",
            join_said!(),
            " WHERE ",
        ));
        push_in!(query, "e.gateway_id", gateway_ids);
        query.push(" AND ");
        push_wanted!(query);
        query.push(" AND ");
        push_differs!(query, before);
        let instances: Vec<DriftedRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        rows.extend(instances);
        Ok(rows.into_iter().map(Drifted::from).collect())
    }
}
