//! Known devices.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{SqlStore, throttles::Forgive as _};
use crate::domain::{known_devices::MOST, secret::TokenHash, throttle::Key};

/// Remembers devices within a transaction.
#[async_trait]
pub(crate) trait Remember {
    /// Gives a device of a user a new token: the one whose throttle key is `key`, or else one more, for
    /// which the one that was used the longest time ago may have to go. The user's row is locked.
    async fn remember(
        &mut self,
        user_id: &str,
        key: Option<&Key>,
        token: TokenHash,
        now: i64,
    ) -> sqlx::Result<()>;
}

/// Keeps known devices.
#[async_trait]
pub(crate) trait KnownDeviceStore: fmt::Debug + Send + Sync {
    /// Whether a device is one of the account with this canonical address, used since a time.
    async fn knows(&self, email_canonical: &str, token: TokenHash, since: i64) -> Result<bool>;
    /// Forgets a device, with what failed on it.
    async fn forget(&self, token: TokenHash) -> Result<()>;
    /// Forgets devices last used before a time; says how many.
    async fn prune(&self, before: i64) -> Result<u64>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Remember for Connection {
    async fn remember(
        &mut self,
        user_id: &str,
        key: Option<&Key>,
        token: TokenHash,
        now: i64,
    ) -> sqlx::Result<()> {
        let known: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT hash FROM known_devices WHERE user_id = $1 ORDER BY last_used_at DESC",
        )
        .bind(user_id)
        .fetch_all(&mut *self)
        .await?;
        let is_it = |hash: &[u8]| {
            let hash = <[u8; 32]>::try_from(hash).ok().map(TokenHash);
            hash.is_some_and(|hash| Some(&Key::of_device(hash)) == key)
        };
        if let Some(old) = known.iter().find(|hash| is_it(hash)) {
            sqlx::query("UPDATE known_devices SET hash = $2, last_used_at = $3 WHERE hash = $1")
                .bind(old)
                .bind(token.0.as_slice())
                .bind(now)
                .execute(&mut *self)
                .await?;
            return Ok(());
        }
        for old in known.iter().skip(MOST - 1) {
            sqlx::query("DELETE FROM known_devices WHERE hash = $1").bind(old).execute(&mut *self).await?;
        }
        sqlx::query(
            "INSERT INTO known_devices (hash, user_id, created_at, last_used_at) VALUES ($1, $2, $3, $3)",
        )
        .bind(token.0.as_slice())
        .bind(user_id)
        .bind(now)
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl KnownDeviceStore for SqlStore<Pool> {
    async fn knows(&self, email_canonical: &str, token: TokenHash, since: i64) -> Result<bool> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT u.id FROM known_devices d JOIN users u ON u.id = d.user_id
             WHERE d.hash = $1 AND u.email_canonical = $2 AND d.last_used_at >= $3",
        )
        .bind(token.0.as_slice())
        .bind(email_canonical)
        .bind(since)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(found.is_some())
    }

    async fn forget(&self, token: TokenHash) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.forgive(&Key::of_device(token)).await?;
        sqlx::query("DELETE FROM known_devices WHERE hash = $1")
            .bind(token.0.as_slice())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn prune(&self, before: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query("DELETE FROM known_devices WHERE last_used_at < $1")
            .bind(before)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
