//! SQL of what instances of gateways get, and of what they say that they run.

use std::collections::BTreeMap;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    InstanceStore, SqlStore, events::LOCK, failures::Fail as _, keys::push_replaces, push_in,
    settle::Settle as _,
};
use crate::{
    domain::{
        failures::Failure,
        instances::{Author, Belief, Change, Position, Refusal, Reply, Reported, Settled, Subject},
        log::LogEvent,
    },
    events::{self, Effect},
};

/// How many rows one statement writes: the number of parameters is limited.
const CHUNK: usize = 500;

/// Appends ` AND …` to a dynamic query over the events `e`: no newer event of the key takes its place.
macro_rules! push_newest {
    ($query:expr) => {{
        $query.push(" AND (e.event_key = '' OR NOT EXISTS (SELECT 1 FROM gateway_events n WHERE ");
        push_replaces!($query);
        $query.push("))");
    }};
}

/// A row of what was reported.
type ReportedRow = (String, String, i64, i64, String);

/// The head of a log, and an event of it unless there is none.
#[derive(sqlx::FromRow)]
struct ChangeRow {
    head: i64,
    revision: Option<i64>,
    r#type: Option<String>,
    payload_json: Option<String>,
    artifact_id: Option<String>,
    deployment_id: Option<String>,
    event_key: Option<String>,
    user_id: Option<String>,
    performed_at: Option<i64>,
    state: Option<String>,
}

#[derive(sqlx::FromRow)]
struct SubjectRow {
    revision: i64,
    r#type: String,
    event_key: String,
    deployment_id: String,
}

impl From<SubjectRow> for Subject {
    fn from(row: SubjectRow) -> Self {
        let effect = Effect::of(&row.r#type);
        Self { revision: row.revision, key: row.event_key, deployment_id: row.deployment_id, effect }
    }
}

/// The head and the events of such rows; none when there is no gateway.
fn changes(rows: Vec<ChangeRow>) -> (i64, Vec<Change>) {
    let head = rows.first().map_or(0, |row| row.head);
    let change = |row: ChangeRow| {
        let event = LogEvent {
            revision: row.revision?,
            event_type: row.r#type?,
            payload_json: row.payload_json?,
            artifact_id: row.artifact_id?,
            deployment_id: row.deployment_id?,
            event_key: row.event_key?,
            user_id: row.user_id?,
        };
        let is_first = row.state? == "pending";
        Some(Change { event, performed_at: row.performed_at?, is_first })
    };
    (head, rows.into_iter().filter_map(change).collect())
}

fn belief(rows: Vec<ReportedRow>) -> Belief {
    let reported = |(key, deployment_id, revision, rejected_revision, reason)| {
        (key, Reported { deployment_id, revision, rejected_revision, reason })
    };
    Belief(rows.into_iter().map(reported).collect::<BTreeMap<_, _>>())
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl InstanceStore for SqlStore<Pool> {
    async fn position(&self, gateway_id: &str, instance_id: &str) -> Result<Position> {
        let row: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT g.floor, g.head, COALESCE(i.applied_revision, 0) FROM gateways g
             LEFT JOIN gateway_instances i ON i.gateway_id = g.id AND i.instance_id = $2 WHERE g.id = $1",
        )
        .bind(gateway_id)
        .bind(instance_id)
        .fetch_optional(self.pool.read())
        .await?;
        let (floor, head, answered) = row.unwrap_or_default();
        Ok(Position { floor, head, answered })
    }

    async fn belief(&self, gateway_id: &str, instance_id: &str) -> Result<Belief> {
        let rows: Vec<ReportedRow> = sqlx::query_as(
            "SELECT artifact_id, deployment_id, revision, rejected_revision, reason FROM gateway_reported
             WHERE gateway_id = $1 AND instance_id = $2",
        )
        .bind(gateway_id)
        .bind(instance_id)
        .fetch_all(self.pool.read())
        .await?;
        Ok(belief(rows))
    }

    async fn newest(&self, gateway_id: &str, upto: i64) -> Result<Vec<Subject>> {
        let rows: Vec<SubjectRow> = sqlx::query_as(
            "SELECT e.revision, e.type, e.event_key, e.deployment_id FROM gateway_events e
             WHERE e.gateway_id = $1 AND e.revision <= $2 AND e.event_key <> '' AND NOT EXISTS
               (SELECT 1 FROM gateway_events n WHERE n.gateway_id = $1 AND n.event_key = e.event_key
                AND n.revision > e.revision AND n.revision <= $2)
             ORDER BY e.revision",
        )
        .bind(gateway_id)
        .bind(upto)
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(Subject::from).collect())
    }

    async fn changes(
        &self,
        gateway_id: &str,
        instance_id: &str,
        after: i64,
        most: usize,
    ) -> Result<(i64, Vec<Change>)> {
        let mut query = QueryBuilder::new(
            "SELECT g.head, e.revision, e.type, e.payload_json, e.artifact_id, e.deployment_id, e.event_key,
               e.user_id, e.performed_at, e.state
             FROM gateways g LEFT JOIN gateway_events e ON e.gateway_id = g.id AND e.revision > ",
        );
        query.push_bind(after);
        push_newest!(query);
        query.push(
            " AND NOT EXISTS (SELECT 1 FROM gateway_reported r WHERE r.gateway_id = e.gateway_id
                AND r.artifact_id = e.event_key AND r.rejected_revision = e.revision AND r.instance_id = ",
        );
        query.push_bind(instance_id);
        query.push(") WHERE g.id = ").push_bind(gateway_id);
        query.push(" ORDER BY e.revision LIMIT ").push_bind(i64::try_from(most).unwrap_or(i64::MAX));
        Ok(changes(query.build_query_as().fetch_all(self.pool.read()).await?))
    }

    async fn state(&self, gateway_id: &str) -> Result<(i64, Vec<Change>)> {
        // What stands alone is no state: it is still to be told when nobody has done it.
        let mut query = QueryBuilder::new(
            "SELECT g.head, e.revision, e.type, e.payload_json, e.artifact_id, e.deployment_id, e.event_key,
               e.user_id, e.performed_at, e.state
             FROM gateways g LEFT JOIN gateway_events e ON e.gateway_id = g.id
               AND (e.event_key <> '' OR e.state IN ('pending', 'delivered'))",
        );
        push_newest!(query);
        query.push(" WHERE g.id = ").push_bind(gateway_id).push(" ORDER BY e.revision");
        Ok(changes(query.build_query_as().fetch_all(self.pool.read()).await?))
    }

    async fn deliver(&self, gateway_id: &str, changes: &[Change], now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        for change in changes {
            tx.deliver(gateway_id, &change.event, now).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn record(
        &self,
        author: Author<'_>,
        answers: &[Reply],
        applied: i64,
        now: i64,
    ) -> Result<Option<Vec<Settled>>> {
        let mut tx = self.pool.begin().await?;
        if !tx.admits(author).await? {
            return Ok(None);
        }
        let mut belief = tx.belief(author, answers).await?;
        answers.iter().for_each(|answer| belief.apply(answer));
        let keys: Vec<String> = answers.iter().map(|answer| answer.subject.key.clone()).collect();
        tx.forget(author, &keys).await?;
        tx.put(author, &belief, now).await?;
        tx.note(author, applied, now).await?;
        let mut settled = Vec::new();
        for answer in answers {
            settled.extend(tx.settle(author, answer, now).await?);
        }
        tx.commit().await?;
        Ok(Some(settled))
    }

    async fn replace(
        &self,
        author: Author<'_>,
        (upto, is_new): (i64, bool),
        answers: &[Reply],
        now: i64,
    ) -> Result<Option<Vec<Settled>>> {
        let mut tx = self.pool.begin().await?;
        if !tx.admits(author).await? {
            return Ok(None);
        }
        let known = if is_new { Belief::default() } else { tx.all(author).await? };
        let belief = known.replace(answers);
        sqlx::query("DELETE FROM gateway_reported WHERE gateway_id = $1 AND instance_id = $2")
            .bind(author.gateway_id)
            .bind(author.instance_id)
            .execute(&mut *tx)
            .await?;
        tx.put(author, &belief, now).await?;
        tx.note(author, upto, now).await?;
        let mut settled = Vec::new();
        for answer in answers.iter().chain(&tx.taken_away(author, upto).await?) {
            settled.extend(tx.settle(author, answer, now).await?);
        }
        tx.commit().await?;
        Ok(Some(settled))
    }

    async fn refuse_snapshot(
        &self,
        author: Author<'_>,
        revision: i64,
        refusal: &Refusal,
        now: i64,
    ) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        if !tx.admits(author).await? {
            return Ok(false);
        }
        tx.fail_all(&[Failure::of_snapshot(author, revision, refusal)], now).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Reads and writes what an instance reports, within a transaction.
#[async_trait]
pub(super) trait Reports {
    /// Locks the gateway's log. Whether the answers of this connection count.
    async fn admits(&mut self, author: Author<'_>) -> Result<bool>;
    /// What is known of the keys of these answers.
    async fn belief(&mut self, author: Author<'_>, answers: &[Reply]) -> Result<Belief>;
    /// All that is known of an instance.
    async fn all(&mut self, author: Author<'_>) -> Result<Belief>;
    /// Deletes what is known of these keys.
    async fn forget(&mut self, author: Author<'_>, keys: &[String]) -> Result<()>;
    /// Writes what is known.
    async fn put(&mut self, author: Author<'_>, belief: &Belief, now: i64) -> Result<()>;
    /// The events up to a revision that take something away and are not known to be done: who has the whole state
    /// has done them.
    async fn taken_away(&mut self, author: Author<'_>, upto: i64) -> Result<Vec<Reply>>;
    /// Notes up to where everything is answered.
    async fn note(&mut self, author: Author<'_>, applied: i64, now: i64) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Reports for Connection {
    async fn admits(&mut self, author: Author<'_>) -> Result<bool> {
        sqlx::query(LOCK).bind(author.gateway_id).execute(&mut *self).await?;
        let there: Option<String> = sqlx::query_scalar("SELECT id FROM connections WHERE id = $1")
            .bind(author.connection_id)
            .fetch_optional(&mut *self)
            .await?;
        Ok(there.is_some())
    }

    async fn belief(&mut self, author: Author<'_>, answers: &[Reply]) -> Result<Belief> {
        if answers.is_empty() {
            return Ok(Belief::default());
        }
        let keys: Vec<&String> = answers.iter().map(|answer| &answer.subject.key).collect();
        let mut query = QueryBuilder::new(
            "SELECT artifact_id, deployment_id, revision, rejected_revision, reason FROM gateway_reported
             WHERE gateway_id = ",
        );
        query.push_bind(author.gateway_id).push(" AND instance_id = ").push_bind(author.instance_id);
        query.push(" AND ");
        push_in!(query, "artifact_id", keys);
        Ok(belief(query.build_query_as().fetch_all(&mut *self).await?))
    }

    async fn all(&mut self, author: Author<'_>) -> Result<Belief> {
        let rows: Vec<ReportedRow> = sqlx::query_as(
            "SELECT artifact_id, deployment_id, revision, rejected_revision, reason FROM gateway_reported
             WHERE gateway_id = $1 AND instance_id = $2",
        )
        .bind(author.gateway_id)
        .bind(author.instance_id)
        .fetch_all(&mut *self)
        .await?;
        Ok(belief(rows))
    }

    async fn forget(&mut self, author: Author<'_>, keys: &[String]) -> Result<()> {
        for keys in keys.chunks(CHUNK) {
            let mut query = QueryBuilder::new("DELETE FROM gateway_reported WHERE gateway_id = ");
            query.push_bind(author.gateway_id).push(" AND instance_id = ").push_bind(author.instance_id);
            query.push(" AND ");
            push_in!(query, "artifact_id", keys);
            query.build().execute(&mut *self).await?;
        }
        Ok(())
    }

    async fn put(&mut self, author: Author<'_>, belief: &Belief, now: i64) -> Result<()> {
        let rows: Vec<(&String, &Reported)> = belief.0.iter().collect();
        for rows in rows.chunks(CHUNK) {
            let mut query = QueryBuilder::new(
                "INSERT INTO gateway_reported (gateway_id, instance_id, artifact_id, deployment_id, revision,
                   rejected_revision, reason, reported_at) ",
            );
            query.push_values(rows, |mut row, (key, reported)| {
                row.push_bind(author.gateway_id)
                    .push_bind(author.instance_id)
                    .push_bind(key.as_str())
                    .push_bind(reported.deployment_id.as_str())
                    .push_bind(reported.revision)
                    .push_bind(reported.rejected_revision)
                    .push_bind(reported.reason.as_str())
                    .push_bind(now);
            });
            query.build().execute(&mut *self).await?;
        }
        Ok(())
    }

    async fn taken_away(&mut self, author: Author<'_>, upto: i64) -> Result<Vec<Reply>> {
        let mut query = QueryBuilder::new(
            "SELECT e.revision, e.type, e.event_key, e.deployment_id FROM gateway_events e
             WHERE e.event_key <> '' AND e.state IN ('pending', 'delivered', 'failed') AND e.gateway_id = ",
        );
        query.push_bind(author.gateway_id).push(" AND e.revision <= ").push_bind(upto).push(" AND ");
        push_in!(query, "e.type", events::with_effect(&[Effect::Stops, Effect::Forgets, Effect::Removes]));
        query.push(" AND NOT EXISTS (SELECT 1 FROM gateway_events n WHERE ");
        push_replaces!(query);
        query.push(" AND n.revision <= ").push_bind(upto).push(") ORDER BY e.revision");
        let rows: Vec<SubjectRow> = query.build_query_as().fetch_all(&mut *self).await?;
        Ok(rows.into_iter().map(|row| Reply { subject: row.into(), refusal: None }).collect())
    }

    async fn note(&mut self, author: Author<'_>, applied: i64, now: i64) -> Result<()> {
        sqlx::query(
            "UPDATE gateway_instances SET applied_revision = $3, last_seen_at = $4
             WHERE gateway_id = $1 AND instance_id = $2",
        )
        .bind(author.gateway_id)
        .bind(author.instance_id)
        .bind(applied)
        .bind(now)
        .execute(&mut *self)
        .await?;
        sqlx::query("UPDATE connections SET applied_revision = $2 WHERE id = $1")
            .bind(author.connection_id)
            .bind(applied)
            .execute(&mut *self)
            .await?;
        Ok(())
    }
}
