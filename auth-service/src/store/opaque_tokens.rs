//! Opaque tokens: personal ones and keys of service accounts.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    page::Page,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _, revocations::Revoke as _};
use crate::domain::{
    audit::Event,
    opaque_tokens::{Created, Found, Kind, MAX_LIVE, NewToken, Token},
    revocations::remembered_until,
};

/// Keeps opaque tokens.
#[async_trait]
pub(crate) trait OpaqueTokenStore: fmt::Debug + Send + Sync {
    /// Adds a token, and records `event`. Of calls side by side as many succeed as its owner may have.
    async fn create(&self, new: &NewToken, event: &Event) -> Result<Created>;
    /// An owner's tokens that are not revoked, newest first, and how many there are.
    async fn list(&self, kind: Kind, owner_id: &str, page: Page) -> Result<(Vec<Token>, i64)>;
    /// A token of an owner that is not revoked.
    async fn get(&self, kind: Kind, owner_id: &str, id: &str) -> Result<Option<Token>>;
    /// Revokes a token of an owner with its access tokens, and records `event`; nothing is recorded for one
    /// that was revoked before. False when there is none.
    async fn revoke(&self, kind: Kind, owner_id: &str, id: &str, event: &Event) -> Result<bool>;
    /// The token with the id that its text has.
    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Found>>;
    /// Notes when a token was used last.
    async fn note_use(&self, id: &str, at: i64) -> Result<()>;
    /// Forgets tokens that expired, or were revoked, before this; says how many.
    async fn prune(&self, before: i64) -> Result<u64>;
}

/// Revokes tokens within a transaction.
#[async_trait]
pub(crate) trait RevokeTokens {
    /// Revokes every token of an owner; the ids of those that were live, whose access tokens are still to
    /// be revoked (`Revoke::revoke`).
    async fn revoke_tokens(&mut self, owner_id: &str, now: i64) -> sqlx::Result<Vec<String>>;
}

#[derive(sqlx::FromRow)]
struct TokenRow {
    id: String,
    owner_id: String,
    name: String,
    scopes: String,
    created_by: String,
    created_at: i64,
    expires_at: i64,
    last_used_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct FoundRow {
    #[sqlx(flatten)]
    token: TokenRow,
    salt: Vec<u8>,
    hash: Vec<u8>,
    revoked_at: Option<i64>,
    live_owner: Option<String>,
}

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            owner_id: row.owner_id,
            name: row.name,
            scopes: row.scopes.split(' ').map(str::to_owned).collect(),
            created_by: row.created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
        }
    }
}

impl From<FoundRow> for Found {
    fn from(row: FoundRow) -> Self {
        Self {
            token: row.token.into(),
            salt: row.salt,
            hash: row.hash,
            revoked: row.revoked_at.is_some(),
            owned: row.live_owner.is_some(),
        }
    }
}

/// The row of an owner that counts is the lock: tokens of one owner are made one after the other.
fn lock_owner(kind: Kind) -> &'static str {
    match kind {
        Kind::Personal => "UPDATE users SET name = name WHERE id = $1 AND disabled_at IS NULL",
        Kind::Service => "UPDATE service_accounts SET name = name WHERE id = $1",
    }
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl RevokeTokens for Connection {
    async fn revoke_tokens(&mut self, owner_id: &str, now: i64) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(
            "UPDATE opaque_tokens SET revoked_at = $2 WHERE owner_id = $1 AND revoked_at IS NULL RETURNING id",
        )
        .bind(owner_id)
        .bind(now)
        .fetch_all(&mut *self)
        .await
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl OpaqueTokenStore for SqlStore<Pool> {
    async fn create(&self, new: &NewToken, event: &Event) -> Result<Created> {
        let (token, stored) = (&new.token, &new.stored);
        let mut tx = self.pool.begin().await?;
        let locked = sqlx::query(lock_owner(new.kind)).bind(&token.owner_id).execute(&mut *tx).await?;
        if locked.rows_affected() == 0 {
            return Ok(Created::NoOwner);
        }
        let live: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM opaque_tokens
             WHERE owner_id = $1 AND revoked_at IS NULL AND expires_at > $2",
        )
        .bind(&token.owner_id)
        .bind(token.created_at)
        .fetch_one(&mut *tx)
        .await?;
        if live >= MAX_LIVE {
            return Ok(Created::TooMany);
        }
        sqlx::query(
            "INSERT INTO opaque_tokens
               (id, kind, owner_id, lookup, salt, hash, name, scopes, created_by, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(&token.id)
        .bind(new.kind.name())
        .bind(&token.owner_id)
        .bind(&stored.lookup)
        .bind(&stored.salt)
        .bind(&stored.hash)
        .bind(&token.name)
        .bind(token.scopes.join(" "))
        .bind(&token.created_by)
        .bind(token.created_at)
        .bind(token.expires_at)
        .execute(&mut *tx)
        .await?;
        tx.record(event).await?;
        tx.commit().await?;
        Ok(Created::Stored)
    }

    async fn list(&self, kind: Kind, owner_id: &str, page: Page) -> Result<(Vec<Token>, i64)> {
        let rows: Vec<TokenRow> = sqlx::query_as(
            "SELECT id, owner_id, name, scopes, created_by, created_at, expires_at, last_used_at
             FROM opaque_tokens WHERE kind = $1 AND owner_id = $2 AND revoked_at IS NULL
             ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4",
        )
        .bind(kind.name())
        .bind(owner_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar(
            "SELECT COUNT(*) FROM opaque_tokens WHERE kind = $1 AND owner_id = $2 AND revoked_at IS NULL",
        )
        .bind(kind.name())
        .bind(owner_id)
        .fetch_one(self.pool.read())
        .await?;
        Ok((rows.into_iter().map(Token::from).collect(), total))
    }

    async fn get(&self, kind: Kind, owner_id: &str, id: &str) -> Result<Option<Token>> {
        let row: Option<TokenRow> = sqlx::query_as(
            "SELECT id, owner_id, name, scopes, created_by, created_at, expires_at, last_used_at
             FROM opaque_tokens WHERE id = $1 AND kind = $2 AND owner_id = $3 AND revoked_at IS NULL",
        )
        .bind(id)
        .bind(kind.name())
        .bind(owner_id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Token::from))
    }

    async fn revoke(&self, kind: Kind, owner_id: &str, id: &str, event: &Event) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let revoked = sqlx::query(
            "UPDATE opaque_tokens SET revoked_at = $4
             WHERE id = $1 AND kind = $2 AND owner_id = $3 AND revoked_at IS NULL",
        )
        .bind(id)
        .bind(kind.name())
        .bind(owner_id)
        .bind(event.at)
        .execute(&mut *tx)
        .await?;
        if revoked.rows_affected() == 0 {
            let known: Option<String> = sqlx::query_scalar(
                "SELECT id FROM opaque_tokens WHERE id = $1 AND kind = $2 AND owner_id = $3",
            )
            .bind(id)
            .bind(kind.name())
            .bind(owner_id)
            .fetch_optional(&mut *tx)
            .await?;
            return Ok(known.is_some());
        }
        tx.revoke(&[id.to_owned()], remembered_until(event.at)).await?;
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Found>> {
        let row: Option<FoundRow> = sqlx::query_as(
            "SELECT t.id, t.owner_id, t.name, t.scopes, t.created_by, t.created_at, t.expires_at,
               t.last_used_at, t.salt, t.hash, t.revoked_at, COALESCE(u.id, s.id) AS live_owner
             FROM opaque_tokens t
             LEFT JOIN users u ON t.kind = 'pat' AND u.id = t.owner_id AND u.disabled_at IS NULL
             LEFT JOIN service_accounts s ON t.kind = 'svc' AND s.id = t.owner_id
             WHERE t.lookup = $1 AND t.kind = $2",
        )
        .bind(lookup)
        .bind(kind.name())
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Found::from))
    }

    async fn note_use(&self, id: &str, at: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "UPDATE opaque_tokens SET last_used_at = $2
             WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)",
        )
        .bind(id)
        .bind(at)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn prune(&self, before: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query("DELETE FROM opaque_tokens WHERE expires_at <= $1 OR revoked_at <= $1")
            .bind(before)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
