//! The table of keys: one row for each key of a caller. It is in the service's own database, so that what was done and
//! that it was done are one transaction.

use async_trait::async_trait;
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::Claim;
use crate::db::{PostgresPool, SqlitePool};

/// What a service's migrations hold for the keys of its callers.
pub const SCHEMA: &str = "
CREATE TABLE idempotency_keys (
  principal TEXT NOT NULL, key_hash BYTEA NOT NULL, method TEXT NOT NULL, fingerprint BYTEA NOT NULL,
  owner TEXT NOT NULL, performed BOOLEAN NOT NULL, outcome BYTEA,
  created_at BIGINT NOT NULL, lease_until BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  PRIMARY KEY (principal, key_hash)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);";

/// A key that somebody has used. Times are Unix milliseconds.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Used {
    pub(super) method: String,
    pub(super) fingerprint: Vec<u8>,
    /// Whether something was committed under it.
    pub(super) performed: bool,
    /// The sealed answer, once there is one.
    pub(super) outcome: Option<Vec<u8>>,
    pub(super) lease_until: i64,
    pub(super) expires_at: i64,
}

impl Used {
    /// Whether the key may be had anew: it is over, or whoever had it did nothing with it and is gone.
    pub(super) fn is_free(&self, now: i64) -> bool {
        self.expires_at <= now || (!self.performed && self.lease_until <= now)
    }
}

/// A claim that is to be made.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub(super) claim: &'a Claim,
    pub(super) method: &'a str,
    pub(super) fingerprint: &'a [u8],
    pub(super) now: i64,
    pub(super) lease_until: i64,
    pub(super) expires_at: i64,
}

/// Reads and writes keys.
#[async_trait]
pub(super) trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// The key, if it was used.
    async fn find(&self, principal: &str, key_hash: &[u8]) -> sqlx::Result<Option<Used>>;
    /// How many keys a caller has that are not over, and when the first of them will be.
    async fn count(&self, principal: &str, now: i64) -> sqlx::Result<(i64, Option<i64>)>;
    /// Takes a key that nobody has; false when somebody was faster.
    async fn claim(&self, new: &New<'_>) -> sqlx::Result<bool>;
    /// Notes that the call is over: with its sealed answer, or without one that could be given again. False when the
    /// claim is not there any more.
    async fn finish(&self, claim: &Claim, outcome: Option<&[u8]>) -> sqlx::Result<bool>;
    /// Gives a key back under which nothing was committed; false when something was.
    async fn free(&self, claim: &Claim) -> sqlx::Result<bool>;
    /// Deletes some of the keys that are over; how many.
    async fn sweep(&self, now: i64, most: i64) -> sqlx::Result<u64>;
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl Store for Pool {
    async fn find(&self, principal: &str, key_hash: &[u8]) -> sqlx::Result<Option<Used>> {
        sqlx::query_as(
            "SELECT method, fingerprint, performed, outcome, lease_until, expires_at
             FROM idempotency_keys WHERE principal = $1 AND key_hash = $2",
        )
        .bind(principal)
        .bind(key_hash)
        .fetch_optional(self.read())
        .await
    }

    async fn count(&self, principal: &str, now: i64) -> sqlx::Result<(i64, Option<i64>)> {
        sqlx::query_as(
            "SELECT COUNT(*), MIN(expires_at) FROM idempotency_keys WHERE principal = $1 AND expires_at > $2",
        )
        .bind(principal)
        .bind(now)
        .fetch_one(self.read())
        .await
    }

    async fn claim(&self, new: &New<'_>) -> sqlx::Result<bool> {
        let mut tx = self.begin().await?;
        // The condition is that of `Used::is_free`, judged again under the lock of the row.
        let owner: Option<String> = sqlx::query_scalar(
            "INSERT INTO idempotency_keys
               (principal, key_hash, method, fingerprint, owner, performed, created_at, lease_until, expires_at)
             VALUES ($1, $2, $3, $4, $5, FALSE, $6, $7, $8)
             ON CONFLICT (principal, key_hash) DO UPDATE SET
               method = excluded.method, fingerprint = excluded.fingerprint, owner = excluded.owner,
               performed = FALSE, outcome = NULL, created_at = excluded.created_at,
               lease_until = excluded.lease_until, expires_at = excluded.expires_at
             WHERE idempotency_keys.expires_at <= $6
                OR (NOT idempotency_keys.performed AND idempotency_keys.lease_until <= $6)
             RETURNING owner",
        )
        .bind(&new.claim.principal)
        .bind(&new.claim.key_hash)
        .bind(new.method)
        .bind(new.fingerprint)
        .bind(&new.claim.owner)
        .bind(new.now)
        .bind(new.lease_until)
        .bind(new.expires_at)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(owner.is_some())
    }

    async fn finish(&self, claim: &Claim, outcome: Option<&[u8]>) -> sqlx::Result<bool> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "UPDATE idempotency_keys SET performed = TRUE, outcome = $4, lease_until = 0
             WHERE principal = $1 AND key_hash = $2 AND owner = $3",
        )
        .bind(&claim.principal)
        .bind(&claim.key_hash)
        .bind(&claim.owner)
        .bind(outcome)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    async fn free(&self, claim: &Claim) -> sqlx::Result<bool> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "DELETE FROM idempotency_keys
             WHERE principal = $1 AND key_hash = $2 AND owner = $3 AND NOT performed",
        )
        .bind(&claim.principal)
        .bind(&claim.key_hash)
        .bind(&claim.owner)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    async fn sweep(&self, now: i64, most: i64) -> sqlx::Result<u64> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "DELETE FROM idempotency_keys WHERE (principal, key_hash) IN
               (SELECT principal, key_hash FROM idempotency_keys WHERE expires_at <= $1
                ORDER BY expires_at LIMIT $2)",
        )
        .bind(now)
        .bind(most)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

/// Notes within a transaction that something is done under a claim.
#[async_trait]
pub(crate) trait Perform {
    /// False when the claim is not there any more: somebody else has the key.
    async fn perform(&mut self, claim: &Claim) -> sqlx::Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Perform for Connection {
    async fn perform(&mut self, claim: &Claim) -> sqlx::Result<bool> {
        let done = sqlx::query(
            "UPDATE idempotency_keys SET performed = TRUE
             WHERE principal = $1 AND key_hash = $2 AND owner = $3",
        )
        .bind(&claim.principal)
        .bind(&claim.key_hash)
        .bind(&claim.owner)
        .execute(&mut *self)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
