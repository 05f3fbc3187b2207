//! Service accounts, and what project-service is told of them.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
    outbox::Append as _,
    page::Page,
};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _, opaque_tokens::RevokeTokens as _, revocations::Revoke as _};
use crate::domain::{
    audit::Event,
    revocations::remembered_until,
    service_accounts::{Created, MAX_PER_ORGANIZATION, Notice, ServiceAccount, TOPIC},
};

/// Keeps service accounts. Each change is noticed to project-service through the outbox, whose topic is
/// the lock of all changes: it is taken first.
#[async_trait]
pub(crate) trait ServiceAccountStore: fmt::Debug + Send + Sync {
    /// Adds a service account, and records `event`.
    async fn create(&self, account: &ServiceAccount, notice: &Notice, event: &Event) -> Result<Created>;
    /// The service accounts of an organization, newest first, and how many there are.
    async fn list(&self, organization_id: &str, page: Page) -> Result<(Vec<ServiceAccount>, i64)>;
    /// A service account by its id.
    async fn find(&self, id: &str) -> Result<Option<ServiceAccount>>;
    /// Deletes a service account, revokes its keys with their access tokens, and records `event`. False,
    /// and nothing is done, when it is gone already.
    async fn delete(&self, account: &ServiceAccount, notice: &Notice, event: &Event) -> Result<bool>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    name: String,
    role: String,
    created_by: String,
    created_at: i64,
}

impl From<Row> for ServiceAccount {
    fn from(row: Row) -> Self {
        let Row { id, organization_id, name, role, created_by, created_at } = row;
        Self { id, organization_id, name, role, created_by, created_at }
    }
}

fn payload(notice: &Notice) -> Result<Vec<u8>> {
    serde_json::to_vec(notice).map_err(Error::internal)
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ServiceAccountStore for SqlStore<Pool> {
    async fn create(&self, account: &ServiceAccount, notice: &Notice, event: &Event) -> Result<Created> {
        let mut tx = self.pool.begin().await?;
        tx.append(TOPIC, &notice.id, payload(notice)?).await?;
        let count: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM service_accounts WHERE organization_id = $1")
                .bind(&account.organization_id)
                .fetch_one(&mut *tx)
                .await?;
        if count >= MAX_PER_ORGANIZATION {
            return Ok(Created::TooMany);
        }
        let added = sqlx::query(
            "INSERT INTO service_accounts (id, organization_id, name, role, created_by, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&account.id)
        .bind(&account.organization_id)
        .bind(&account.name)
        .bind(&account.role)
        .bind(&account.created_by)
        .bind(account.created_at)
        .execute(&mut *tx)
        .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(Created::NameTaken),
            added => added?,
        };
        tx.record(event).await?;
        tx.commit().await?;
        Ok(Created::Stored)
    }

    async fn list(&self, organization_id: &str, page: Page) -> Result<(Vec<ServiceAccount>, i64)> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, organization_id, name, role, created_by, created_at FROM service_accounts
             WHERE organization_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3",
        )
        .bind(organization_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total = sqlx::query_scalar("SELECT COUNT(*) FROM service_accounts WHERE organization_id = $1")
            .bind(organization_id)
            .fetch_one(self.pool.read())
            .await?;
        Ok((rows.into_iter().map(ServiceAccount::from).collect(), total))
    }

    async fn find(&self, id: &str) -> Result<Option<ServiceAccount>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT id, organization_id, name, role, created_by, created_at FROM service_accounts
             WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(ServiceAccount::from))
    }

    async fn delete(&self, account: &ServiceAccount, notice: &Notice, event: &Event) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        tx.append(TOPIC, &notice.id, payload(notice)?).await?;
        let gone = sqlx::query("DELETE FROM service_accounts WHERE id = $1")
            .bind(&account.id)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(false);
        }
        let keys = tx.revoke_tokens(&account.id, event.at).await?;
        tx.revoke(&keys, remembered_until(event.at)).await?;
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }
}
