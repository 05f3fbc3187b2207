//! SQL of acknowledgements, within a transaction that holds the locks of the logs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use service_kit::{Error, Result, outbox::Append as _};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    dialect::{Dialect as _, rows},
    failures::Fail as _,
    retries::Retry as _,
    web::Tell as _,
};
use crate::domain::{
    acks::{AckFrom, Candidate, Changes, REPORTS, Reported, Settled, State, Verdict},
    web::Deployment,
};

/// Events before revisions that are done, about the same: sent again, they would undo it. The key is not looked for in
/// its index, which has the whole history: few events of a gateway are open.
const SUPERSEDE: &str = "UPDATE gateway_events SET state = 'superseded' FROM json_each($1) AS i
     WHERE gateway_events.gateway_id = i.value ->> 0
       AND gateway_events.revision < CAST(i.value ->> 1 AS BIGINT)
       AND gateway_events.event_key || '' = i.value ->> 2 AND gateway_events.event_key <> ''
       AND gateway_events.state IN ('pending', 'delivered')";

/// What may be meant, and when an older event of its key was sent last. The history of the key is only read if
/// something about the artifact was sent after what is answered.
const CANDIDATES: &str = "SELECT c.at, e.revision, e.state, e.performed_at, e.created_at, e.event_key, e.artifact_id,
       e.deployment_id,
       CASE WHEN a.performed_at <= COALESCE(c.said, e.performed_at) THEN 0 ELSE
         (SELECT COALESCE(MAX(o.performed_at), 0) FROM gateway_events o WHERE o.gateway_id = e.gateway_id
           AND o.event_key = e.event_key AND o.event_key <> '' AND o.revision < e.revision)
       END AS older_sent_at
     FROM (
       SELECT CAST(i.value ->> 0 AS BIGINT) AS at, CAST(i.value ->> 4 AS BIGINT) AS said, d.gateway_id, d.revision
       FROM json_each($1) AS i
       JOIN gateway_events d ON d.gateway_id = i.value ->> 1 AND d.deployment_id = i.value ->> 2
         AND d.named_id = '' AND d.type = i.value ->> 3
       UNION ALL
       SELECT CAST(i.value ->> 0 AS BIGINT), CAST(i.value ->> 4 AS BIGINT), n.gateway_id, n.revision
       FROM json_each($1) AS i
       JOIN gateway_events n ON n.gateway_id = i.value ->> 1 AND n.named_id = i.value ->> 2
         AND n.named_id <> '' AND n.type = i.value ->> 3
     ) c
     JOIN gateway_events e ON e.gateway_id = c.gateway_id AND e.revision = c.revision
     LEFT JOIN gateway_artifacts a ON a.gateway_id = e.gateway_id AND a.artifact_id = e.artifact_id
     ORDER BY e.revision";

#[derive(sqlx::FromRow)]
struct CandidateRow {
    at: i64,
    revision: i64,
    state: String,
    performed_at: i64,
    created_at: i64,
    event_key: String,
    artifact_id: String,
    deployment_id: String,
    older_sent_at: i64,
}

impl CandidateRow {
    fn candidate(self) -> Result<Candidate> {
        let state = State::of(&self.state)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("unknown state {:?} in the log", self.state)))?;
        Ok(Candidate {
            revision: self.revision,
            state,
            performed_at: self.performed_at,
            created_at: self.created_at,
            event_key: self.event_key,
            artifact_id: self.artifact_id,
            deployment_id: self.deployment_id,
            older_sent_at: self.older_sent_at,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ReportedRow {
    gateway_id: String,
    artifact_id: String,
    deployment_id: String,
    revision: i64,
    rejected_revision: i64,
    reason: String,
}

/// Applies acknowledgements within a transaction.
#[async_trait]
pub(super) trait Acknowledge {
    /// Matches, applies and reports answers, one after the other.
    async fn acknowledge_all(&mut self, answers: &[AckFrom], now: i64) -> Result<Vec<Verdict>>;
    /// For each answer the events that may be meant.
    async fn candidates(&mut self, answers: &[AckFrom]) -> Result<Vec<Vec<Candidate>>>;
    /// Those of the answers' connections that are registered: connection and gateway.
    async fn registered(&mut self, answers: &[AckFrom]) -> Result<HashSet<(String, String)>>;
    /// Writes what answers change.
    async fn settle(&mut self, changes: Changes, now: i64) -> Result<()>;
    /// Keeps what gateways say that they run.
    async fn keep_reported(&mut self, changes: &Changes, now: i64) -> Result<()>;
    /// Marks what is older than these events (gateway, revision, key) and about the same as needless.
    async fn supersede_older(&mut self, done: &[(String, i64, String)]) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Acknowledge for Connection {
    async fn acknowledge_all(&mut self, answers: &[AckFrom], now: i64) -> Result<Vec<Verdict>> {
        if answers.is_empty() {
            return Ok(Vec::new());
        }
        let registered = self.registered(answers).await?;
        let candidates = self.candidates(answers).await?;
        let mut changes = Changes::default();
        let mut verdicts = Vec::with_capacity(answers.len());
        for (answer, candidates) in answers.iter().zip(candidates) {
            let place = (answer.connection_id.clone(), answer.gateway_id.clone());
            verdicts.push(match registered.contains(&place) {
                true => changes.take(answer, candidates),
                false => Verdict::Fenced,
            });
        }
        self.settle(changes, now).await?;
        Ok(verdicts)
    }

    async fn candidates(&mut self, answers: &[AckFrom]) -> Result<Vec<Vec<Candidate>>> {
        let input: Vec<_> = answers
            .iter()
            .enumerate()
            .map(|(at, answer)| {
                let ack = &answer.ack;
                (at, &answer.gateway_id, &ack.deployment_id, ack.event.name, ack.performed_at)
            })
            .collect();
        let found: Vec<CandidateRow> =
            sqlx::query_as(Self::sql(CANDIDATES)).bind(rows(&input)?).fetch_all(&mut *self).await?;
        let mut candidates: Vec<Vec<Candidate>> = answers.iter().map(|_| Vec::new()).collect();
        for row in found {
            if let Some(of) = usize::try_from(row.at).ok().and_then(|at| candidates.get_mut(at)) {
                of.push(row.candidate()?);
            }
        }
        Ok(candidates)
    }

    async fn registered(&mut self, answers: &[AckFrom]) -> Result<HashSet<(String, String)>> {
        let input: BTreeSet<_> = answers.iter().map(|answer| (&answer.connection_id,)).collect();
        let found: Vec<(String, String)> = sqlx::query_as(Self::sql(
            "SELECT id, gateway_id FROM connections
             WHERE id IN (SELECT i.value ->> 0 FROM json_each($1) AS i)",
        ))
        .bind(rows(&input.into_iter().collect::<Vec<_>>())?)
        .fetch_all(&mut *self)
        .await?;
        Ok(found.into_iter().collect())
    }

    async fn settle(&mut self, changes: Changes, now: i64) -> Result<()> {
        if !changes.settled.is_empty() {
            let input: Vec<_> = changes
                .settled
                .iter()
                .map(|((gateway, revision), event)| {
                    (gateway, revision, event.state.name(), &event.error_code, event.performed_at)
                })
                .collect();
            sqlx::query(Self::sql(
                "UPDATE gateway_events SET state = i.value ->> 2, error_code = i.value ->> 3, acked_at = $2,
                   acked_performed_at = CAST(i.value ->> 4 AS BIGINT)
                 FROM json_each($1) AS i
                 WHERE gateway_events.gateway_id = i.value ->> 0
                   AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)",
            ))
            .bind(rows(&input)?)
            .bind(now)
            .execute(&mut *self)
            .await?;
            let done: Vec<_> = changes.done().collect();
            self.supersede_older(&done).await?;
            self.keep_reported(&changes, now).await?;
            self.fail_all(&changes.failures, now).await?;
            let mismatches: Vec<_> = changes.mismatches().collect();
            self.name_another(&mismatches, now).await?;
        }
        if !changes.again.is_empty() {
            // An event crossed the answer to its earlier sending, and the gateway performed it once more.
            let input: Vec<_> = changes.again.iter().map(|((gateway, rev), at)| (gateway, rev, at)).collect();
            sqlx::query(Self::sql(
                "UPDATE gateway_events SET acked_performed_at = CAST(i.value ->> 2 AS BIGINT)
                 FROM json_each($1) AS i
                 WHERE gateway_events.gateway_id = i.value ->> 0
                   AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)
                   AND gateway_events.acked_performed_at < CAST(i.value ->> 2 AS BIGINT)",
            ))
            .bind(rows(&input)?)
            .execute(&mut *self)
            .await?;
        }
        let states: Vec<Deployment> = changes.settled_in_order.iter().map(Settled::shown).collect();
        let reports = changes.settled_in_order.into_iter().map(|settled| settled.report(now)).collect();
        self.append_all(REPORTS, reports).await?;
        self.tell_states(&states, now).await
    }

    async fn keep_reported(&mut self, changes: &Changes, now: i64) -> Result<()> {
        let about: BTreeSet<_> =
            changes.settled_in_order.iter().map(|s| (&s.gateway_id, &s.artifact_id)).collect();
        let found: Vec<ReportedRow> = sqlx::query_as(Self::sql(
            "SELECT r.gateway_id, r.artifact_id, r.deployment_id, r.revision, r.rejected_revision, r.reason
             FROM json_each($1) AS i JOIN gateway_reported r
               ON r.gateway_id = i.value ->> 0 AND r.instance_id = '' AND r.artifact_id = i.value ->> 1",
        ))
        .bind(rows(&about.into_iter().collect::<Vec<_>>())?)
        .fetch_all(&mut *self)
        .await?;
        let mut reported: HashMap<(String, String), Reported> = HashMap::new();
        for row in found {
            let state = Reported {
                deployment_id: row.deployment_id,
                revision: row.revision,
                rejected_revision: row.rejected_revision,
                reason: row.reason,
            };
            reported.insert((row.gateway_id, row.artifact_id), state);
        }
        for settled in &changes.settled_in_order {
            let about = (settled.gateway_id.clone(), settled.artifact_id.clone());
            reported.entry(about).or_default().take(&settled.ack, settled.revision);
        }
        let input: Vec<_> = reported
            .iter()
            .map(|((gateway, artifact), r)| {
                (gateway, artifact, &r.deployment_id, r.revision, r.rejected_revision, &r.reason)
            })
            .collect();
        sqlx::query(Self::sql(
            "INSERT INTO gateway_reported (gateway_id, instance_id, artifact_id, deployment_id, revision,
               rejected_revision, reason, reported_at)
             SELECT i.value ->> 0, '', i.value ->> 1, i.value ->> 2, CAST(i.value ->> 3 AS BIGINT),
               CAST(i.value ->> 4 AS BIGINT), i.value ->> 5, $2
             FROM json_each($1) AS i WHERE TRUE
             ON CONFLICT (gateway_id, instance_id, artifact_id) DO UPDATE SET
               deployment_id = excluded.deployment_id, revision = excluded.revision,
               rejected_revision = excluded.rejected_revision, reason = excluded.reason,
               reported_at = excluded.reported_at",
        ))
        .bind(rows(&input)?)
        .bind(now)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn supersede_older(&mut self, done: &[(String, i64, String)]) -> Result<()> {
        // One row of each key: two would change the same events.
        let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for (gateway, revision, key) in done {
            let known = newest.entry((gateway, key)).or_default();
            *known = (*known).max(*revision);
        }
        let input: Vec<_> =
            newest.iter().map(|((gateway, key), revision)| (gateway, revision, key)).collect();
        sqlx::query(Self::sql(SUPERSEDE)).bind(rows(&input)?).execute(&mut *self).await?;
        Ok(())
    }
}
