//! Failed logins.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _};
use crate::domain::{
    audit::Event,
    throttle::{Admission, Key, MOST_FAILURES, Rules, State},
};

/// Forgives within a transaction.
#[async_trait]
pub(crate) trait Forgive {
    /// Forgets the failures of a key.
    async fn forgive(&mut self, key: &Key) -> sqlx::Result<()>;
}

/// Keeps failed logins.
#[async_trait]
pub(crate) trait ThrottleStore: fmt::Debug + Send + Sync {
    /// Judges an attempt and, when it is admitted, counts it as failed. Opening a session forgives it.
    async fn admit(&self, key: &Key, rules: &Rules, now: i64) -> Result<Admission>;
    /// Takes back an attempt that was admitted and turned out right, without forgiving those before it.
    async fn excuse(&self, key: &Key, admitted: State) -> Result<()>;
    /// Records an attempt that failed: its count is written already.
    async fn note(&self, event: &Event) -> Result<()>;
    /// Forgets what was last touched before a time, but not what time does not heal; says how much.
    async fn prune(&self, before: i64) -> Result<u64>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Forgive for Connection {
    async fn forgive(&mut self, key: &Key) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM login_throttles WHERE key = $1").bind(key.hex()).execute(&mut *self).await?;
        Ok(())
    }
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

    async fn excuse(&self, key: &Key, admitted: State) -> Result<()> {
        let key = key.hex();
        let mut tx = self.pool.begin().await?;
        // A lock that another attempt has set meanwhile stays.
        sqlx::query(
            "UPDATE login_throttles
             SET failures = failures - 1, locked_until = CASE WHEN failures = $2 THEN $3 ELSE locked_until END
             WHERE key = $1 AND failures >= $2",
        )
        .bind(&key)
        .bind(admitted.failures)
        .bind(admitted.updated_at)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM login_throttles WHERE key = $1 AND failures <= 0")
            .bind(&key)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn note(&self, event: &Event) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.record(event).await?;
        Ok(tx.commit().await?)
    }

    async fn prune(&self, before: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query("DELETE FROM login_throttles WHERE updated_at < $1 AND failures < $2")
            .bind(before)
            .bind(MOST_FAILURES)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
