//! Accounts and their credentials.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
};
use trait_gen::trait_gen;

use super::{
    SqlStore, audit::Record as _, mail::Post as _, passwords::Credentials as _, pending::Pend as _,
    revocations::Revoke as _, sessions::EndSessions as _,
};
use crate::domain::{
    accounts::{Contact, Enrolment, NewAccount, User},
    audit::{Chain, Event},
    mail::Outgoing,
    pending::Kind,
    revocations::remembered_until,
    secret::TokenHash,
    sessions::{EndReason, Which},
};

/// What a login is checked against.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Credential {
    pub(crate) user_id: String,
    /// A PHC string.
    pub(crate) password_hash: String,
    /// Another one for each password that the account has had; a new hash of the same one keeps it.
    pub(crate) version: i64,
    /// Whether the address is known to be the owner's.
    pub(crate) verified: bool,
    pub(crate) disabled: bool,
}

/// Keeps accounts.
#[async_trait]
pub(crate) trait AccountStore: fmt::Debug + Send + Sync {
    /// Makes an account with its credential, posts its link and records `event`; false, and nothing is done,
    /// when the address is taken.
    async fn create(&self, account: &NewAccount, verify: &Outgoing, event: &Event) -> Result<bool>;
    /// Makes an account and posts its link; posts another letter where the account is somebody's. One that
    /// nobody has proven to be theirs, and that was never used, loses its password and its link, unless it
    /// was given the same password: its letter lets the owner of the address choose.
    async fn enrol(&self, enrolment: &Enrolment) -> Result<()>;
    /// How the owner of a canonical address is reached.
    async fn contact(&self, email_canonical: &str) -> Result<Option<Contact>>;
    /// Uses a mailed link up, takes the address for verified, and records `event` for its owner, whose id it
    /// returns. Nothing when the link is not good, or the account is disabled.
    async fn verify(&self, link: TokenHash, event: Event) -> Result<Option<String>>;
    /// Disables or enables an account as [`crate::domain::accounts::set_disabled`] says, and records `event`
    /// for its owner; false when it was so already, nothing when there is none.
    async fn set_disabled(&self, email_canonical: &str, disabled: bool, event: Event)
    -> Result<Option<bool>>;
    /// Accounts made before a time, at most so many, whose address nobody has verified and which nobody ever
    /// logged in to: where addresses were not verified before, accounts may be in use.
    async fn unproven(&self, before: i64, most: i64) -> Result<Vec<String>>;
    /// Deletes an account that is still as [`Self::unproven`] says, and records `event`; false otherwise.
    async fn expire(&self, id: &str, event: &Event) -> Result<bool>;
    /// An account by its id.
    async fn find(&self, id: &str) -> Result<Option<User>>;
    /// Changes an account's name and records `event`.
    async fn rename(&self, id: &str, name: &str, event: &Event) -> Result<Option<User>>;
    /// The credential of a canonical address; nothing for an account without a password.
    async fn credential(&self, email_canonical: &str) -> Result<Option<Credential>>;
    /// The credential of an account; nothing when it has no password.
    async fn credential_of(&self, user_id: &str) -> Result<Option<Credential>>;
    /// Replaces a hash by another one of the same password, unless the password was changed meanwhile.
    async fn rehash(&self, old: &Credential, hash: &str) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: String,
    email: String,
    name: String,
    created_at: i64,
    updated_at: i64,
    email_verified: bool,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        let UserRow { id, email, name, created_at, updated_at, email_verified } = row;
        Self { id, email, name, created_at, updated_at, email_verified }
    }
}

#[derive(sqlx::FromRow)]
struct ContactRow {
    user_id: String,
    email: String,
    verified: bool,
    disabled: bool,
}

impl From<ContactRow> for Contact {
    fn from(row: ContactRow) -> Self {
        let ContactRow { user_id, email, verified, disabled } = row;
        Self { user_id, email, verified, disabled }
    }
}

const ADD_USER: &str = "INSERT INTO users (id, email, email_canonical, name, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $5)";

/// As [`ADD_USER`]; where the address has an account, that one, with its row locked.
const ADD_OR_LOCK_USER: &str = "INSERT INTO users (id, email, email_canonical, name, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $5)
    ON CONFLICT (email_canonical) DO UPDATE SET updated_at = users.updated_at
    RETURNING id, email_verified_at IS NOT NULL, disabled_at IS NOT NULL";

/// Whether an account was used, or can be: where addresses were not verified before, accounts may be.
const IS_USED: &str = "SELECT EXISTS (SELECT 1 FROM sessions WHERE user_id = $1)
    OR EXISTS (SELECT 1 FROM opaque_tokens WHERE owner_id = $1)
    OR EXISTS (SELECT 1 FROM identities WHERE user_id = $1)
    OR EXISTS (SELECT 1 FROM passkeys WHERE user_id = $1)";

/// Accounts of nobody. The audit log remembers a login when its session is long forgotten.
const UNPROVEN: &str = "email_verified_at IS NULL AND disabled_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM sessions WHERE user_id = users.id)
    AND NOT EXISTS (SELECT 1 FROM opaque_tokens WHERE owner_id = users.id)
    AND NOT EXISTS (SELECT 1 FROM identities WHERE user_id = users.id)
    AND NOT EXISTS (SELECT 1 FROM passkeys WHERE user_id = users.id)
    AND NOT EXISTS (SELECT 1 FROM audit_events WHERE chain = 'user:' || users.id
                    AND body LIKE '%,\"auth.login\",true,%')";

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl AccountStore for SqlStore<Pool> {
    async fn create(&self, account: &NewAccount, verify: &Outgoing, event: &Event) -> Result<bool> {
        let user = &account.user;
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query(ADD_USER)
            .bind(&user.id)
            .bind(&user.email)
            .bind(&account.email_canonical)
            .bind(&user.name)
            .bind(user.created_at)
            .execute(&mut *tx)
            .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(false),
            added => added?,
        };
        tx.put_password(&user.id, &account.password_hash, user.created_at).await?;
        tx.post_limited(Some(&user.id), verify).await?;
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn enrol(&self, enrolment: &Enrolment) -> Result<()> {
        let Enrolment { account, repeats, verify, already_there, contested, event } = enrolment;
        let user = &account.user;
        let mut tx = self.pool.begin().await?;
        let (id, verified, disabled): (String, bool, bool) = sqlx::query_as(ADD_OR_LOCK_USER)
            .bind(&user.id)
            .bind(&user.email)
            .bind(&account.email_canonical)
            .bind(&user.name)
            .bind(user.created_at)
            .fetch_one(&mut *tx)
            .await?;
        let used: bool = sqlx::query_scalar(IS_USED).bind(&id).fetch_one(&mut *tx).await?;
        let event = event.clone().into_chain(Chain::User(id.clone())).on(&id);
        let (letter, event) = if verified || disabled {
            (already_there, event.failed("the address has an account"))
        } else if used {
            (verify, event.failed("the account is in use"))
        } else if id == user.id {
            tx.put_password(&id, &account.password_hash, event.at).await?;
            (verify, event)
        } else {
            let gone = sqlx::query(
                "DELETE FROM credentials WHERE user_id = $1 AND ($2 IS NULL OR changed_at <> $2)",
            )
            .bind(&id)
            .bind(repeats)
            .execute(&mut *tx)
            .await?;
            let has_password: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM credentials WHERE user_id = $1)")
                    .bind(&id)
                    .fetch_one(&mut *tx)
                    .await?;
            if gone.rows_affected() == 0 && has_password {
                (verify, event.because("the same password again"))
            } else {
                tx.drop_pending(&id, Kind::EmailVerification).await?;
                (contested, event.failed("another password than before"))
            }
        };
        tx.post_limited(Some(&id), letter).await?;
        tx.record(&event).await?;
        Ok(tx.commit().await?)
    }

    async fn contact(&self, email_canonical: &str) -> Result<Option<Contact>> {
        let row: Option<ContactRow> = sqlx::query_as(
            "SELECT id AS user_id, email, email_verified_at IS NOT NULL AS verified,
               disabled_at IS NOT NULL AS disabled
             FROM users WHERE email_canonical = $1",
        )
        .bind(email_canonical)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(Contact::from))
    }

    async fn verify(&self, link: TokenHash, event: Event) -> Result<Option<String>> {
        let mut tx = self.pool.begin().await?;
        let taken = tx.take_pending(link, Kind::EmailVerification, event.at).await?;
        let Some(user_id) = taken.and_then(|found| found.user_id) else { return Ok(None) };
        let verified = sqlx::query(
            "UPDATE users SET updated_at = $2, email_verified_at = COALESCE(email_verified_at, $2)
             WHERE id = $1 AND disabled_at IS NULL",
        )
        .bind(&user_id)
        .bind(event.at)
        .execute(&mut *tx)
        .await?;
        if verified.rows_affected() == 0 {
            return Ok(None);
        }
        tx.record(&event.into_chain(Chain::User(user_id.clone())).by(&user_id)).await?;
        tx.commit().await?;
        Ok(Some(user_id))
    }

    async fn set_disabled(
        &self,
        email_canonical: &str,
        disabled: bool,
        event: Event,
    ) -> Result<Option<bool>> {
        let now = event.at;
        let mut tx = self.pool.begin().await?;
        // An update that changes nothing takes the row's lock.
        let found: Option<(String, bool)> = sqlx::query_as(
            "UPDATE users SET updated_at = updated_at WHERE email_canonical = $1
             RETURNING id, disabled_at IS NOT NULL",
        )
        .bind(email_canonical)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((user_id, before)) = found else { return Ok(None) };
        if before == disabled {
            return Ok(Some(false));
        }
        sqlx::query("UPDATE users SET disabled_at = $2, updated_at = $3 WHERE id = $1")
            .bind(&user_id)
            .bind(disabled.then_some(now))
            .bind(now)
            .execute(&mut *tx)
            .await?;
        if disabled {
            tx.cut_ways_in(&user_id).await?;
            let tokens: Vec<String> = sqlx::query_scalar(
                "UPDATE opaque_tokens SET revoked_at = $2
                 WHERE kind = 'pat' AND owner_id = $1 AND revoked_at IS NULL RETURNING id",
            )
            .bind(&user_id)
            .bind(now)
            .fetch_all(&mut *tx)
            .await?;
            tx.end_sessions(&user_id, &Which::All, EndReason::Disabled, now).await?;
            tx.revoke(&tokens, remembered_until(now)).await?;
        }
        tx.record(&event.into_chain(Chain::User(user_id.clone())).on(&user_id)).await?;
        tx.commit().await?;
        Ok(Some(true))
    }

    async fn unproven(&self, before: i64, most: i64) -> Result<Vec<String>> {
        let select =
            format!("SELECT id FROM users WHERE created_at < $1 AND {UNPROVEN} ORDER BY created_at LIMIT $2");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(select)).bind(before).bind(most);
        Ok(query.fetch_all(self.pool.read()).await?)
    }

    async fn expire(&self, id: &str, event: &Event) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let delete = format!("DELETE FROM users WHERE id = $1 AND {UNPROVEN}");
        let gone = sqlx::query(sqlx::AssertSqlSafe(delete)).bind(id).execute(&mut *tx).await?;
        if gone.rows_affected() == 0 {
            return Ok(false);
        }
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn find(&self, id: &str) -> Result<Option<User>> {
        let row: Option<UserRow> = sqlx::query_as(
            "SELECT id, email, name, created_at, updated_at, email_verified_at IS NOT NULL AS email_verified
             FROM users WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(User::from))
    }

    async fn rename(&self, id: &str, name: &str, event: &Event) -> Result<Option<User>> {
        let mut tx = self.pool.begin().await?;
        let row: Option<UserRow> = sqlx::query_as(
            "UPDATE users SET name = $2, updated_at = $3 WHERE id = $1
             RETURNING id, email, name, created_at, updated_at,
               email_verified_at IS NOT NULL AS email_verified",
        )
        .bind(id)
        .bind(name)
        .bind(event.at)
        .fetch_optional(&mut *tx)
        .await?;
        if row.is_some() {
            tx.record(event).await?;
            tx.commit().await?;
        }
        Ok(row.map(User::from))
    }

    async fn credential(&self, email_canonical: &str) -> Result<Option<Credential>> {
        Ok(sqlx::query_as(
            "SELECT c.user_id, c.password_hash, c.changed_at AS version,
               u.email_verified_at IS NOT NULL AS verified, u.disabled_at IS NOT NULL AS disabled
             FROM users u JOIN credentials c ON c.user_id = u.id WHERE u.email_canonical = $1",
        )
        .bind(email_canonical)
        .fetch_optional(self.pool.read())
        .await?)
    }

    async fn credential_of(&self, user_id: &str) -> Result<Option<Credential>> {
        Ok(sqlx::query_as(
            "SELECT c.user_id, c.password_hash, c.changed_at AS version,
               u.email_verified_at IS NOT NULL AS verified, u.disabled_at IS NOT NULL AS disabled
             FROM users u JOIN credentials c ON c.user_id = u.id WHERE u.id = $1",
        )
        .bind(user_id)
        .fetch_optional(self.pool.read())
        .await?)
    }

    async fn rehash(&self, old: &Credential, hash: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("UPDATE credentials SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2")
            .bind(&old.user_id)
            .bind(&old.password_hash)
            .bind(hash)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests;
