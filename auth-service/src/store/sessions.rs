//! Sessions and refresh tokens.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::{
    refresh_token::TokenHash,
    sessions::{EndReason, RefreshToken, Rotation, Session},
    throttle::Key,
};

/// Keeps sessions.
#[async_trait]
pub(crate) trait SessionStore: fmt::Debug + Send + Sync {
    /// Adds a session with its first refresh token, and forgives the failed logins of its owner.
    async fn open(&self, session: &Session, token: &RefreshToken, failures: &Key) -> Result<()>;
    /// Uses a refresh token up and stores its successor. Of calls side by side one succeeds; a token
    /// that was used before ends its session.
    async fn rotate(&self, presented: TokenHash, successor: &RefreshToken, now: i64) -> Result<Rotation>;
    /// Ends a session of a user; false when it was over before.
    async fn end(&self, id: &str, user_id: &str, reason: EndReason, now: i64) -> Result<bool>;
    /// Deletes sessions past their end, with their tokens; says how many.
    async fn prune(&self, now: i64) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    id: String,
    user_id: String,
    created_at: i64,
    expires_at: i64,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        let SessionRow { id, user_id, created_at, expires_at } = row;
        Self { id, user_id, created_at, expires_at }
    }
}

const ADD_TOKEN: &str =
    "INSERT INTO refresh_tokens (hash, session_id, created_at, expires_at) VALUES ($1, $2, $3, $4)";

const USE_TOKEN: &str = "UPDATE refresh_tokens SET used_at = $2 WHERE hash = $1 AND used_at IS NULL
    RETURNING session_id, expires_at";

const TOUCH_SESSION: &str = "UPDATE sessions SET last_used_at = $2
    WHERE id = $1 AND ended_at IS NULL AND expires_at > $2
    RETURNING id, user_id, created_at, expires_at";

const END_SESSION_OF_TOKEN: &str = "UPDATE sessions SET ended_at = $2, end_reason = $3
    WHERE ended_at IS NULL AND id = (SELECT session_id FROM refresh_tokens WHERE hash = $1)
    RETURNING id, user_id, created_at, expires_at";

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl SessionStore for SqlStore<Pool> {
    async fn open(&self, session: &Session, token: &RefreshToken, failures: &Key) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at)
             VALUES ($1, $2, $3, $3, $4)",
        )
        .bind(&session.id)
        .bind(&session.user_id)
        .bind(session.created_at)
        .bind(session.expires_at)
        .execute(&mut *tx)
        .await?;
        sqlx::query(ADD_TOKEN)
            .bind(token.hash.0.as_slice())
            .bind(&session.id)
            .bind(token.created_at)
            .bind(token.expires_at)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM login_throttles WHERE key = $1")
            .bind(failures.hex())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn rotate(&self, presented: TokenHash, successor: &RefreshToken, now: i64) -> Result<Rotation> {
        let presented = presented.0.as_slice();
        let mut tx = self.pool.begin().await?;
        let used: Option<(String, i64)> =
            sqlx::query_as(USE_TOKEN).bind(presented).bind(now).fetch_optional(&mut *tx).await?;
        let Some((session_id, expires_at)) = used else {
            // Unknown, or used before. Locks are taken in one order, token before session, everywhere.
            let ended: Option<SessionRow> = sqlx::query_as(END_SESSION_OF_TOKEN)
                .bind(presented)
                .bind(now)
                .bind(EndReason::RefreshReused.name())
                .fetch_optional(&mut *tx)
                .await?;
            tx.commit().await?;
            return Ok(ended.map_or(Rotation::Dead, |session| Rotation::Reused(session.into())));
        };
        if expires_at <= now {
            return Ok(Rotation::Dead);
        }
        let live: Option<SessionRow> =
            sqlx::query_as(TOUCH_SESSION).bind(&session_id).bind(now).fetch_optional(&mut *tx).await?;
        let Some(session) = live else { return Ok(Rotation::Dead) };
        sqlx::query(ADD_TOKEN)
            .bind(successor.hash.0.as_slice())
            .bind(&session_id)
            .bind(successor.created_at)
            .bind(successor.expires_at)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Rotation::Rotated(session.into()))
    }

    async fn end(&self, id: &str, user_id: &str, reason: EndReason, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let ended = sqlx::query(
            "UPDATE sessions SET ended_at = $3, end_reason = $4
             WHERE id = $1 AND user_id = $2 AND ended_at IS NULL",
        )
        .bind(id)
        .bind(user_id)
        .bind(now)
        .bind(reason.name())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(ended.rows_affected() > 0)
    }

    async fn prune(&self, now: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        // Tokens first, in the order of locks of `rotate`.
        sqlx::query(
            "DELETE FROM refresh_tokens WHERE session_id IN (SELECT id FROM sessions WHERE expires_at <= $1)",
        )
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let gone =
            sqlx::query("DELETE FROM sessions WHERE expires_at <= $1").bind(now).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
