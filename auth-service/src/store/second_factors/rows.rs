//! The single statements that changes of second factors are made of.

use async_trait::async_trait;
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use crate::domain::second_factors::{MAX_TRIES_A_STEP, Passkey, PasskeyUse, RecoveryCode, TotpUse};

/// Passkeys with what matters of their accounts.
pub(super) const SELECT_PASSKEY: &str = "SELECT p.id, p.user_id, p.credential_id, p.name, p.document,
    p.created_at, p.last_used_at, u.email_verified_at FROM passkeys p JOIN users u ON u.id = p.user_id";

#[derive(sqlx::FromRow)]
pub(super) struct PasskeyRow {
    id: String,
    user_id: String,
    credential_id: String,
    name: String,
    document: String,
    created_at: i64,
    last_used_at: Option<i64>,
    email_verified_at: Option<i64>,
}

impl PasskeyRow {
    /// The passkey, and whether the address of its account is verified.
    pub(super) fn split(self) -> (Passkey, bool) {
        let passkey = Passkey {
            id: self.id,
            user_id: self.user_id,
            credential_id: self.credential_id,
            name: self.name,
            document: self.document,
            created_at: self.created_at,
            last_used_at: self.last_used_at,
        };
        (passkey, self.email_verified_at.is_some())
    }
}

/// Works on second factors within a transaction.
#[async_trait]
pub(super) trait Change {
    /// Makes changes of an account's factors wait for each other, so that the first and the last are known.
    async fn lock_account(&mut self, user_id: &str) -> sqlx::Result<()>;
    /// Whether the account has a second factor that counts.
    async fn has_factor(&mut self, user_id: &str) -> sqlx::Result<bool>;
    /// Replaces all recovery codes.
    async fn replace_codes(&mut self, user_id: &str, codes: &[RecoveryCode]) -> sqlx::Result<()>;
    /// Deletes the recovery codes when there is nothing that they could stand in for.
    async fn drop_useless_codes(&mut self, user_id: &str) -> sqlx::Result<()>;
    /// Uses a one-time password up, of a secret that is confirmed or not; false when its step was used, or
    /// too many wrong ones were tried in this one.
    async fn spend_totp(&mut self, using: &TotpUse<'_>, confirmed: bool) -> sqlx::Result<bool>;
    /// Counts a wrong one-time password in the step that the clock is in.
    async fn count_wrong(&mut self, user_id: &str, current: i64) -> sqlx::Result<()>;
    /// Uses a recovery code up; false when it was used.
    async fn spend_code(&mut self, id: &str, now: i64) -> sqlx::Result<bool>;
    /// Notes a use of a passkey; false when it is not what it was any more.
    async fn spend_passkey(&mut self, using: PasskeyUse<'_>, now: i64) -> sqlx::Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Change for Connection {
    async fn lock_account(&mut self, user_id: &str) -> sqlx::Result<()> {
        // An update that changes nothing takes the row's lock.
        sqlx::query("UPDATE users SET updated_at = updated_at WHERE id = $1")
            .bind(user_id)
            .execute(&mut *self)
            .await?;
        Ok(())
    }

    async fn has_factor(&mut self, user_id: &str) -> sqlx::Result<bool> {
        let factors: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM passkeys WHERE user_id = $1)
               + (SELECT COUNT(*) FROM totp WHERE user_id = $1 AND confirmed_at IS NOT NULL)",
        )
        .bind(user_id)
        .fetch_one(&mut *self)
        .await?;
        Ok(factors > 0)
    }

    async fn replace_codes(&mut self, user_id: &str, codes: &[RecoveryCode]) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM recovery_codes WHERE user_id = $1")
            .bind(user_id)
            .execute(&mut *self)
            .await?;
        for code in codes {
            sqlx::query("INSERT INTO recovery_codes (id, user_id, hash) VALUES ($1, $2, $3)")
                .bind(&code.id)
                .bind(user_id)
                .bind(&code.hash)
                .execute(&mut *self)
                .await?;
        }
        Ok(())
    }

    async fn drop_useless_codes(&mut self, user_id: &str) -> sqlx::Result<()> {
        if !self.has_factor(user_id).await? {
            self.replace_codes(user_id, &[]).await?;
        }
        Ok(())
    }

    async fn spend_totp(&mut self, using: &TotpUse<'_>, confirmed: bool) -> sqlx::Result<bool> {
        let spent = sqlx::query(
            "UPDATE totp SET last_step = $2
             WHERE user_id = $1 AND last_step < $2 AND sealed_secret = $3
               AND (confirmed_at IS NOT NULL) = $4 AND (tried_step <> $5 OR tries < $6)",
        )
        .bind(using.user_id)
        .bind(using.step)
        .bind(using.sealed_secret)
        .bind(confirmed)
        .bind(using.current)
        .bind(MAX_TRIES_A_STEP)
        .execute(&mut *self)
        .await?;
        Ok(spent.rows_affected() == 1)
    }

    async fn count_wrong(&mut self, user_id: &str, current: i64) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE totp SET tries = CASE WHEN tried_step = $2 THEN tries + 1 ELSE 1 END, tried_step = $2
             WHERE user_id = $1",
        )
        .bind(user_id)
        .bind(current)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn spend_code(&mut self, id: &str, now: i64) -> sqlx::Result<bool> {
        let spent = sqlx::query("UPDATE recovery_codes SET used_at = $2 WHERE id = $1 AND used_at IS NULL")
            .bind(id)
            .bind(now)
            .execute(&mut *self)
            .await?;
        Ok(spent.rows_affected() == 1)
    }

    async fn spend_passkey(&mut self, using: PasskeyUse<'_>, now: i64) -> sqlx::Result<bool> {
        let spent = sqlx::query(
            "UPDATE passkeys SET document = $3, last_used_at = $4 WHERE id = $1 AND document = $2",
        )
        .bind(&using.passkey.id)
        .bind(&using.passkey.document)
        .bind(using.document)
        .bind(now)
        .execute(&mut *self)
        .await?;
        Ok(spent.rows_affected() == 1)
    }
}
