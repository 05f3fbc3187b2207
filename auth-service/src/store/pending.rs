//! What waits to be used once.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::{
    pending::{Found, Kind, Pending},
    secret::TokenHash,
};

/// Works on pending secrets within a transaction.
#[async_trait]
pub(crate) trait Pend {
    /// Adds one.
    async fn put_pending(&mut self, pending: &Pending) -> sqlx::Result<()>;
    /// Takes one away: of calls side by side one gets it. Nothing when its time is over.
    async fn take_pending(&mut self, hash: TokenHash, kind: Kind, now: i64) -> sqlx::Result<Option<Found>>;
    /// Takes all of a kind away that a user has.
    async fn drop_pending(&mut self, user_id: &str, kind: Kind) -> sqlx::Result<()>;
}

/// Pending secrets, one at a time.
#[async_trait]
pub(crate) trait PendingStore: fmt::Debug + Send + Sync {
    /// Adds one.
    async fn put(&self, pending: &Pending) -> Result<()>;
    /// Looks at one without using it. Nothing when its time is over.
    async fn look(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>>;
    /// Looks at one and counts the look as a try.
    async fn count_try(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>>;
    /// Takes one away: of calls side by side one gets it. Nothing when its time is over.
    async fn take(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>>;
    /// Forgets those whose time is over; says how many.
    async fn prune(&self, now: i64) -> Result<u64>;
}

type Row = (Option<String>, Vec<u8>, i64);

fn found((user_id, payload, tries): Row) -> Found {
    Found { user_id, payload, tries }
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Pend for Connection {
    async fn put_pending(&mut self, pending: &Pending) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO pending (hash, kind, user_id, payload, tries, created_at, expires_at)
             VALUES ($1, $2, $3, $4, 0, $5, $6)",
        )
        .bind(pending.hash.0.as_slice())
        .bind(pending.kind.name())
        .bind(&pending.user_id)
        .bind(&pending.payload)
        .bind(pending.created_at)
        .bind(pending.expires_at)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn take_pending(&mut self, hash: TokenHash, kind: Kind, now: i64) -> sqlx::Result<Option<Found>> {
        let row: Option<Row> = sqlx::query_as(
            "DELETE FROM pending WHERE hash = $1 AND kind = $2 AND expires_at > $3
             RETURNING user_id, payload, tries",
        )
        .bind(hash.0.as_slice())
        .bind(kind.name())
        .bind(now)
        .fetch_optional(&mut *self)
        .await?;
        Ok(row.map(found))
    }

    async fn drop_pending(&mut self, user_id: &str, kind: Kind) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM pending WHERE user_id = $1 AND kind = $2")
            .bind(user_id)
            .bind(kind.name())
            .execute(&mut *self)
            .await?;
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl PendingStore for SqlStore<Pool> {
    async fn put(&self, pending: &Pending) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.put_pending(pending).await?;
        Ok(tx.commit().await?)
    }

    async fn look(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT user_id, payload, tries FROM pending WHERE hash = $1 AND kind = $2 AND expires_at > $3",
        )
        .bind(hash.0.as_slice())
        .bind(kind.name())
        .bind(now)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(found))
    }

    async fn count_try(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>> {
        let mut tx = self.pool.begin().await?;
        let row: Option<Row> = sqlx::query_as(
            "UPDATE pending SET tries = tries + 1 WHERE hash = $1 AND kind = $2 AND expires_at > $3
             RETURNING user_id, payload, tries - 1",
        )
        .bind(hash.0.as_slice())
        .bind(kind.name())
        .bind(now)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(row.map(found))
    }

    async fn take(&self, hash: TokenHash, kind: Kind, now: i64) -> Result<Option<Found>> {
        let mut tx = self.pool.begin().await?;
        let found = tx.take_pending(hash, kind, now).await?;
        tx.commit().await?;
        Ok(found)
    }

    async fn prune(&self, now: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone =
            sqlx::query("DELETE FROM pending WHERE expires_at <= $1").bind(now).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
