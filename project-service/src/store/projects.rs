//! Projects in SQL.

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
    page::Page,
};
use trait_gen::trait_gen;

use super::{
    SqlStore,
    changes::{Changed, Tell as _},
    is_foreign_key_violation, role_names,
};
use crate::domain::{
    Listed,
    access::Role,
    projects::{DeleteOutcome, Project},
};

/// Projects.
#[async_trait]
pub trait ProjectStore: std::fmt::Debug + Send + Sync + 'static {
    /// Writes a project; false when its organization has one of this name.
    async fn create_project(&self, new: &Project) -> Result<bool>;
    /// Projects by name, of the organizations in which the user has one of `roles`; of one
    /// organization only when its id is not empty.
    async fn list_projects(
        &self,
        user_id: &str,
        roles: &[Role],
        organization_id: &str,
        page: Page,
    ) -> Result<Listed<Project>>;
    /// A project, whoever asks.
    async fn project(&self, id: &str) -> Result<Option<Project>>;
    /// Changes name and description; false when the organization has another project of this name.
    async fn update_project(&self, id: &str, name: &str, description: &str, now: i64) -> Result<bool>;
    /// Deletes a project, unless it holds an API or is the last of its organization.
    async fn delete_project(&self, organization_id: &str, id: &str) -> Result<DeleteOutcome>;
}

/// Writes a project; its columns in this order, the time for both times.
pub(super) const INSERT: &str = "INSERT INTO projects
     (id, organization_id, name, description, created_by, created_at, updated_at)
     VALUES ($1, $2, $3, $4, $5, $6, $6)";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    name: String,
    description: String,
    created_by: String,
    created_at: i64,
    updated_at: i64,
}

impl From<Row> for Project {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            organization_id: row.organization_id,
            name: row.name,
            description: row.description,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ProjectStore for SqlStore<Pool> {
    async fn create_project(&self, new: &Project) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query(INSERT)
            .bind(&new.id)
            .bind(&new.organization_id)
            .bind(&new.name)
            .bind(&new.description)
            .bind(&new.created_by)
            .bind(new.created_at)
            .execute(&mut *tx)
            .await;
        match inserted {
            Ok(_) => {
                tx.tell(&[Changed::Organization(&new.organization_id)]).await?;
                tx.commit().await?;
                self.changes.now();
                Ok(true)
            }
            Err(error) if is_unique_violation(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn list_projects(
        &self,
        user_id: &str,
        roles: &[Role],
        organization_id: &str,
        page: Page,
    ) -> Result<Listed<Project>> {
        let [a, b, c, d, e] = role_names(roles);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT p.id, p.organization_id, p.name, p.description, p.created_by, p.created_at, p.updated_at
             FROM memberships m JOIN projects p ON p.organization_id = m.organization_id
             WHERE m.user_id = $1 AND m.role IN ($2, $3, $4, $5, $6) AND ($7 = '' OR p.organization_id = $7)
             ORDER BY p.name, p.id LIMIT $8 OFFSET $9",
        )
        .bind(user_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .bind(d)
        .bind(e)
        .bind(organization_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar(
            "SELECT COUNT(*) FROM memberships m JOIN projects p ON p.organization_id = m.organization_id
             WHERE m.user_id = $1 AND m.role IN ($2, $3, $4, $5, $6) AND ($7 = '' OR p.organization_id = $7)",
        )
        .bind(user_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .bind(d)
        .bind(e)
        .bind(organization_id)
        .fetch_one(self.pool.read())
        .await?;
        Ok(Listed { list: rows.into_iter().map(Project::from).collect(), total })
    }

    async fn project(&self, id: &str) -> Result<Option<Project>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT id, organization_id, name, description, created_by, created_at, updated_at
             FROM projects WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Project::from))
    }

    async fn update_project(&self, id: &str, name: &str, description: &str, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let updated: sqlx::Result<Option<String>> = sqlx::query_scalar(
            "UPDATE projects SET name = $2, description = $3, updated_at = $4 WHERE id = $1
             RETURNING organization_id",
        )
        .bind(id)
        .bind(name)
        .bind(description)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await;
        match updated {
            Ok(organization) => {
                if let Some(organization) = &organization {
                    tx.tell(&[Changed::Organization(organization), Changed::Project(id)]).await?;
                }
                tx.commit().await?;
                self.changes.now();
                Ok(true)
            }
            Err(error) if is_unique_violation(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_project(&self, organization_id: &str, id: &str) -> Result<DeleteOutcome> {
        let mut tx = self.pool.begin().await?;
        // Two deletes of the last two projects must not both see two: the organization's row is the lock.
        sqlx::query("UPDATE organizations SET updated_at = updated_at WHERE id = $1")
            .bind(organization_id)
            .execute(&mut *tx)
            .await?;
        let apis: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM apis WHERE project_id = $1")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
        if apis > 0 {
            return Ok(DeleteOutcome::NotEmpty);
        }
        let others: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM projects WHERE organization_id = $1 AND id <> $2")
                .bind(organization_id)
                .bind(id)
                .fetch_one(&mut *tx)
                .await?;
        if others == 0 {
            return Ok(DeleteOutcome::Last);
        }
        match sqlx::query("DELETE FROM projects WHERE id = $1").bind(id).execute(&mut *tx).await {
            Ok(done) if done.rows_affected() == 0 => return Ok(DeleteOutcome::Missing),
            Ok(_) => {}
            // An API was created since it was counted.
            Err(error) if is_foreign_key_violation(&error) => return Ok(DeleteOutcome::NotEmpty),
            Err(error) => return Err(error.into()),
        }
        tx.tell(&[Changed::Organization(organization_id), Changed::Project(id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(DeleteOutcome::Deleted)
    }
}
