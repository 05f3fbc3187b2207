//! Failed logins.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::throttle::{Admission, Key, Rules, State};

/// Keeps failed logins.
#[async_trait]
pub(crate) trait ThrottleStore: fmt::Debug + Send + Sync {
    /// Judges an attempt and, when it is admitted, counts it as failed. Opening a session forgives it.
    async fn admit(&self, key: &Key, rules: &Rules, now: i64) -> Result<Admission>;
    /// Forgets what was last touched before a time; says how much.
    async fn prune(&self, before: i64) -> Result<u64>;
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ThrottleStore for SqlStore<Pool> {
    async fn admit(&self, key: &Key, rules: &Rules, now: i64) -> Result<Admission> {
        let key = key.hex();
        let mut tx = self.pool.begin().await?;
        // An update that changes nothing takes the row's lock, so that attempts are judged one by one.
        let (failures, locked_until, updated_at): (i64, i64, i64) = sqlx::query_as(
            "INSERT INTO login_throttles (key, failures, locked_until, updated_at) VALUES ($1, 0, 0, $2)
             ON CONFLICT (key) DO UPDATE SET updated_at = login_throttles.updated_at
             RETURNING failures, locked_until, updated_at",
        )
        .bind(&key)
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
        let admission = rules.admit(State { failures, locked_until, updated_at }, now);
        let Admission::Admitted(next) = admission else { return Ok(admission) };
        sqlx::query(
            "UPDATE login_throttles SET failures = $2, locked_until = $3, updated_at = $4 WHERE key = $1",
        )
        .bind(&key)
        .bind(next.failures)
        .bind(next.locked_until)
        .bind(next.updated_at)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(admission)
    }

    async fn prune(&self, before: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query("DELETE FROM login_throttles WHERE updated_at < $1")
            .bind(before)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
