//! Signing keys, sealed.

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
    keys::{Revoked, SealedKey},
};

/// Keeps signing keys.
#[async_trait]
pub(crate) trait KeyStore: fmt::Debug + Send + Sync {
    /// Every key, the oldest first.
    async fn all(&self) -> Result<Vec<SealedKey>>;
    /// Adds a key and records `event`. False, and nothing is done, when its generation is there: another
    /// instance was faster.
    async fn add(&self, key: &SealedKey, event: &Event) -> Result<bool>;
    /// Revokes a key at the time of `event`. When no other can sign then, the next one that waits begins, or
    /// `spare` is added as the newest: `replacement` is recorded of it. `None` when there is no such key.
    async fn revoke(
        &self,
        kid: &str,
        spare: &SealedKey,
        event: &Event,
        replacement: &Event,
    ) -> Result<Option<Revoked>>;
    /// Deletes keys.
    async fn delete(&self, kids: &[String]) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    kid: String,
    sealed_key: Vec<u8>,
    generation: i64,
    activates_at: i64,
    created_at: i64,
    revoked_at: Option<i64>,
}

impl From<KeyRow> for SealedKey {
    fn from(row: KeyRow) -> Self {
        Self {
            kid: row.kid,
            sealed: row.sealed_key,
            generation: row.generation,
            activates_at: row.activates_at,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
        }
    }
}

/// Adds a key within a transaction; false when its generation is there.
#[async_trait]
trait AddKey {
    async fn add_key(&mut self, key: &SealedKey, generation: i64) -> sqlx::Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl AddKey for Connection {
    async fn add_key(&mut self, key: &SealedKey, generation: i64) -> sqlx::Result<bool> {
        // The index on `generation` lets one in: whoever comes second waits here for the first, then adds nothing.
        let added = sqlx::query(
            "INSERT INTO signing_keys (kid, sealed_key, generation, activates_at, created_at)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
        )
        .bind(&key.kid)
        .bind(&key.sealed)
        .bind(generation)
        .bind(key.activates_at)
        .bind(key.created_at)
        .execute(&mut *self)
        .await?;
        Ok(added.rows_affected() == 1)
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl KeyStore for SqlStore<Pool> {
    async fn all(&self) -> Result<Vec<SealedKey>> {
        let rows: Vec<KeyRow> = sqlx::query_as(
            "SELECT kid, sealed_key, generation, activates_at, created_at, revoked_at FROM signing_keys
             ORDER BY generation",
        )
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(SealedKey::from).collect())
    }

    async fn add(&self, key: &SealedKey, event: &Event) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        if !tx.add_key(key, key.generation).await? {
            return Ok(false);
        }
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn revoke(
        &self,
        kid: &str,
        spare: &SealedKey,
        event: &Event,
        replacement: &Event,
    ) -> Result<Option<Revoked>> {
        let (now, mut tx) = (event.at, self.pool.begin().await?);
        let revoked: Option<(i64, i64)> = sqlx::query_as(
            "UPDATE signing_keys SET revoked_at = $2 WHERE kid = $1 AND revoked_at IS NULL
             RETURNING generation, activates_at",
        )
        .bind(kid)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((generation, activates_at)) = revoked else {
            let known: Option<i64> = sqlx::query_scalar("SELECT generation FROM signing_keys WHERE kid = $1")
                .bind(kid)
                .fetch_optional(&mut *tx)
                .await?;
            return Ok(known.map(|_| Revoked::Before));
        };
        let mut replaced = None;
        // One that was still to begin leaves a gap to nobody.
        while activates_at <= now && replaced.is_none() {
            let signs: Option<String> = sqlx::query_scalar(
                "SELECT kid FROM signing_keys
                 WHERE generation > $1 AND activates_at <= $2 AND revoked_at IS NULL LIMIT 1",
            )
            .bind(generation)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
            if signs.is_some() {
                break;
            }
            // Waits for whoever changes that key, and then looks at it again.
            replaced = sqlx::query_scalar(
                "UPDATE signing_keys SET activates_at = $2
                 WHERE generation > $1 AND activates_at > $2 AND revoked_at IS NULL RETURNING kid",
            )
            .bind(generation)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
            if replaced.is_none() {
                let newest: i64 = sqlx::query_scalar("SELECT MAX(generation) FROM signing_keys")
                    .fetch_one(&mut *tx)
                    .await?;
                // When another instance was faster, its key is the one to take: once more.
                replaced = tx.add_key(spare, newest + 1).await?.then(|| spare.kid.clone());
            }
        }
        tx.record(event).await?;
        if let Some(kid) = &replaced {
            tx.record(&replacement.clone().on(kid)).await?;
        }
        tx.commit().await?;
        Ok(Some(replaced.map_or(Revoked::Apart, Revoked::ReplacedBy)))
    }

    async fn delete(&self, kids: &[String]) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        for kid in kids {
            sqlx::query("DELETE FROM signing_keys WHERE kid = $1").bind(kid).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}
