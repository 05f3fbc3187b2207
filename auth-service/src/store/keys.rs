//! Signing keys, sealed.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::keys::SealedKey;

/// Keeps signing keys.
#[async_trait]
pub(crate) trait KeyStore: fmt::Debug + Send + Sync {
    /// Every key, the oldest first.
    async fn all(&self) -> Result<Vec<SealedKey>>;
    /// Adds the first active key, unless another instance was faster.
    async fn add_first(&self, key: &SealedKey) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    kid: String,
    sealed_key: Vec<u8>,
    active: bool,
    created_at: i64,
}

impl From<KeyRow> for SealedKey {
    fn from(row: KeyRow) -> Self {
        Self { kid: row.kid, sealed: row.sealed_key, active: row.active, created_at: row.created_at }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl KeyStore for SqlStore<Pool> {
    async fn all(&self) -> Result<Vec<SealedKey>> {
        let rows: Vec<KeyRow> = sqlx::query_as(
            "SELECT kid, sealed_key, active, created_at FROM signing_keys ORDER BY created_at, kid",
        )
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(SealedKey::from).collect())
    }

    async fn add_first(&self, key: &SealedKey) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        // The index on `active` lets one in: whoever comes second waits here for the first, then adds nothing.
        sqlx::query(
            "INSERT INTO signing_keys (kid, sealed_key, active, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(&key.kid)
        .bind(&key.sealed)
        .bind(key.active)
        .bind(key.created_at)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}
