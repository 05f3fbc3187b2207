//! SQL of what the answer of one instance means for its gateway, within a transaction of the log.

use async_trait::async_trait;
use service_kit::{Result, outbox::Append as _};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{acks::Acknowledge as _, failures::Fail as _, retries::Retry as _, web::Tell as _};
use crate::{
    domain::{
        acks::{Ack, REPORTS, delivered_report},
        failures::Failure,
        instances::{Author, Refusal, Reply, Settled},
        log::LogEvent,
        retries::MISMATCH,
        web::Deployment,
    },
    events,
};

#[derive(sqlx::FromRow)]
struct EventRow {
    r#type: String,
    artifact_id: String,
    deployment_id: String,
    state: String,
    created_at: i64,
}

impl EventRow {
    fn failure(&self, author: Author<'_>, revision: i64, refusal: &Refusal) -> Failure {
        Failure {
            gateway_id: author.gateway_id.to_owned(),
            instance_id: author.instance_id.to_owned(),
            revision,
            event_type: self.r#type.clone(),
            artifact_id: self.artifact_id.clone(),
            deployment_id: self.deployment_id.clone(),
            reason: refusal.reason.clone(),
            detail: refusal.detail.clone(),
        }
    }
}

/// Gives events of the log their states within a transaction that holds its lock.
#[async_trait]
pub(super) trait Settle {
    /// The event is now sent. Its first sending is reported.
    async fn deliver(&mut self, gateway_id: &str, event: &LogEvent, now: i64) -> Result<()>;
    /// The first success of any instance is the gateway's; a failure counts until then.
    async fn settle(&mut self, author: Author<'_>, answer: &Reply, now: i64) -> Result<Option<Settled>>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Settle for Connection {
    async fn deliver(&mut self, gateway_id: &str, event: &LogEvent, now: i64) -> Result<()> {
        let first = sqlx::query(
            "UPDATE gateway_events SET state = 'delivered', sendings = sendings + 1, delivered_at = $3
             WHERE gateway_id = $1 AND revision = $2 AND state = 'pending'",
        )
        .bind(gateway_id)
        .bind(event.revision)
        .bind(now)
        .execute(&mut *self)
        .await?;
        if first.rows_affected() == 0 {
            return Ok(());
        }
        sqlx::query("UPDATE gateways SET events_sent = events_sent + 1 WHERE id = $1")
            .bind(gateway_id)
            .execute(&mut *self)
            .await?;
        if let Some(report) = delivered_report(gateway_id, &event.event_type, &event.deployment_id, now) {
            self.append(REPORTS, &format!("{gateway_id}:{}:sent", event.revision), report).await?;
        }
        Ok(())
    }

    async fn settle(&mut self, author: Author<'_>, answer: &Reply, now: i64) -> Result<Option<Settled>> {
        let (gateway_id, revision) = (author.gateway_id, answer.subject.revision);
        let event: Option<EventRow> = sqlx::query_as(
            "SELECT type, artifact_id, deployment_id, state, created_at FROM gateway_events
             WHERE gateway_id = $1 AND revision = $2",
        )
        .bind(gateway_id)
        .bind(revision)
        .fetch_optional(&mut *self)
        .await?;
        let Some(event) = event else { return Ok(None) };
        if let Some(refusal) = &answer.refusal {
            self.fail_all(&[event.failure(author, revision, refusal)], now).await?;
        }
        let failure = answer.refusal.as_ref().map(|refusal| refusal.reason.clone());
        let failed = failure.is_some();
        let is_open = matches!(event.state.as_str(), "pending" | "delivered");
        if !is_open && (failed || event.state != "failed") {
            return Ok(None);
        }
        let state = if failed { "failed" } else { "acked" };
        sqlx::query(
            "UPDATE gateway_events SET state = $3, error_code = $4, acked_at = $5,
               acked_performed_at = performed_at
             WHERE gateway_id = $1 AND revision = $2",
        )
        .bind(gateway_id)
        .bind(revision)
        .bind(state)
        .bind(failure.as_deref().unwrap_or_default())
        .bind(now)
        .execute(&mut *self)
        .await?;
        self.supersede_older(&[(gateway_id.to_owned(), revision, answer.subject.key.clone())]).await?;
        if failure.as_deref() == Some(MISMATCH) {
            self.name_another(&[(gateway_id.to_owned(), revision)], now).await?;
        }
        if let Some((known, asked)) =
            events::find(&event.r#type).and_then(|known| Some((known, known.answer.as_ref()?)))
        {
            let shown = Deployment {
                gateway_id: gateway_id.to_owned(),
                artifact_id: event.artifact_id,
                deployment_id: event.deployment_id.clone(),
                revision,
                state,
                reason: failure.clone().unwrap_or_default(),
            };
            let (deployment_id, action) = (event.deployment_id, asked.action);
            let ack = Ack { deployment_id, event: known, action, failure, performed_at: None };
            let id = format!("{gateway_id}:{revision}:{state}");
            self.append(REPORTS, &id, ack.report(gateway_id, now)).await?;
            self.tell_states(&[shown], now).await?;
        }
        Ok(Some(Settled { revision, created_at: event.created_at, failed }))
    }
}
