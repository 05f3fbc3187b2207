//! SQL of acknowledgements, within a transaction of the log.

use async_trait::async_trait;
use service_kit::{Error, Result, outbox::Append as _};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::events::{LOCK, SUPERSEDE};
use crate::domain::acks::{Ack, Candidate, REPORTS, State, Verdict};

#[derive(sqlx::FromRow)]
struct CandidateRow {
    revision: i64,
    state: String,
    performed_at: i64,
    created_at: i64,
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
        })
    }
}

/// Applies acknowledgements within a transaction.
#[async_trait]
pub(super) trait Acknowledge {
    /// Matches, applies and reports.
    async fn acknowledge(&mut self, gateway_id: &str, ack: &Ack, now: i64) -> Result<Verdict>;
    /// Gives the event its new state.
    async fn settle(&mut self, gateway_id: &str, event: &Candidate, ack: &Ack, now: i64) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Acknowledge for Connection {
    async fn acknowledge(&mut self, gateway_id: &str, ack: &Ack, now: i64) -> Result<Verdict> {
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *self).await?;
        let rows: Vec<CandidateRow> = sqlx::query_as(
            "SELECT revision, state, performed_at, created_at FROM gateway_events
             WHERE gateway_id = $1 AND deployment_id = $2 AND type = $3 ORDER BY revision",
        )
        .bind(gateway_id)
        .bind(&ack.deployment_id)
        .bind(ack.event.name)
        .fetch_all(&mut *self)
        .await?;
        let candidates = rows.into_iter().map(CandidateRow::candidate).collect::<Result<_>>()?;
        let verdict = ack.judge(candidates);
        match (&verdict, ack.performed_at) {
            (Verdict::Change(event), _) => self.settle(gateway_id, event, ack, now).await?,
            // An event crossed the answer to its earlier sending, and the gateway performed it once more.
            (Verdict::Known(Some(revision)), Some(performed_at)) => {
                sqlx::query(
                    "UPDATE gateway_events SET acked_performed_at = $3
                     WHERE gateway_id = $1 AND revision = $2 AND acked_performed_at < $3",
                )
                .bind(gateway_id)
                .bind(revision)
                .bind(performed_at)
                .execute(&mut *self)
                .await?;
            }
            _ => {}
        }
        Ok(verdict)
    }

    async fn settle(&mut self, gateway_id: &str, event: &Candidate, ack: &Ack, now: i64) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE gateway_events SET state = $3, error_code = $4, acked_at = $5, acked_performed_at = $6
             WHERE gateway_id = $1 AND revision = $2",
        )
        .bind(gateway_id)
        .bind(event.revision)
        .bind(ack.state().name())
        .bind(ack.failure.as_deref().unwrap_or_default())
        .bind(now)
        .bind(ack.performed_at.unwrap_or(event.performed_at))
        .execute(&mut *self)
        .await?;
        sqlx::query(SUPERSEDE).bind(gateway_id).bind(event.revision).execute(&mut *self).await?;
        let id = format!("{gateway_id}:{}:{}", event.revision, ack.state().name());
        self.append(REPORTS, &id, ack.report(gateway_id, now)).await
    }
}
