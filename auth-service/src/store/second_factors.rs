//! One-time passwords, recovery codes and passkeys.

mod rows;

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _, mail::Post as _, pending::Pend as _, providers::WaysIn as _};
use crate::domain::{
    audit::Event,
    mail::Envelope,
    pending::Kind,
    providers::Removal,
    second_factors::{
        Added, MAX_PASSKEYS, Notice, Passkey, PasskeyUse, RecoveryCode, Setup, Spent, Totp, TotpUse,
    },
    secret::TokenHash,
    throttle::Key,
};
use rows::{Change as _, PasskeyRow, SELECT_PASSKEY};

/// Keeps second factors.
#[async_trait]
pub(crate) trait SecondFactorStore: fmt::Debug + Send + Sync {
    /// What an account has set up; what is not confirmed is not.
    async fn setup(&self, user_id: &str) -> Result<Setup>;
    /// The one-time passwords of an account.
    async fn totp(&self, user_id: &str) -> Result<Option<Totp>>;
    /// Stores a secret that is not confirmed, in place of another such; false when one is confirmed.
    async fn put_totp(&self, user_id: &str, sealed_secret: &[u8]) -> Result<bool>;
    /// Confirms the secret that a code was right for, and uses the code up. With an account's first factor
    /// the recovery codes are stored. `Taken` when the code or the secret does not count any more.
    async fn confirm_totp(
        &self,
        using: &TotpUse<'_>,
        codes: &[RecoveryCode],
        notice: &Notice,
    ) -> Result<Added>;
    /// Counts a wrong one-time password.
    async fn count_wrong_totp(&self, user_id: &str, current: i64) -> Result<()>;
    /// Removes one-time passwords, and with the last factor the recovery codes. False, without notice, when
    /// none were confirmed.
    async fn remove_totp(&self, user_id: &str, notice: &Notice) -> Result<bool>;
    /// The unused recovery codes of an account.
    async fn recovery_codes(&self, user_id: &str) -> Result<Vec<RecoveryCode>>;
    /// Replaces all recovery codes; false when the account has no second factor.
    async fn renew_recovery_codes(
        &self,
        user_id: &str,
        codes: &[RecoveryCode],
        notice: &Notice,
    ) -> Result<bool>;
    /// The passkeys of an account, the oldest first.
    async fn passkeys(&self, user_id: &str) -> Result<Vec<Passkey>>;
    /// A passkey by its credential, and whether the address of its account is verified.
    async fn passkey(&self, credential_id: &str) -> Result<Option<(Passkey, bool)>>;
    /// Adds a passkey, with an account's first factor the recovery codes too. `Taken` when the credential is
    /// somebody's already, `Full` when the account has as many as it may.
    async fn add_passkey(&self, passkey: &Passkey, codes: &[RecoveryCode], notice: &Notice) -> Result<Added>;
    /// Notes a use of a passkey; false when it is not any more what it was when the use was checked.
    async fn use_passkey(&self, using: PasskeyUse<'_>, now: i64) -> Result<bool>;
    /// Removes a passkey of an account, and with the last factor the recovery codes, unless nothing else lets
    /// the user in: a password, or an identity at one of the providers that are `offered`.
    async fn delete_passkey(
        &self,
        user_id: &str,
        id: &str,
        offered: &[&str],
        notice: &Notice,
    ) -> Result<Removal>;
    /// Replaces what waits under a challenge; false when it is not there as it was any more.
    async fn replace_payload(&self, challenge: TokenHash, old: &[u8], new: &[u8]) -> Result<bool>;
    /// Uses up a challenge together with what met it and forgives wrong tries. Of calls side by side one
    /// succeeds; false, and nothing is done, when either was used or is over.
    async fn pass(
        &self,
        challenge: TokenHash,
        spent: &Spent<'_>,
        forgiven: &Key,
        mail: Option<&Envelope>,
        event: &Event,
    ) -> Result<bool>;
    /// Records that a second factor was wrong; with an account and a step, counts it there.
    async fn fail(&self, totp: Option<(&str, i64)>, event: &Event) -> Result<()>;
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl SecondFactorStore for SqlStore<Pool> {
    async fn setup(&self, user_id: &str) -> Result<Setup> {
        let totp: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM totp WHERE user_id = $1 AND confirmed_at IS NOT NULL")
                .bind(user_id)
                .fetch_one(self.pool.read())
                .await?;
        let recovery_codes_left =
            sqlx::query_scalar("SELECT COUNT(*) FROM recovery_codes WHERE user_id = $1 AND used_at IS NULL")
                .bind(user_id)
                .fetch_one(self.pool.read())
                .await?;
        Ok(Setup { totp: totp > 0, recovery_codes_left, passkeys: self.passkeys(user_id).await? })
    }

    async fn totp(&self, user_id: &str) -> Result<Option<Totp>> {
        let row: Option<(Vec<u8>, Option<i64>, i64, i64)> = sqlx::query_as(
            "SELECT sealed_secret, confirmed_at, tried_step, tries FROM totp WHERE user_id = $1",
        )
        .bind(user_id)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(|(sealed_secret, confirmed_at, tried_step, tries)| Totp {
            sealed_secret,
            confirmed: confirmed_at.is_some(),
            tried_step,
            tries,
        }))
    }

    async fn put_totp(&self, user_id: &str, sealed_secret: &[u8]) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let put = sqlx::query(
            "INSERT INTO totp (user_id, sealed_secret, confirmed_at, last_step, tried_step, tries)
             VALUES ($1, $2, NULL, 0, 0, 0)
             ON CONFLICT (user_id) DO UPDATE SET sealed_secret = $2 WHERE totp.confirmed_at IS NULL",
        )
        .bind(user_id)
        .bind(sealed_secret)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(put.rows_affected() == 1)
    }

    async fn confirm_totp(
        &self,
        using: &TotpUse<'_>,
        codes: &[RecoveryCode],
        notice: &Notice,
    ) -> Result<Added> {
        let mut tx = self.pool.begin().await?;
        tx.lock_account(using.user_id).await?;
        let first = !tx.has_factor(using.user_id).await?;
        if first && codes.is_empty() {
            return Ok(Added::NeedsCodes);
        }
        if !tx.spend_totp(using, false).await? {
            return Ok(Added::Taken);
        }
        sqlx::query("UPDATE totp SET confirmed_at = $2 WHERE user_id = $1")
            .bind(using.user_id)
            .bind(notice.event.at)
            .execute(&mut *tx)
            .await?;
        if first {
            tx.replace_codes(using.user_id, codes).await?;
        }
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(if first { Added::First } else { Added::Further })
    }

    async fn count_wrong_totp(&self, user_id: &str, current: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.count_wrong(user_id, current).await?;
        Ok(tx.commit().await?)
    }

    async fn remove_totp(&self, user_id: &str, notice: &Notice) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        tx.lock_account(user_id).await?;
        let confirmed_at: Option<Option<i64>> =
            sqlx::query_scalar("DELETE FROM totp WHERE user_id = $1 RETURNING confirmed_at")
                .bind(user_id)
                .fetch_optional(&mut *tx)
                .await?;
        let was_on = confirmed_at.flatten().is_some();
        if was_on {
            tx.drop_useless_codes(user_id).await?;
            tx.post(&notice.mail).await?;
            tx.record(&notice.event).await?;
        }
        tx.commit().await?;
        Ok(was_on)
    }

    async fn recovery_codes(&self, user_id: &str) -> Result<Vec<RecoveryCode>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT id, hash FROM recovery_codes WHERE user_id = $1 AND used_at IS NULL ORDER BY id",
        )
        .bind(user_id)
        .fetch_all(self.pool.read())
        .await?;
        Ok(rows.into_iter().map(|(id, hash)| RecoveryCode { id, hash }).collect())
    }

    async fn renew_recovery_codes(
        &self,
        user_id: &str,
        codes: &[RecoveryCode],
        notice: &Notice,
    ) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        tx.lock_account(user_id).await?;
        if !tx.has_factor(user_id).await? {
            return Ok(false);
        }
        tx.replace_codes(user_id, codes).await?;
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn passkeys(&self, user_id: &str) -> Result<Vec<Passkey>> {
        let select = format!("{SELECT_PASSKEY} WHERE p.user_id = $1 ORDER BY p.created_at, p.id");
        let rows: Vec<PasskeyRow> =
            sqlx::query_as(sqlx::AssertSqlSafe(select)).bind(user_id).fetch_all(self.pool.read()).await?;
        Ok(rows.into_iter().map(|row| row.split().0).collect())
    }

    async fn passkey(&self, credential_id: &str) -> Result<Option<(Passkey, bool)>> {
        let select = format!("{SELECT_PASSKEY} WHERE p.credential_id = $1");
        let row: Option<PasskeyRow> = sqlx::query_as(sqlx::AssertSqlSafe(select))
            .bind(credential_id)
            .fetch_optional(self.pool.read())
            .await?;
        Ok(row.map(PasskeyRow::split))
    }

    async fn add_passkey(&self, passkey: &Passkey, codes: &[RecoveryCode], notice: &Notice) -> Result<Added> {
        let user_id = &passkey.user_id;
        let mut tx = self.pool.begin().await?;
        tx.lock_account(user_id).await?;
        let first = !tx.has_factor(user_id).await?;
        if first && codes.is_empty() {
            return Ok(Added::NeedsCodes);
        }
        let added = sqlx::query(
            "INSERT INTO passkeys (id, user_id, credential_id, name, document, created_at)
             SELECT $1, id, $3, $4, $5, $6 FROM users
             WHERE id = $2 AND (SELECT COUNT(*) FROM passkeys WHERE user_id = $2) < $7",
        )
        .bind(&passkey.id)
        .bind(user_id)
        .bind(&passkey.credential_id)
        .bind(&passkey.name)
        .bind(&passkey.document)
        .bind(passkey.created_at)
        .bind(MAX_PASSKEYS)
        .execute(&mut *tx)
        .await;
        let added = match added {
            Err(error) if is_unique_violation(&error) => return Ok(Added::Taken),
            added => added?,
        };
        if added.rows_affected() == 0 {
            return Ok(Added::Full);
        }
        if first {
            tx.replace_codes(user_id, codes).await?;
        }
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(if first { Added::First } else { Added::Further })
    }

    async fn use_passkey(&self, using: PasskeyUse<'_>, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let counts = tx.spend_passkey(using, now).await?;
        tx.commit().await?;
        Ok(counts)
    }

    async fn delete_passkey(
        &self,
        user_id: &str,
        id: &str,
        offered: &[&str],
        notice: &Notice,
    ) -> Result<Removal> {
        let mut tx = self.pool.begin().await?;
        tx.lock_account(user_id).await?;
        let gone = sqlx::query("DELETE FROM passkeys WHERE id = $1 AND user_id = $2")
            .bind(id)
            .bind(user_id)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(Removal::Unknown);
        }
        if !tx.has_way_in(user_id, offered).await? {
            return Ok(Removal::LastWay);
        }
        tx.drop_useless_codes(user_id).await?;
        tx.post(&notice.mail).await?;
        tx.record(&notice.event).await?;
        tx.commit().await?;
        Ok(Removal::Removed)
    }

    async fn replace_payload(&self, challenge: TokenHash, old: &[u8], new: &[u8]) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let replaced =
            sqlx::query("UPDATE pending SET payload = $4 WHERE hash = $1 AND kind = $2 AND payload = $3")
                .bind(challenge.0.as_slice())
                .bind(Kind::Challenge.name())
                .bind(old)
                .bind(new)
                .execute(&mut *tx)
                .await?;
        tx.commit().await?;
        Ok(replaced.rows_affected() == 1)
    }

    async fn pass(
        &self,
        challenge: TokenHash,
        spent: &Spent<'_>,
        forgiven: &Key,
        mail: Option<&Envelope>,
        event: &Event,
    ) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        if tx.take_pending(challenge, Kind::Challenge, event.at).await?.is_none() {
            return Ok(false);
        }
        let counts = match spent {
            Spent::Totp(using) => tx.spend_totp(using, true).await?,
            Spent::RecoveryCode(id) => tx.spend_code(id, event.at).await?,
            Spent::Passkey(using) => tx.spend_passkey(*using, event.at).await?,
        };
        if !counts {
            return Ok(false);
        }
        sqlx::query("DELETE FROM login_throttles WHERE key = $1")
            .bind(forgiven.hex())
            .execute(&mut *tx)
            .await?;
        if let Some(mail) = mail {
            tx.post(mail).await?;
        }
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn fail(&self, totp: Option<(&str, i64)>, event: &Event) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        if let Some((user_id, current)) = totp {
            tx.count_wrong(user_id, current).await?;
        }
        tx.record(event).await?;
        Ok(tx.commit().await?)
    }
}
