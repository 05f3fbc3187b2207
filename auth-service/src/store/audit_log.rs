//! The audit log, read; and how much of it has been exported.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    page::Page,
};
use trait_gen::trait_gen;

use super::SqlStore;

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) chain: String,
    pub(crate) sequence: i64,
    /// Unix milliseconds.
    pub(crate) at: i64,
    /// The canonical form.
    pub(crate) body: String,
    pub(crate) hash: Vec<u8>,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Head {
    pub(crate) chain: String,
    pub(crate) sequence: i64,
    pub(crate) hash: Vec<u8>,
    /// The sequence of the last head of this chain that was exported; 0 when none was.
    pub(crate) exported: i64,
}

/// Reads the audit log.
#[async_trait]
pub(crate) trait AuditLogStore: fmt::Debug + Send + Sync {
    /// A page of a chain, newest first, and how many events it has.
    async fn page(&self, chain: &str, page: Page) -> Result<(i64, Vec<Row>)>;
    /// The first chain after this one that has events or a head; the first of all after the empty name.
    async fn chain_after(&self, chain: &str) -> Result<Option<String>>;
    /// The head of a chain.
    async fn head(&self, chain: &str) -> Result<Option<Head>>;
    /// Events of a chain in their order, after one sequence and up to another, at most so many.
    async fn events(&self, chain: &str, after: i64, through: i64, most: i64) -> Result<Vec<Row>>;
    /// The last sequence of a chain that there is an event of; 0 without events.
    async fn last(&self, chain: &str) -> Result<i64>;
    /// The hash of an event.
    async fn hash(&self, chain: &str, sequence: i64) -> Result<Option<Vec<u8>>>;
    /// Heads that were not exported yet, of chains after this one, at most so many.
    async fn unexported(&self, after: &str, most: i64) -> Result<Vec<Head>>;
    /// Whether a chain has at least so many events that no exported head covers.
    async fn is_behind(&self, by: i64) -> Result<bool>;
    /// Remembers that a head was exported.
    async fn exported(&self, chain: &str, sequence: i64) -> Result<()>;
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl AuditLogStore for SqlStore<Pool> {
    async fn page(&self, chain: &str, page: Page) -> Result<(i64, Vec<Row>)> {
        // Sequences have no gaps, so the head counts the events.
        let total = self.head(chain).await?.map_or(0, |head| head.sequence);
        let rows = sqlx::query_as(
            "SELECT chain, sequence, at, body, hash FROM audit_events WHERE chain = $1 AND sequence <= $2
             ORDER BY sequence DESC LIMIT $3 OFFSET $4",
        )
        .bind(chain)
        .bind(total)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        Ok((total, rows))
    }

    async fn chain_after(&self, chain: &str) -> Result<Option<String>> {
        // Each half is one step in an index.
        Ok(sqlx::query_scalar(
            "SELECT MIN(chain) FROM (
               SELECT MIN(chain) AS chain FROM audit_heads WHERE chain > $1
               UNION ALL SELECT MIN(chain) AS chain FROM audit_events WHERE chain > $1
             ) AS first",
        )
        .bind(chain)
        .fetch_one(self.pool.read())
        .await?)
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        Ok(sqlx::query_as("SELECT chain, sequence, hash, exported FROM audit_heads WHERE chain = $1")
            .bind(chain)
            .fetch_optional(self.pool.read())
            .await?)
    }

    async fn events(&self, chain: &str, after: i64, through: i64, most: i64) -> Result<Vec<Row>> {
        Ok(sqlx::query_as(
            "SELECT chain, sequence, at, body, hash FROM audit_events
             WHERE chain = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4",
        )
        .bind(chain)
        .bind(after)
        .bind(through)
        .bind(most)
        .fetch_all(self.pool.read())
        .await?)
    }

    async fn last(&self, chain: &str) -> Result<i64> {
        let last: Option<i64> = sqlx::query_scalar("SELECT MAX(sequence) FROM audit_events WHERE chain = $1")
            .bind(chain)
            .fetch_one(self.pool.read())
            .await?;
        Ok(last.unwrap_or(0))
    }

    async fn hash(&self, chain: &str, sequence: i64) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar("SELECT hash FROM audit_events WHERE chain = $1 AND sequence = $2")
            .bind(chain)
            .bind(sequence)
            .fetch_optional(self.pool.read())
            .await?)
    }

    async fn unexported(&self, after: &str, most: i64) -> Result<Vec<Head>> {
        Ok(sqlx::query_as(
            "SELECT chain, sequence, hash, exported FROM audit_heads
             WHERE exported < sequence AND chain > $1 ORDER BY chain LIMIT $2",
        )
        .bind(after)
        .bind(most)
        .fetch_all(self.pool.read())
        .await?)
    }

    async fn is_behind(&self, by: i64) -> Result<bool> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT chain FROM audit_heads WHERE exported < sequence AND sequence - exported >= $1 LIMIT 1",
        )
        .bind(by)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(found.is_some())
    }

    async fn exported(&self, chain: &str, sequence: i64) -> Result<()> {
        // One head for each transaction: whoever records in two chains at once must not wait for us while
        // we wait for him.
        let mut tx = self.pool.begin().await?;
        sqlx::query("UPDATE audit_heads SET exported = $2 WHERE chain = $1 AND exported < $2")
            .bind(chain)
            .bind(sequence)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
