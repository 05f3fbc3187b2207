//! APIs in SQL: the columns that queries need, the whole model as one JSON document, its private keys
//! sealed in a table of their own.

use async_trait::async_trait;
use proto::{project::Api, time::Timestamp};
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
    page::Page,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    SqlStore,
    changes::{Changed, Tell as _},
    deployments::{MakeDeleted, Parts as _},
    is_foreign_key_violation,
    revisions::Freeze as _,
    role_names,
};
use crate::domain::{
    Listed,
    access::Role,
    apis::{Definition, DeleteOutcome, StoredApi, WriteOutcome},
};

/// Makes the sealed private keys to store out of those that are stored.
pub type MergeKeys<'a> = &'a (dyn Fn(Option<Vec<u8>>) -> Result<Option<Vec<u8>>> + Send + Sync);

/// APIs.
#[async_trait]
pub trait ApiStore: std::fmt::Debug + Send + Sync + 'static {
    /// Writes an API with its sealed private keys and the document that it was imported from.
    async fn create_api(
        &self,
        new: &StoredApi,
        sealed_keys: Option<Vec<u8>>,
        definition: Option<&Definition>,
    ) -> Result<WriteOutcome>;
    /// APIs by name and version, of the organizations in which the user has one of `roles`; of one
    /// project only when its id is not empty.
    async fn list_apis(
        &self,
        user_id: &str,
        roles: &[Role],
        project_id: &str,
        page: Page,
    ) -> Result<Listed<StoredApi>>;
    /// An API without its private keys, whoever asks.
    async fn api(&self, id: &str) -> Result<Option<StoredApi>>;
    /// The sealed private keys of an API.
    async fn sealed_keys(&self, api_id: &str) -> Result<Option<Vec<u8>>>;
    /// Replaces an API; `keys` gets the sealed private keys as they are in the same transaction.
    async fn update_api(&self, changed: &StoredApi, keys: MergeKeys<'_>) -> Result<WriteOutcome>;
    /// Deletes an API that no gateway is to run; `event` makes what each gateway that ever had it is told.
    async fn delete_api(&self, id: &str, event: MakeDeleted<'_>) -> Result<DeleteOutcome>;
    /// The document that an API was imported from.
    async fn definition(&self, api_id: &str) -> Result<Option<Definition>>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    project_id: String,
    document: String,
    created_by: String,
    created_at: i64,
    updated_at: i64,
}

impl Row {
    fn read(self) -> Result<StoredApi> {
        let mut api = read_document(&self.document)?;
        api.id = self.id;
        api.project_id = self.project_id;
        api.created_at = Some(Timestamp::from_unix_ms(self.created_at));
        api.updated_at = Some(Timestamp::from_unix_ms(self.updated_at));
        Ok(StoredApi { organization_id: self.organization_id, created_by: self.created_by, api })
    }
}

/// The JSON document of an API: all but what has a column of its own and may change without it.
pub(super) fn write_document(api: &Api) -> Result<String> {
    let document = Api {
        id: String::new(),
        project_id: String::new(),
        created_at: None,
        updated_at: None,
        ..api.clone()
    };
    serde_json::to_string(&document).map_err(Error::internal)
}

/// Reads what [`write_document`] made.
pub(super) fn read_document(document: &str) -> Result<Api> {
    serde_json::from_str(document).map_err(Error::internal)
}

fn millis(time: Option<Timestamp>) -> i64 {
    time.map_or(0, |time| time.unix_ms())
}

const INSERT_KEYS: &str = "INSERT INTO api_private_keys (api_id, sealed) VALUES ($1, $2)";

/// Writes APIs within a transaction.
#[async_trait]
pub(super) trait InsertApi {
    /// Writes an API, unless its project has another with its name, context and version: then false.
    async fn insert_api(&mut self, new: &StoredApi, document: &str) -> sqlx::Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl InsertApi for Connection {
    async fn insert_api(&mut self, new: &StoredApi, document: &str) -> sqlx::Result<bool> {
        let api = &new.api;
        let inserted = sqlx::query(
            "INSERT INTO apis (id, organization_id, project_id, name, context, version, life_cycle_status,
               type, document, created_by, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) ON CONFLICT DO NOTHING",
        )
        .bind(&api.id)
        .bind(&new.organization_id)
        .bind(&api.project_id)
        .bind(&api.name)
        .bind(&api.context)
        .bind(&api.version)
        .bind(api.life_cycle_status().as_str_name())
        .bind(api.r#type().as_str_name())
        .bind(document)
        .bind(&new.created_by)
        .bind(millis(api.created_at))
        .execute(&mut *self)
        .await?;
        Ok(inserted.rows_affected() > 0)
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ApiStore for SqlStore<Pool> {
    async fn create_api(
        &self,
        new: &StoredApi,
        sealed_keys: Option<Vec<u8>>,
        definition: Option<&Definition>,
    ) -> Result<WriteOutcome> {
        let api = &new.api;
        let document = write_document(api)?;
        let mut tx = self.pool.begin().await?;
        match tx.insert_api(new, &document).await {
            Ok(true) => {}
            Ok(false) => return Ok(WriteOutcome::Taken),
            // The project was deleted since it was looked up.
            Err(error) if is_foreign_key_violation(&error) => return Ok(WriteOutcome::Missing),
            Err(error) => return Err(error.into()),
        }
        if let Some(sealed) = sealed_keys {
            sqlx::query(INSERT_KEYS).bind(&api.id).bind(sealed).execute(&mut *tx).await?;
        }
        if let Some(definition) = definition {
            sqlx::query("INSERT INTO api_definitions (api_id, media_type, document) VALUES ($1, $2, $3)")
                .bind(&api.id)
                .bind(&definition.media_type)
                .bind(&definition.document)
                .execute(&mut *tx)
                .await?;
        }
        tx.tell(&[Changed::Project(&api.project_id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(WriteOutcome::Written)
    }

    async fn list_apis(
        &self,
        user_id: &str,
        roles: &[Role],
        project_id: &str,
        page: Page,
    ) -> Result<Listed<StoredApi>> {
        let [a, b, c, d, e] = role_names(roles);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT a.id, a.organization_id, a.project_id, a.document, a.created_by, a.created_at, a.updated_at
             FROM memberships m JOIN apis a ON a.organization_id = m.organization_id
             WHERE m.user_id = $1 AND m.role IN ($2, $3, $4, $5, $6) AND ($7 = '' OR a.project_id = $7)
             ORDER BY a.name, a.version, a.id LIMIT $8 OFFSET $9",
        )
        .bind(user_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .bind(d)
        .bind(e)
        .bind(project_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar(
            "SELECT COUNT(*) FROM memberships m JOIN apis a ON a.organization_id = m.organization_id
             WHERE m.user_id = $1 AND m.role IN ($2, $3, $4, $5, $6) AND ($7 = '' OR a.project_id = $7)",
        )
        .bind(user_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .bind(d)
        .bind(e)
        .bind(project_id)
        .fetch_one(self.pool.read())
        .await?;
        Ok(Listed { list: rows.into_iter().map(Row::read).collect::<Result<_>>()?, total })
    }

    async fn api(&self, id: &str) -> Result<Option<StoredApi>> {
        sqlx::query_as::<_, Row>(
            "SELECT id, organization_id, project_id, document, created_by, created_at, updated_at
             FROM apis WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(self.pool.read())
        .await?
        .map(Row::read)
        .transpose()
    }

    async fn sealed_keys(&self, api_id: &str) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar("SELECT sealed FROM api_private_keys WHERE api_id = $1")
            .bind(api_id)
            .fetch_optional(self.pool.read())
            .await?)
    }

    async fn update_api(&self, changed: &StoredApi, keys: MergeKeys<'_>) -> Result<WriteOutcome> {
        let api = &changed.api;
        let document = write_document(api)?;
        let mut tx = self.pool.begin().await?;
        // The update locks the API's row, so that the keys read below are those of the last writer.
        let updated = sqlx::query(
            "UPDATE apis SET name = $2, context = $3, version = $4, life_cycle_status = $5, type = $6,
               document = $7, updated_at = $8 WHERE id = $1",
        )
        .bind(&api.id)
        .bind(&api.name)
        .bind(&api.context)
        .bind(&api.version)
        .bind(api.life_cycle_status().as_str_name())
        .bind(api.r#type().as_str_name())
        .bind(document)
        .bind(millis(api.updated_at))
        .execute(&mut *tx)
        .await;
        match updated {
            Ok(done) if done.rows_affected() == 0 => return Ok(WriteOutcome::Missing),
            Ok(_) => {}
            Err(error) if is_unique_violation(&error) => return Ok(WriteOutcome::Taken),
            Err(error) => return Err(error.into()),
        }
        let stored: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM api_private_keys WHERE api_id = $1")
                .bind(&api.id)
                .fetch_optional(&mut *tx)
                .await?;
        let merged = keys(stored)?;
        sqlx::query("DELETE FROM api_private_keys WHERE api_id = $1").bind(&api.id).execute(&mut *tx).await?;
        if let Some(sealed) = merged {
            sqlx::query(INSERT_KEYS).bind(&api.id).bind(sealed).execute(&mut *tx).await?;
        }
        tx.tell(&[Changed::Project(&api.project_id), Changed::Api(&api.id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(WriteOutcome::Written)
    }

    async fn delete_api(&self, id: &str, event: MakeDeleted<'_>) -> Result<DeleteOutcome> {
        let mut tx = self.pool.begin().await?;
        // A deploy takes the same lock first, so that nothing is deployed once this has looked.
        if !tx.lock_api(id).await? {
            return Ok(DeleteOutcome::Missing);
        }
        if tx.is_deployed(id).await? {
            return Ok(DeleteOutcome::Deployed);
        }
        tx.announce_deletion(id, event).await?;
        let project: String = sqlx::query_scalar("DELETE FROM apis WHERE id = $1 RETURNING project_id")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
        tx.tell(&[Changed::Project(&project), Changed::Api(id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(DeleteOutcome::Deleted)
    }

    async fn definition(&self, api_id: &str) -> Result<Option<Definition>> {
        let row: Option<(String, Vec<u8>)> =
            sqlx::query_as("SELECT media_type, document FROM api_definitions WHERE api_id = $1")
                .bind(api_id)
                .fetch_optional(self.pool.read())
                .await?;
        Ok(row.map(|(media_type, document)| Definition { media_type, document }))
    }
}
