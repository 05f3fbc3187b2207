//! Organizations and memberships in SQL.

use async_trait::async_trait;
use service_kit::{
    Error, Result,
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
    organizations::{CreateOutcome, NewOrganization, Organization, PutOutcome},
};

/// Organizations and who belongs to them.
#[async_trait]
pub trait OrganizationStore: std::fmt::Debug + Send + Sync + 'static {
    /// Writes an organization, the membership of its owner and its first project.
    async fn create_organization(&self, new: &NewOrganization) -> Result<CreateOutcome>;
    /// The organizations of a user, newest first.
    async fn list_organizations(&self, user_id: &str, page: Page) -> Result<Listed<Organization>>;
    /// An organization as one of its members sees it.
    async fn organization(&self, id: &str, user_id: &str) -> Result<Option<Organization>>;
    /// Changes the name.
    async fn rename_organization(&self, id: &str, name: &str, now: i64) -> Result<()>;
    /// A user's role.
    async fn role(&self, organization_id: &str, user_id: &str) -> Result<Option<Role>>;
    /// The organizations in which a user has one of these roles.
    async fn memberships(&self, user_id: &str, roles: &[Role]) -> Result<Vec<String>>;
    /// Makes a user a member, or changes a member's role.
    async fn put_member(&self, organization_id: &str, user_id: &str, role: Role, now: i64) -> Result<()>;
    /// Makes a service account a member, or changes its role; the membership of an owner stays.
    async fn put_service_account(
        &self,
        organization_id: &str,
        id: &str,
        role: Role,
        now: i64,
    ) -> Result<PutOutcome>;
    /// Ends the membership of a service account; that of an owner stays.
    async fn remove_service_account(&self, organization_id: &str, id: &str) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    handle: String,
    name: String,
    role: String,
    created_at: i64,
    updated_at: i64,
}

impl Row {
    fn read(self) -> Result<Organization> {
        Ok(Organization {
            role: read_role(&self.role)?,
            id: self.id,
            handle: self.handle,
            name: self.name,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

fn read_role(name: &str) -> Result<Role> {
    Role::parse(name).ok_or_else(|| Error::internal(anyhow::anyhow!("the database holds the role {name:?}")))
}

const INSERT_MEMBER: &str =
    "INSERT INTO memberships (organization_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)";

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl OrganizationStore for SqlStore<Pool> {
    async fn create_organization(&self, new: &NewOrganization) -> Result<CreateOutcome> {
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO organizations (id, handle, name, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)",
        )
        .bind(&new.id)
        .bind(&new.handle)
        .bind(&new.name)
        .bind(new.now)
        .execute(&mut *tx)
        .await;
        match inserted {
            Ok(_) => {}
            Err(error) if is_unique_violation(&error) => {
                tx.rollback().await?;
                // SQLite names no constraint: look which of the two it was.
                let handle_taken = sqlx::query_scalar::<_, i64>(
                    "SELECT COUNT(*) FROM organizations WHERE handle = $1 AND id <> $2",
                )
                .bind(&new.handle)
                .bind(&new.id)
                .fetch_one(self.pool.read())
                .await?
                    > 0;
                return Ok(if handle_taken { CreateOutcome::HandleTaken } else { CreateOutcome::IdTaken });
            }
            Err(error) => return Err(error.into()),
        }
        sqlx::query(INSERT_MEMBER)
            .bind(&new.id)
            .bind(&new.owner_id)
            .bind(Role::Owner.as_str())
            .bind(new.now)
            .execute(&mut *tx)
            .await?;
        sqlx::query(super::projects::INSERT)
            .bind(&new.project_id)
            .bind(&new.id)
            .bind(new.project_name)
            .bind("")
            .bind(&new.owner_id)
            .bind(new.now)
            .execute(&mut *tx)
            .await?;
        tx.tell(&[Changed::User(&new.owner_id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(CreateOutcome::Created)
    }

    async fn list_organizations(&self, user_id: &str, page: Page) -> Result<Listed<Organization>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT o.id, o.handle, o.name, m.role, o.created_at, o.updated_at
             FROM memberships m JOIN organizations o ON o.id = m.organization_id
             WHERE m.user_id = $1 ORDER BY o.created_at DESC, o.id DESC LIMIT $2 OFFSET $3",
        )
        .bind(user_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar("SELECT COUNT(*) FROM memberships WHERE user_id = $1")
            .bind(user_id)
            .fetch_one(self.pool.read())
            .await?;
        Ok(Listed { list: rows.into_iter().map(Row::read).collect::<Result<_>>()?, total })
    }

    async fn organization(&self, id: &str, user_id: &str) -> Result<Option<Organization>> {
        sqlx::query_as::<_, Row>(
            "SELECT o.id, o.handle, o.name, m.role, o.created_at, o.updated_at
             FROM organizations o JOIN memberships m ON m.organization_id = o.id
             WHERE o.id = $1 AND m.user_id = $2",
        )
        .bind(id)
        .bind(user_id)
        .fetch_optional(self.pool.read())
        .await?
        .map(Row::read)
        .transpose()
    }

    async fn rename_organization(&self, id: &str, name: &str, now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("UPDATE organizations SET name = $2, updated_at = $3 WHERE id = $1")
            .bind(id)
            .bind(name)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        tx.tell(&[Changed::Organization(id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(())
    }

    async fn role(&self, organization_id: &str, user_id: &str) -> Result<Option<Role>> {
        sqlx::query_scalar::<_, String>(
            "SELECT role FROM memberships WHERE organization_id = $1 AND user_id = $2",
        )
        .bind(organization_id)
        .bind(user_id)
        .fetch_optional(self.pool.read())
        .await?
        .map(|role| read_role(&role))
        .transpose()
    }

    async fn memberships(&self, user_id: &str, roles: &[Role]) -> Result<Vec<String>> {
        let [a, b, c, d, e] = role_names(roles);
        Ok(sqlx::query_scalar(
            "SELECT organization_id FROM memberships
             WHERE user_id = $1 AND role IN ($2, $3, $4, $5, $6) ORDER BY organization_id",
        )
        .bind(user_id)
        .bind(a)
        .bind(b)
        .bind(c)
        .bind(d)
        .bind(e)
        .fetch_all(self.pool.read())
        .await?)
    }

    async fn put_member(&self, organization_id: &str, user_id: &str, role: Role, now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO memberships (organization_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (organization_id, user_id) DO UPDATE SET role = excluded.role",
        )
        .bind(organization_id)
        .bind(user_id)
        .bind(role.as_str())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.tell(&[Changed::User(user_id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(())
    }

    async fn put_service_account(
        &self,
        organization_id: &str,
        id: &str,
        role: Role,
        now: i64,
    ) -> Result<PutOutcome> {
        let mut tx = self.pool.begin().await?;
        let put = sqlx::query(
            "INSERT INTO memberships (organization_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (organization_id, user_id) DO UPDATE SET role = excluded.role
             WHERE memberships.role <> $5",
        )
        .bind(organization_id)
        .bind(id)
        .bind(role.as_str())
        .bind(now)
        .bind(Role::Owner.as_str())
        .execute(&mut *tx)
        .await;
        match put {
            Ok(put) if put.rows_affected() == 0 => return Ok(PutOutcome::Owner),
            Ok(_) => {}
            Err(error) if is_foreign_key_violation(&error) => return Ok(PutOutcome::NoOrganization),
            Err(error) => return Err(error.into()),
        }
        tx.tell(&[Changed::User(id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(PutOutcome::Done)
    }

    async fn remove_service_account(&self, organization_id: &str, id: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("DELETE FROM memberships WHERE organization_id = $1 AND user_id = $2 AND role <> $3")
            .bind(organization_id)
            .bind(id)
            .bind(Role::Owner.as_str())
            .execute(&mut *tx)
            .await?;
        tx.tell(&[Changed::User(id)]).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(())
    }
}
