//! SQL of what gateways ran before the platform knew it.

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{ImportStore, SqlStore, events::LOCK};
use crate::domain::imports::Adopted;

/// An event that the gateway has performed already. Its id follows from the deployment's.
const INSERT: &str =
    "INSERT INTO gateway_events (gateway_id, revision, event_id, type, artifact_id, event_key,
       deployment_id, payload_json, state, performed_at, acked_performed_at, sendings, error_code,
       created_at, delivered_at, acked_at)
     VALUES ($1, $2, 'import:' || $3, $4, $5, $5, $3, $6, 'acked', $7, $7, 0, '', $8, $8, $8)";

/// Parts of the transaction, behind the lock on the gateway's row.
#[async_trait]
trait Adopt {
    /// Appends an event as done, unless the log knows the artifact already.
    async fn adopt(&mut self, gateway_id: &str, adopted: &Adopted, now: i64) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Adopt for Connection {
    async fn adopt(&mut self, gateway_id: &str, adopted: &Adopted, now: i64) -> sqlx::Result<()> {
        let known: Option<i64> = sqlx::query_scalar(
            "SELECT revision FROM gateway_events WHERE gateway_id = $1 AND artifact_id = $2 LIMIT 1",
        )
        .bind(gateway_id)
        .bind(&adopted.artifact_id)
        .fetch_optional(&mut *self)
        .await?;
        if known.is_some() {
            return Ok(());
        }
        let revision: i64 =
            sqlx::query_scalar("UPDATE gateways SET head = head + 1 WHERE id = $1 RETURNING head")
                .bind(gateway_id)
                .fetch_one(&mut *self)
                .await?;
        sqlx::query(INSERT)
            .bind(gateway_id)
            .bind(revision)
            .bind(&adopted.deployment_id)
            .bind(&adopted.event_type)
            .bind(&adopted.artifact_id)
            .bind(&adopted.payload_json)
            .bind(adopted.performed_at)
            .bind(now)
            .execute(&mut *self)
            .await?;
        // What the platform says of it from now on is later than what the gateway has.
        sqlx::query(
            "INSERT INTO gateway_artifacts (gateway_id, artifact_id, performed_at) VALUES ($1, $2, $3)
             ON CONFLICT DO NOTHING",
        )
        .bind(gateway_id)
        .bind(&adopted.artifact_id)
        .bind(adopted.performed_at)
        .execute(&mut *self)
        .await?;
        sqlx::query(
            "INSERT INTO gateway_reported (gateway_id, instance_id, artifact_id, deployment_id, revision,
               rejected_revision, reason, reported_at)
             VALUES ($1, '', $2, $3, $4, 0, '', $5) ON CONFLICT DO NOTHING",
        )
        .bind(gateway_id)
        .bind(&adopted.artifact_id)
        .bind(if adopted.deployed { adopted.deployment_id.as_str() } else { "" })
        .bind(revision)
        .bind(now)
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ImportStore for SqlStore<Pool> {
    async fn adopt(&self, gateway_id: &str, adopted: &[Adopted], now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let locked = sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        if locked.rows_affected() > 0 {
            for one in adopted {
                tx.adopt(gateway_id, one, now).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}
