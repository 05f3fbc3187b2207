//! Accounts and their credentials.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
};
use trait_gen::trait_gen;

use super::SqlStore;
use crate::domain::accounts::{NewAccount, User};

/// What a login is checked against.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Credential {
    pub(crate) user_id: String,
    /// A PHC string.
    pub(crate) password_hash: String,
}

/// Keeps accounts.
#[async_trait]
pub(crate) trait AccountStore: fmt::Debug + Send + Sync {
    /// Makes an account with its credential; false when the address is taken.
    async fn create(&self, account: &NewAccount) -> Result<bool>;
    /// Whether a canonical address has an account.
    async fn is_taken(&self, email_canonical: &str) -> Result<bool>;
    /// An account by its id.
    async fn find(&self, id: &str) -> Result<Option<User>>;
    /// Changes an account's name.
    async fn rename(&self, id: &str, name: &str, now: i64) -> Result<Option<User>>;
    /// The credential of a canonical address.
    async fn credential(&self, email_canonical: &str) -> Result<Option<Credential>>;
    /// Replaces a hash by another one of the same password, unless the password was changed meanwhile.
    async fn rehash(&self, old: &Credential, hash: &str, now: i64) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: String,
    email: String,
    name: String,
    created_at: i64,
    updated_at: i64,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        let UserRow { id, email, name, created_at, updated_at } = row;
        Self { id, email, name, created_at, updated_at }
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl AccountStore for SqlStore<Pool> {
    async fn create(&self, account: &NewAccount) -> Result<bool> {
        let user = &account.user;
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query(
            "INSERT INTO users (id, email, email_canonical, name, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&user.id)
        .bind(&user.email)
        .bind(&account.email_canonical)
        .bind(&user.name)
        .bind(user.created_at)
        .bind(user.updated_at)
        .execute(&mut *tx)
        .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(false),
            added => added?,
        };
        sqlx::query("INSERT INTO credentials (user_id, password_hash, changed_at) VALUES ($1, $2, $3)")
            .bind(&user.id)
            .bind(&account.password_hash)
            .bind(user.created_at)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn is_taken(&self, email_canonical: &str) -> Result<bool> {
        let found: Option<String> = sqlx::query_scalar("SELECT id FROM users WHERE email_canonical = $1")
            .bind(email_canonical)
            .fetch_optional(self.pool.read())
            .await?;
        Ok(found.is_some())
    }

    async fn find(&self, id: &str) -> Result<Option<User>> {
        let row: Option<UserRow> =
            sqlx::query_as("SELECT id, email, name, created_at, updated_at FROM users WHERE id = $1")
                .bind(id)
                .fetch_optional(self.pool.read())
                .await?;
        Ok(row.map(User::from))
    }

    async fn rename(&self, id: &str, name: &str, now: i64) -> Result<Option<User>> {
        let mut tx = self.pool.begin().await?;
        let row: Option<UserRow> = sqlx::query_as(
            "UPDATE users SET name = $2, updated_at = $3 WHERE id = $1
             RETURNING id, email, name, created_at, updated_at",
        )
        .bind(id)
        .bind(name)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(row.map(User::from))
    }

    async fn credential(&self, email_canonical: &str) -> Result<Option<Credential>> {
        Ok(sqlx::query_as(
            "SELECT c.user_id, c.password_hash FROM users u JOIN credentials c ON c.user_id = u.id
             WHERE u.email_canonical = $1",
        )
        .bind(email_canonical)
        .fetch_optional(self.pool.read())
        .await?)
    }

    async fn rehash(&self, old: &Credential, hash: &str, now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "UPDATE credentials SET password_hash = $3, changed_at = $4
             WHERE user_id = $1 AND password_hash = $2",
        )
        .bind(&old.user_id)
        .bind(&old.password_hash)
        .bind(hash)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}
