//! New passwords, and what ends with the old ones.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    SqlStore, audit::Record as _, mail::Post as _, pending::Pend as _, sessions::EndSessions as _,
    throttles::Forgive as _,
};
use crate::domain::{
    passwords::{NewPassword, Owner},
    pending::Kind,
    secret::TokenHash,
    sessions::{EndReason, Which},
};

/// Keeps passwords.
#[async_trait]
pub(crate) trait PasswordStore: fmt::Debug + Send + Sync {
    /// Whose password it is, unless the account is disabled.
    async fn owner(&self, user_id: &str) -> Result<Option<Owner>>;
    /// Whose password a mailed link is for, without using it.
    async fn owner_of_link(&self, link: TokenHash, now: i64) -> Result<Option<Owner>>;
    /// Replaces the hash `old`, ends all sessions but one, and all that could become one. False, and nothing
    /// is done, when the hash is another one by now.
    async fn change(&self, old: &str, new: &NewPassword, but_session: &str) -> Result<bool>;
    /// Uses a mailed link up, sets the password, takes the address for verified, and ends all sessions, and
    /// all that could become one. False, and nothing is done, when the link is not good.
    async fn reset(&self, link: TokenHash, new: &NewPassword) -> Result<bool>;
}

/// Works on credentials within a transaction.
#[async_trait]
pub(crate) trait Credentials {
    /// Sets a password, whether or not there was one. Its time is later than that of the one before: it
    /// tells the two apart.
    async fn put_password(&mut self, user_id: &str, hash: &str, now: i64) -> sqlx::Result<()>;
    /// Ends what could become a session of a user: links to reset, challenges that wait for a second factor, grants for
    /// devices; and the privilege of known devices.
    async fn cut_ways_in(&mut self, user_id: &str) -> sqlx::Result<()>;
}

#[derive(sqlx::FromRow)]
struct OwnerRow {
    user_id: String,
    email: String,
    name: String,
    password_hash: Option<String>,
}

impl From<OwnerRow> for Owner {
    fn from(row: OwnerRow) -> Self {
        let OwnerRow { user_id, email, name, password_hash } = row;
        Self { user_id, email, name, password_hash }
    }
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Credentials for Connection {
    async fn put_password(&mut self, user_id: &str, hash: &str, now: i64) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO credentials (user_id, password_hash, changed_at) VALUES ($1, $2, $3)
             ON CONFLICT (user_id) DO UPDATE SET password_hash = excluded.password_hash,
               changed_at = CASE WHEN credentials.changed_at < excluded.changed_at
                 THEN excluded.changed_at ELSE credentials.changed_at + 1 END",
        )
        .bind(user_id)
        .bind(hash)
        .bind(now)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn cut_ways_in(&mut self, user_id: &str) -> sqlx::Result<()> {
        for table in
            ["DELETE FROM known_devices WHERE user_id = $1", "DELETE FROM device_grants WHERE user_id = $1"]
        {
            sqlx::query(table).bind(user_id).execute(&mut *self).await?;
        }
        for kind in [Kind::PasswordReset, Kind::Challenge] {
            self.drop_pending(user_id, kind).await?;
        }
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl PasswordStore for SqlStore<Pool> {
    async fn owner(&self, user_id: &str) -> Result<Option<Owner>> {
        let row: Option<OwnerRow> = sqlx::query_as(
            "SELECT u.id AS user_id, u.email, u.name, c.password_hash FROM users u
             LEFT JOIN credentials c ON c.user_id = u.id WHERE u.id = $1 AND u.disabled_at IS NULL",
        )
        .bind(user_id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Owner::from))
    }

    async fn owner_of_link(&self, link: TokenHash, now: i64) -> Result<Option<Owner>> {
        let row: Option<OwnerRow> = sqlx::query_as(
            "SELECT u.id AS user_id, u.email, u.name, NULL AS password_hash FROM users u
             JOIN pending p ON p.user_id = u.id
             WHERE p.hash = $1 AND p.kind = $2 AND p.expires_at > $3 AND u.disabled_at IS NULL",
        )
        .bind(link.0.as_slice())
        .bind(Kind::PasswordReset.name())
        .bind(now)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Owner::from))
    }

    async fn change(&self, old: &str, new: &NewPassword, but_session: &str) -> Result<bool> {
        let (user_id, now) = (new.user_id.as_str(), new.event.at);
        let mut tx = self.pool.begin().await?;
        let user = sqlx::query("UPDATE users SET updated_at = $2 WHERE id = $1 AND disabled_at IS NULL")
            .bind(user_id)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        let credential = sqlx::query(
            "UPDATE credentials SET password_hash = $3,
               changed_at = CASE WHEN changed_at < $4 THEN $4 ELSE changed_at + 1 END
             WHERE user_id = $1 AND password_hash = $2",
        )
        .bind(user_id)
        .bind(old)
        .bind(&new.hash)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        if user.rows_affected() == 0 || credential.rows_affected() == 0 {
            return Ok(false);
        }
        tx.cut_ways_in(user_id).await?;
        for key in &new.forgiven {
            tx.forgive(key).await?;
        }
        tx.post(&new.envelope).await?;
        tx.end_sessions(user_id, &Which::Others(but_session), EndReason::PasswordChanged, now).await?;
        tx.record(&new.event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn reset(&self, link: TokenHash, new: &NewPassword) -> Result<bool> {
        let (user_id, now) = (new.user_id.as_str(), new.event.at);
        let mut tx = self.pool.begin().await?;
        let user = sqlx::query(
            "UPDATE users SET updated_at = $2, email_verified_at = COALESCE(email_verified_at, $2)
             WHERE id = $1 AND disabled_at IS NULL",
        )
        .bind(user_id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let taken = tx.take_pending(link, Kind::PasswordReset, now).await?;
        if user.rows_affected() == 0 || taken.and_then(|found| found.user_id).as_deref() != Some(user_id) {
            return Ok(false);
        }
        tx.put_password(user_id, &new.hash, now).await?;
        tx.cut_ways_in(user_id).await?;
        tx.drop_pending(user_id, Kind::EmailVerification).await?;
        for key in &new.forgiven {
            tx.forgive(key).await?;
        }
        tx.post(&new.envelope).await?;
        tx.end_sessions(user_id, &Which::All, EndReason::PasswordChanged, now).await?;
        tx.record(&new.event).await?;
        tx.commit().await?;
        Ok(true)
    }
}
