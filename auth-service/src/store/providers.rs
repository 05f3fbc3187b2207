//! Accounts at providers, and the accounts here that they belong to.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
    page::Page,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _, mail::Post as _};
use crate::domain::{
    audit::Event,
    providers::{Account, Addition, Identity, Newcomer, Removal, Right},
    second_factors::Notice,
};

/// Looks for ways into an account within a transaction.
#[async_trait]
pub(super) trait WaysIn {
    /// Whether anything lets a user in: a password, a passkey, or an identity at one of the providers that
    /// are `offered`. The user's row must be locked.
    async fn has_way_in(&mut self, user_id: &str, offered: &[&str]) -> sqlx::Result<bool>;
}

/// Keeps identities.
#[async_trait]
pub(crate) trait ProviderStore: fmt::Debug + Send + Sync {
    /// The account that an identity belongs to.
    async fn owner(&self, provider: &str, subject: &str) -> Result<Option<Account>>;
    /// The account of a canonical address.
    async fn account(&self, email_canonical: &str) -> Result<Option<Account>>;
    /// Adds an identity to its account, if the right to do so still holds, with its notice. Of calls side
    /// by side for one identity one adds it.
    async fn add(&self, identity: &Identity, right: &Right, notice: &Notice) -> Result<Addition>;
    /// Makes an account with a verified address, no password, and its identity, and records `events`;
    /// false, and nothing is done, when the address or the identity has an account.
    async fn create(&self, newcomer: &Newcomer, events: &[Event]) -> Result<bool>;
    /// A page of a user's identities, oldest first, and how many there are in all.
    async fn list(&self, user_id: &str, page: Page) -> Result<(Vec<Identity>, i64)>;
    /// Removes an identity of a user, with its notice, unless nothing else lets the user in: a password, a
    /// passkey, or an identity at one of the providers that are `offered`.
    async fn remove(&self, user_id: &str, id: &str, offered: &[&str], notice: &Notice) -> Result<Removal>;
}

#[derive(sqlx::FromRow)]
struct AccountRow {
    id: String,
    disabled_at: Option<i64>,
    email_verified_at: Option<i64>,
}

impl From<AccountRow> for Account {
    fn from(row: AccountRow) -> Self {
        let (disabled, verified) = (row.disabled_at.is_some(), row.email_verified_at.is_some());
        Self { user_id: row.id, disabled, verified }
    }
}

#[derive(sqlx::FromRow)]
struct IdentityRow {
    id: String,
    user_id: String,
    provider: String,
    subject: String,
    email: String,
    created_at: i64,
}

impl From<IdentityRow> for Identity {
    fn from(row: IdentityRow) -> Self {
        let IdentityRow { id, user_id, provider, subject, email, created_at } = row;
        Self { id, user_id, provider, subject, email, created_at }
    }
}

// The last parameter is the right to add it: a live session, or, when it is null, a verified address.
const ADD_IDENTITY: &str = "INSERT INTO identities (id, user_id, provider, subject, email, created_at)
    SELECT $1, users.id, $3, $4, $5, $6 FROM users
    WHERE users.id = $2 AND users.disabled_at IS NULL
      AND (($7 IS NULL AND users.email_verified_at IS NOT NULL)
           OR EXISTS (SELECT 1 FROM sessions WHERE sessions.id = $7 AND sessions.user_id = users.id
                      AND sessions.ended_at IS NULL AND sessions.expires_at > $6))";

const WAYS: &str = "SELECT provider FROM identities WHERE user_id = $1
    UNION ALL SELECT '' FROM credentials WHERE user_id = $1
    UNION ALL SELECT '' FROM passkeys WHERE user_id = $1";

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl WaysIn for Connection {
    async fn has_way_in(&mut self, user_id: &str, offered: &[&str]) -> sqlx::Result<bool> {
        let ways: Vec<String> = sqlx::query_scalar(WAYS).bind(user_id).fetch_all(&mut *self).await?;
        Ok(ways.iter().any(|way| way.is_empty() || offered.contains(&way.as_str())))
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ProviderStore for SqlStore<Pool> {
    async fn owner(&self, provider: &str, subject: &str) -> Result<Option<Account>> {
        let row: Option<AccountRow> = sqlx::query_as(
            "SELECT u.id, u.disabled_at, u.email_verified_at FROM identities i JOIN users u ON u.id = i.user_id
             WHERE i.provider = $1 AND i.subject = $2",
        )
        .bind(provider)
        .bind(subject)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Account::from))
    }

    async fn account(&self, email_canonical: &str) -> Result<Option<Account>> {
        let row: Option<AccountRow> =
            sqlx::query_as("SELECT id, disabled_at, email_verified_at FROM users WHERE email_canonical = $1")
                .bind(email_canonical)
                .fetch_optional(self.pool.read())
                .await?;
        Ok(row.map(Account::from))
    }

    async fn add(&self, identity: &Identity, right: &Right, notice: &Notice) -> Result<Addition> {
        let session_id = match right {
            Right::Session(id) => Some(id),
            Right::Email => None,
        };
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query(ADD_IDENTITY)
            .bind(&identity.id)
            .bind(&identity.user_id)
            .bind(&identity.provider)
            .bind(&identity.subject)
            .bind(&identity.email)
            .bind(identity.created_at)
            .bind(session_id)
            .execute(&mut *tx)
            .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(Addition::Taken),
            Ok(added) if added.rows_affected() == 0 => return Ok(Addition::Lapsed),
            added => added?,
        };
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(Addition::Added)
    }

    async fn create(&self, newcomer: &Newcomer, events: &[Event]) -> Result<bool> {
        let identity = &newcomer.identity;
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query(
            "INSERT INTO users (id, email, email_canonical, name, created_at, updated_at, email_verified_at)
             VALUES ($1, $2, $3, $4, $5, $5, $5)",
        )
        .bind(&identity.user_id)
        .bind(&newcomer.email.given)
        .bind(&newcomer.email.canonical)
        .bind(&newcomer.name)
        .bind(identity.created_at)
        .execute(&mut *tx)
        .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(false),
            added => added?,
        };
        let added = sqlx::query(
            "INSERT INTO identities (id, user_id, provider, subject, email, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&identity.id)
        .bind(&identity.user_id)
        .bind(&identity.provider)
        .bind(&identity.subject)
        .bind(&identity.email)
        .bind(identity.created_at)
        .execute(&mut *tx)
        .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(false),
            added => added?,
        };
        for event in events {
            tx.record(event).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn list(&self, user_id: &str, page: Page) -> Result<(Vec<Identity>, i64)> {
        let rows: Vec<IdentityRow> = sqlx::query_as(
            "SELECT id, user_id, provider, subject, email, created_at FROM identities WHERE user_id = $1
             ORDER BY created_at, id LIMIT $2 OFFSET $3",
        )
        .bind(user_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
        .fetch_all(self.pool.read())
        .await?;
        let total: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM identities WHERE user_id = $1")
            .bind(user_id)
            .fetch_one(self.pool.read())
            .await?;
        Ok((rows.into_iter().map(Identity::from).collect(), total))
    }

    async fn remove(&self, user_id: &str, id: &str, offered: &[&str], notice: &Notice) -> Result<Removal> {
        let mut tx = self.pool.begin().await?;
        // An update that changes nothing locks the account: of the last two ways in, taken away side by
        // side, one stays.
        sqlx::query("UPDATE users SET updated_at = updated_at WHERE id = $1")
            .bind(user_id)
            .execute(&mut *tx)
            .await?;
        let removed = sqlx::query("DELETE FROM identities WHERE id = $1 AND user_id = $2")
            .bind(id)
            .bind(user_id)
            .execute(&mut *tx)
            .await?;
        if removed.rows_affected() == 0 {
            return Ok(Removal::Unknown);
        }
        if !tx.has_way_in(user_id, offered).await? {
            return Ok(Removal::LastWay);
        }
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(Removal::Removed)
    }
}
