//! SQL of what operators ask: connections, failures, states of artifacts.

use std::collections::HashMap;

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
    page::Page,
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{
    OperationsStore, SqlStore,
    drift::{push_drifted, push_wanted},
    push_in,
};
use crate::{
    domain::{
        acks::State,
        connections::Connection,
        figures::Figures,
        operations::{Deliveries, FailedDelivery, Held, Live, Scope},
        states::{ArtifactState, DriftRule, Reported},
    },
    events,
};

/// How many revisions of the log the connection `c` of the gateway `g` has not acknowledged. Those that keep no
/// revision of their own share what the gateway as a whole has not.
macro_rules! lag {
    () => {
        "CASE WHEN c.applied_revision > 0 THEN g.head - c.applied_revision ELSE
           (SELECT COUNT(*) FROM gateway_events o
            WHERE o.gateway_id = g.id AND o.state IN ('pending', 'delivered')) END"
    };
}

/// Appends the condition that a row of `table` belongs to a scope.
macro_rules! push_scope {
    ($query:expr, $table:literal, $scope:expr) => {
        match $scope {
            Scope::Gateway(id) => {
                $query.push(concat!($table, ".gateway_id = ")).push_bind(id.as_str());
            }
            Scope::Organizations(ids) => push_in!($query, concat!($table, ".organization_id"), ids),
        }
    };
}

#[derive(sqlx::FromRow)]
struct LiveRow {
    id: String,
    node_id: String,
    gateway_id: String,
    organization_id: String,
    token_id: String,
    instance_id: String,
    transport: String,
    version: String,
    remote_address: String,
    connected_at: i64,
    heard_at: i64,
    sent_revision: i64,
    applied_revision: i64,
    gateway_name: String,
    lag: i64,
}

impl LiveRow {
    fn live(self, quiet_since: i64) -> Live {
        Live {
            stale: self.heard_at < quiet_since,
            lag: self.lag,
            gateway_name: self.gateway_name,
            connection: Connection {
                id: self.id,
                node_id: self.node_id,
                gateway_id: self.gateway_id,
                organization_id: self.organization_id,
                token_id: self.token_id,
                instance_id: self.instance_id,
                transport: self.transport,
                version: self.version,
                remote_address: self.remote_address,
                connected_at: self.connected_at,
                heard_at: self.heard_at,
                sent_revision: self.sent_revision,
                applied_revision: self.applied_revision,
            },
        }
    }
}

#[derive(sqlx::FromRow)]
struct FailureRow {
    id: String,
    gateway_id: String,
    instance_id: String,
    revision: i64,
    r#type: String,
    artifact_id: String,
    deployment_id: String,
    reason: String,
    detail: String,
    failed_at: i64,
}

impl From<FailureRow> for FailedDelivery {
    fn from(row: FailureRow) -> Self {
        Self {
            id: row.id,
            gateway_id: row.gateway_id,
            instance_id: row.instance_id,
            revision: row.revision,
            event_type: row.r#type,
            artifact_id: row.artifact_id,
            deployment_id: row.deployment_id,
            reason: row.reason,
            detail: row.detail,
            failed_at: row.failed_at,
        }
    }
}

#[derive(sqlx::FromRow)]
struct StateRow {
    artifact_id: String,
    deployment_id: String,
    r#type: String,
    revision: i64,
    created_at: i64,
    state: String,
    error_code: String,
    drifted: i64,
}

impl StateRow {
    fn state(self, reported: Vec<Reported>) -> Result<ArtifactState> {
        let unreadable = || Error::internal(anyhow::anyhow!("revision {} cannot be read", self.revision));
        let answer =
            events::find(&self.r#type).and_then(|event| event.answer.as_ref()).ok_or_else(unreadable)?;
        let state = State::of(&self.state).ok_or_else(unreadable)?;
        Ok(ArtifactState {
            desired: answer.action,
            reason: if state == State::Failed { self.error_code } else { String::new() },
            state,
            artifact_id: self.artifact_id,
            deployment_id: self.deployment_id,
            revision: self.revision,
            desired_at: self.created_at,
            drifted: self.drifted != 0,
            reported,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ReportedRow {
    artifact_id: String,
    instance_id: String,
    deployment_id: String,
    revision: i64,
    rejected_revision: i64,
    reason: String,
    reported_at: i64,
}

/// Reports by artifact, in the order of their rows.
fn by_artifact(rows: Vec<ReportedRow>) -> HashMap<String, Vec<Reported>> {
    let mut all: HashMap<String, Vec<Reported>> = HashMap::new();
    for row in rows {
        all.entry(row.artifact_id).or_default().push(Reported {
            instance_id: row.instance_id,
            deployment_id: row.deployment_id,
            revision: row.revision,
            rejected_revision: row.rejected_revision,
            reason: row.reason,
            reported_at: row.reported_at,
        });
    }
    all
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl OperationsStore for SqlStore<Pool> {
    async fn connections(&self, scope: &Scope, quiet_since: i64, page: Page) -> Result<(Vec<Live>, i64)> {
        let mut count = QueryBuilder::new("SELECT COUNT(*) FROM connections c WHERE ");
        push_scope!(count, "c", scope);
        let total: i64 = count.build_query_scalar().fetch_one(self.pool.read()).await?;
        let mut query = QueryBuilder::new(concat!(
            "SELECT c.id, c.node_id, c.gateway_id, c.organization_id, c.token_id, c.instance_id, c.transport,
               c.version, c.remote_address, c.connected_at, c.heard_at, c.sent_revision, c.applied_revision,
               g.name AS gateway_name, ",
            lag!(),
            " AS lag FROM connections c JOIN gateways g ON g.id = c.gateway_id WHERE ",
        ));
        push_scope!(query, "c", scope);
        query.push(" ORDER BY c.connected_at DESC, c.id DESC LIMIT ").push_bind(page.sql_limit());
        query.push(" OFFSET ").push_bind(page.sql_offset());
        let rows: Vec<LiveRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        Ok((rows.into_iter().map(|row| row.live(quiet_since)).collect(), total))
    }

    async fn failures(
        &self,
        scope: &Scope,
        from: i64,
        to: i64,
        page: Page,
    ) -> Result<(Vec<FailedDelivery>, i64)> {
        let mut count = QueryBuilder::new("SELECT COUNT(*) FROM failed_deliveries f WHERE f.failed_at >= ");
        count.push_bind(from).push(" AND f.failed_at < ").push_bind(to).push(" AND ");
        push_scope!(count, "f", scope);
        let total: i64 = count.build_query_scalar().fetch_one(self.pool.read()).await?;
        let mut query = QueryBuilder::new(
            "SELECT f.id, f.gateway_id, f.instance_id, f.revision, f.type, f.artifact_id, f.deployment_id,
               f.reason, f.detail, f.failed_at FROM failed_deliveries f WHERE f.failed_at >= ",
        );
        query.push_bind(from).push(" AND f.failed_at < ").push_bind(to).push(" AND ");
        push_scope!(query, "f", scope);
        query.push(" ORDER BY f.failed_at DESC, f.id DESC LIMIT ").push_bind(page.sql_limit());
        query.push(" OFFSET ").push_bind(page.sql_offset());
        let rows: Vec<FailureRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        Ok((rows.into_iter().map(FailedDelivery::from).collect(), total))
    }

    async fn artifacts(
        &self,
        gateway_id: &str,
        drift: DriftRule,
        only_drifted: bool,
        page: Page,
    ) -> Result<(Vec<ArtifactState>, i64)> {
        let mut count = QueryBuilder::new("SELECT COUNT(*)");
        count.push(" FROM gateway_events e WHERE e.gateway_id = ").push_bind(gateway_id).push(" AND ");
        push_wanted!(count);
        let mut query = QueryBuilder::new(
            "SELECT e.artifact_id, e.deployment_id, e.type, e.revision, e.created_at, e.state, e.error_code,
               CAST(CASE WHEN ",
        );
        push_drifted!(query, drift.since);
        query.push(" THEN 1 ELSE 0 END AS BIGINT) AS drifted");
        query.push(" FROM gateway_events e WHERE e.gateway_id = ").push_bind(gateway_id).push(" AND ");
        push_wanted!(query);
        if only_drifted {
            count.push(" AND ");
            push_drifted!(count, drift.since);
            query.push(" AND ");
            push_drifted!(query, drift.since);
        }
        let total: i64 = count.build_query_scalar().fetch_one(self.pool.read()).await?;
        query.push(" ORDER BY e.artifact_id LIMIT ").push_bind(page.sql_limit());
        query.push(" OFFSET ").push_bind(page.sql_offset());
        let rows: Vec<StateRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        if rows.is_empty() {
            return Ok((Vec::new(), total));
        }
        let mut query = QueryBuilder::new(
            "SELECT artifact_id, instance_id, deployment_id, revision, rejected_revision, reason, reported_at
             FROM gateway_reported r WHERE gateway_id = ",
        );
        query.push_bind(gateway_id).push(" AND ");
        push_in!(query, "r.artifact_id", rows.iter().map(|row| &row.artifact_id));
        query.push(" ORDER BY instance_id");
        let mut reported = by_artifact(query.build_query_as().fetch_all(self.pool.read()).await?);
        let state = |row: StateRow| {
            let reported = reported.remove(&row.artifact_id).unwrap_or_default();
            row.state(reported)
        };
        Ok((rows.into_iter().map(state).collect::<Result<_>>()?, total))
    }

    async fn figures(&self, drift: DriftRule) -> Result<Figures> {
        let lag: i64 = sqlx::query_scalar(concat!(
            "SELECT COALESCE(MAX(all_of.lag), 0) FROM (SELECT ",
            lag!(),
            " AS lag FROM connections c JOIN gateways g ON g.id = c.gateway_id) all_of",
        ))
        .fetch_one(self.pool.read())
        .await?;
        let mut query = QueryBuilder::new("SELECT COUNT(*) FROM gateway_events e WHERE ");
        push_wanted!(query);
        query.push(" AND ");
        push_drifted!(query, drift.since);
        let drifted = query.build_query_scalar().fetch_one(self.pool.read()).await?;
        Ok(Figures { lag, drifted })
    }

    async fn has_artifact(&self, gateway_id: &str, artifact_id: &str) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT revision FROM gateway_events WHERE gateway_id = $1 AND artifact_id = $2 LIMIT 1",
        )
        .bind(gateway_id)
        .bind(artifact_id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(found.is_some())
    }

    async fn has_event(&self, gateway_id: &str, event_id: &str) -> Result<bool> {
        let query = "SELECT revision FROM gateway_events WHERE event_id = $1 AND gateway_id = $2";
        let known: Option<i64> = sqlx::query_scalar(query)
            .bind(event_id)
            .bind(gateway_id)
            .fetch_optional(self.pool.read())
            .await?;
        Ok(known.is_some())
    }

    async fn held(&self, gateway_id: &str, key: &str) -> Result<Held> {
        let mut query = QueryBuilder::new(
            "SELECT COUNT(CASE WHEN e.state IN ('pending', 'delivered') THEN 1 END),
               COUNT(DISTINCT CASE WHEN e.state NOT IN ('pending', 'delivered') AND e.event_key <> ''
                 THEN e.event_key END),
               COUNT(CASE WHEN e.event_key <> '' AND e.event_key = ",
        );
        query.push_bind(key).push(" THEN 1 END) FROM gateway_events e WHERE e.gateway_id = ");
        query.push_bind(gateway_id).push(" AND (e.type LIKE ").push_bind(events::CUSTOM_NAMES).push(" OR ");
        push_in!(query, "e.type", events::operator_names());
        query.push(")");
        let (waiting, keys, of_key): (i64, i64, i64) =
            query.build_query_as().fetch_one(self.pool.read()).await?;
        Ok(Held { waiting, keys, has_key: of_key > 0 })
    }

    async fn deliveries(&self, scope: &Scope) -> Result<Deliveries> {
        let mut query = QueryBuilder::new(
            "SELECT CAST(COALESCE(SUM(g.events_sent), 0) AS BIGINT), CAST(COALESCE(SUM(g.failures), 0) AS BIGINT)
             FROM (SELECT id AS gateway_id, organization_id, events_sent, failures FROM gateways) g WHERE ",
        );
        push_scope!(query, "g", scope);
        let (sent, failed): (i64, i64) = query.build_query_as().fetch_one(self.pool.read()).await?;
        let mut query = QueryBuilder::new("SELECT f.failed_at, f.reason FROM failed_deliveries f WHERE ");
        push_scope!(query, "f", scope);
        query.push(" ORDER BY f.failed_at DESC, f.id DESC LIMIT 1");
        let last_failure = query.build_query_as().fetch_optional(self.pool.read()).await?;
        Ok(Deliveries { sent, failed, last_failure })
    }
}
