//! SQL of gateway tokens.

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    opaque,
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{SqlStore, TokenStore, push_in};
use crate::domain::tokens::{Bearer, Issued, StoredToken, Token};

#[derive(sqlx::FromRow)]
struct TokenRow {
    id: String,
    created_at: i64,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct StoredRow {
    #[sqlx(flatten)]
    token: TokenRow,
    salt: Vec<u8>,
    hash: Vec<u8>,
    gateway_id: String,
    organization_id: String,
}

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
        }
    }
}

impl From<StoredRow> for StoredToken {
    fn from(row: StoredRow) -> Self {
        let token = Token::from(row.token);
        let bearer = Bearer {
            gateway_id: row.gateway_id,
            organization_id: row.organization_id,
            token_id: token.id.clone(),
        };
        Self { token, salt: row.salt, hash: row.hash, bearer }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl TokenStore for SqlStore<Pool> {
    async fn issue(&self, gateway_id: &str, token: &Token, stored: &opaque::Stored) -> Result<Issued> {
        let mut tx = self.pool.begin().await?;
        // The gateway's row is the lock: rotations of one gateway come one after the other.
        let locked = sqlx::query("UPDATE gateways SET head = head WHERE id = $1")
            .bind(gateway_id)
            .execute(&mut *tx)
            .await?;
        if locked.rows_affected() == 0 {
            return Ok(Issued::NoGateway);
        }
        let taken: Vec<i64> =
            sqlx::query_scalar("SELECT slot FROM gateway_tokens WHERE gateway_id = $1 AND slot IS NOT NULL")
                .bind(gateway_id)
                .fetch_all(&mut *tx)
                .await?;
        let Some(slot) = [1_i64, 2].into_iter().find(|slot| !taken.contains(slot)) else {
            return Ok(Issued::Limit);
        };
        sqlx::query(
            "INSERT INTO gateway_tokens (id, gateway_id, lookup, salt, hash, slot, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&token.id)
        .bind(gateway_id)
        .bind(&stored.lookup)
        .bind(&stored.salt)
        .bind(&stored.hash)
        .bind(slot)
        .bind(token.created_at)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Issued::Stored)
    }

    async fn list(&self, gateway_id: &str) -> Result<Vec<Token>> {
        let rows: Vec<TokenRow> = sqlx::query_as(
            "SELECT id, created_at, revoked_at, last_used_at FROM gateway_tokens
             WHERE gateway_id = $1 ORDER BY created_at DESC, id DESC",
        )
        .bind(gateway_id)
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(Token::from).collect())
    }

    async fn revoke(&self, gateway_id: &str, token_id: &str, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let found = sqlx::query(
            "UPDATE gateway_tokens SET slot = NULL, revoked_at = COALESCE(revoked_at, $3)
             WHERE id = $1 AND gateway_id = $2",
        )
        .bind(token_id)
        .bind(gateway_id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(found.rows_affected() > 0)
    }

    async fn find(&self, lookup: &str) -> Result<Option<StoredToken>> {
        let row: Option<StoredRow> = sqlx::query_as(
            "SELECT t.id, t.created_at, t.revoked_at, t.last_used_at, t.salt, t.hash, t.gateway_id,
               g.organization_id
             FROM gateway_tokens t JOIN gateways g ON g.id = t.gateway_id WHERE t.lookup = $1",
        )
        .bind(lookup)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(StoredToken::from))
    }

    async fn note_use(&self, token_id: &str, at: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "UPDATE gateway_tokens SET last_used_at = $2
             WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)",
        )
        .bind(token_id)
        .bind(at)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn active(&self, token_ids: &[String]) -> Result<Vec<String>> {
        let mut query = QueryBuilder::new("SELECT id FROM gateway_tokens WHERE revoked_at IS NULL AND ");
        push_in!(query, "id", token_ids);
        Ok(query.build_query_scalar().fetch_all(self.pool.read()).await?)
    }
}
