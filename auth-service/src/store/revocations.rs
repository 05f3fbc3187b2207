//! Sessions, and opaque tokens, whose access tokens are dead before they expire.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::revocations::{Page, Revocation};

/// Revokes within a transaction.
#[async_trait]
pub(crate) trait Revoke {
    /// Adds revocations. The feed's head stays locked until the transaction ends, so that positions are in
    /// the order of commits: revoke after all other statements but the audit log's.
    async fn revoke(&mut self, session_ids: &[String], expires_at: i64) -> sqlx::Result<()>;
}

/// Reads revocations.
#[async_trait]
pub(crate) trait RevocationStore: fmt::Debug + Send + Sync {
    /// The position of the last revocation of all.
    async fn head(&self) -> Result<i64>;
    /// What was revoked after a position, in order: a page of at most `most`.
    async fn after(&self, position: i64, most: u32) -> Result<Page>;
    /// Whether the tokens of a session, or of an opaque token, are good at `now`: it is not revoked, has
    /// not ended, and its owner is there and not disabled.
    async fn is_live(&self, session_id: &str, owner_id: &str, now: i64) -> Result<bool>;
    /// Forgets those whose tokens have all expired; says how many.
    async fn prune(&self, now: i64) -> Result<u64>;
}

const IS_LIVE: &str = "SELECT COUNT(*) FROM (
    SELECT s.id FROM sessions s JOIN users u ON u.id = s.user_id
    WHERE s.id = $1 AND s.user_id = $2 AND s.ended_at IS NULL AND s.expires_at > $3 AND u.disabled_at IS NULL
    UNION ALL
    SELECT t.id FROM opaque_tokens t
    WHERE t.id = $1 AND t.owner_id = $2 AND t.revoked_at IS NULL AND t.expires_at > $3
      AND (EXISTS (SELECT 1 FROM users u WHERE u.id = t.owner_id AND u.disabled_at IS NULL)
        OR EXISTS (SELECT 1 FROM service_accounts a WHERE a.id = t.owner_id))
  ) AS live WHERE NOT EXISTS (SELECT 1 FROM revocations r WHERE r.session_id = $1)";

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Revoke for Connection {
    async fn revoke(&mut self, session_ids: &[String], expires_at: i64) -> sqlx::Result<()> {
        if session_ids.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(session_ids.len()).unwrap_or(i64::MAX);
        let head: i64 =
            sqlx::query_scalar("UPDATE revocation_heads SET head = head + $1 WHERE id = 1 RETURNING head")
                .bind(count)
                .fetch_one(&mut *self)
                .await?;
        for (position, session_id) in (head - count + 1..).zip(session_ids) {
            sqlx::query("INSERT INTO revocations (position, session_id, expires_at) VALUES ($1, $2, $3)")
                .bind(position)
                .bind(session_id)
                .bind(expires_at)
                .execute(&mut *self)
                .await?;
        }
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl RevocationStore for SqlStore<Pool> {
    async fn head(&self) -> Result<i64> {
        let head = sqlx::query_scalar("SELECT head FROM revocation_heads WHERE id = 1");
        Ok(head.fetch_one(self.pool.read()).await?)
    }

    async fn after(&self, position: i64, most: u32) -> Result<Page> {
        // The head first: what is committed in between comes with the next page.
        let head = self.head().await?;
        // A position beyond the head is of another life of this database: all that counts is told again.
        let is_anew = position > head;
        let from = if is_anew { 0 } else { position };
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT position, session_id, expires_at FROM revocations
             WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3",
        )
        .bind(from)
        .bind(head)
        .bind(i64::from(most))
        .fetch_all(self.pool.read())
        .await?;
        let is_last = rows.len() < most as usize;
        // Those at the end may have been forgotten already.
        let position = rows.last().filter(|_| !is_last).map_or(head, |(position, ..)| *position);
        let revocation = |(position, session_id, expires_at)| Revocation { position, session_id, expires_at };
        Ok(Page { revocations: rows.into_iter().map(revocation).collect(), position, is_last, is_anew })
    }

    async fn is_live(&self, session_id: &str, owner_id: &str, now: i64) -> Result<bool> {
        let found: i64 = sqlx::query_scalar(IS_LIVE)
            .bind(session_id)
            .bind(owner_id)
            .bind(now)
            .fetch_one(self.pool.read())
            .await?;
        Ok(found > 0)
    }

    async fn prune(&self, now: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone =
            sqlx::query("DELETE FROM revocations WHERE expires_at <= $1").bind(now).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}

#[cfg(test)]
mod tests;
