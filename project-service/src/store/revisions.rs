//! Revisions in SQL: copies of an API's document and of its sealed private keys.

use async_trait::async_trait;
use proto::project::Api;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
    page::Page,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    SqlStore,
    apis::read_document,
    changes::{Changed, Tell as _},
};
use crate::domain::{
    Listed,
    revisions::{NewRevision, Revision},
};

/// Revisions.
#[async_trait]
pub trait RevisionStore: std::fmt::Debug + Send + Sync + 'static {
    /// Freezes the working copy of an API under the next number; nothing when the API is gone.
    async fn create_revision(&self, new: &NewRevision) -> Result<Option<Revision>>;
    /// The revisions of an API, newest first.
    async fn list_revisions(&self, api_id: &str, page: Page) -> Result<Listed<Revision>>;
    /// A revision of an API, and the API as it was, without private keys.
    async fn revision(&self, api_id: &str, id: &str) -> Result<Option<(Revision, Api)>>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    api_id: String,
    number: i64,
    description: String,
    created_at: i64,
    created_by: String,
}

impl Row {
    fn read(self) -> Result<Revision> {
        Ok(Revision {
            id: self.id,
            api_id: self.api_id,
            number: u32::try_from(self.number).map_err(Error::internal)?,
            description: self.description,
            created_at: self.created_at,
            created_by: self.created_by,
        })
    }
}

/// What a transaction does with an API whose row it locks.
#[async_trait]
pub(super) trait Freeze {
    /// Locks an API until the transaction ends: changes of one API queue here, in the order in which
    /// they will be seen. False when there is no such API.
    async fn lock_api(&mut self, api_id: &str) -> sqlx::Result<bool>;
    /// The working copy.
    async fn working_copy(&mut self, api_id: &str) -> Result<Api>;
    /// Copies the working copy of a locked API into a revision; answers its number.
    async fn freeze(&mut self, new: &NewRevision) -> sqlx::Result<i64>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Freeze for Connection {
    async fn lock_api(&mut self, api_id: &str) -> sqlx::Result<bool> {
        let locked = sqlx::query("UPDATE apis SET updated_at = updated_at WHERE id = $1")
            .bind(api_id)
            .execute(&mut *self)
            .await?;
        Ok(locked.rows_affected() > 0)
    }

    async fn working_copy(&mut self, api_id: &str) -> Result<Api> {
        let document: String = sqlx::query_scalar("SELECT document FROM apis WHERE id = $1")
            .bind(api_id)
            .fetch_one(&mut *self)
            .await?;
        read_document(&document)
    }

    async fn freeze(&mut self, new: &NewRevision) -> sqlx::Result<i64> {
        sqlx::query_scalar(
            "INSERT INTO revisions
               (id, api_id, number, description, document, sealed_keys, created_by, created_at)
             SELECT $1, a.id, (SELECT COALESCE(MAX(r.number), 0) + 1 FROM revisions r WHERE r.api_id = a.id),
               $3, a.document, k.sealed, $4, $5
             FROM apis a LEFT JOIN api_private_keys k ON k.api_id = a.id WHERE a.id = $2
             RETURNING number",
        )
        .bind(&new.id)
        .bind(&new.api_id)
        .bind(&new.description)
        .bind(&new.created_by)
        .bind(new.created_at)
        .fetch_one(&mut *self)
        .await
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl RevisionStore for SqlStore<Pool> {
    async fn create_revision(&self, new: &NewRevision) -> Result<Option<Revision>> {
        let mut tx = self.pool.begin().await?;
        if !tx.lock_api(&new.api_id).await? {
            return Ok(None);
        }
        let number = tx.freeze(new).await?;
        tx.tell(&[Changed::Api(&new.api_id)]).await?;
        tx.commit().await?;
        self.changes.now();
        let row = Row {
            id: new.id.clone(),
            api_id: new.api_id.clone(),
            number,
            description: new.description.clone(),
            created_at: new.created_at,
            created_by: new.created_by.clone(),
        };
        row.read().map(Some)
    }

    async fn list_revisions(&self, api_id: &str, page: Page) -> Result<Listed<Revision>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, api_id, number, description, created_at, created_by FROM revisions
             WHERE api_id = $1 ORDER BY number DESC LIMIT $2 OFFSET $3",
        )
        .bind(api_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar("SELECT COUNT(*) FROM revisions WHERE api_id = $1")
            .bind(api_id)
            .fetch_one(self.pool.read())
            .await?;
        Ok(Listed { list: rows.into_iter().map(Row::read).collect::<Result<_>>()?, total })
    }

    async fn revision(&self, api_id: &str, id: &str) -> Result<Option<(Revision, Api)>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT id, api_id, number, description, created_at, created_by FROM revisions
             WHERE api_id = $1 AND id = $2",
        )
        .bind(api_id)
        .bind(id)
        .fetch_optional(self.pool.read())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let document: Option<String> = sqlx::query_scalar("SELECT document FROM revisions WHERE id = $1")
            .bind(id)
            .fetch_optional(self.pool.read())
            .await?;
        let Some(document) = document else { return Ok(None) };
        Ok(Some((row.read()?, read_document(&document)?)))
    }
}
