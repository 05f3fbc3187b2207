//! Grants of devices that log in.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
};
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _};
use crate::domain::{
    audit::Event,
    devices::{Approval, DeviceRequest, NewGrant, Poll},
    secret::TokenHash,
};

/// Keeps grants of devices. Times are Unix milliseconds.
#[async_trait]
pub(crate) trait DeviceStore: fmt::Debug + Send + Sync {
    /// Adds a grant; false when its user code is in use.
    async fn add(&self, grant: &NewGrant) -> Result<bool>;
    /// What a user code asks for, while nobody has decided.
    async fn find(&self, user_code: &str, now: i64) -> Result<Option<DeviceRequest>>;
    /// Decides a grant for a user in a session, and records `event`. False, and nothing is done, when it is
    /// not pending: of decisions side by side one counts.
    async fn decide(&self, user_code: &str, approve: bool, by: (&str, &str), event: &Event) -> Result<bool>;
    /// Looks at a grant for its device, and uses it up when it is approved: of looks side by side one gets
    /// it. Looks that come too early make the interval longer by `step` milliseconds.
    async fn poll(&self, device_hash: TokenHash, step: i64, now: i64) -> Result<Poll>;
    /// Forgets grants whose time is over; says how many.
    async fn prune(&self, now: i64) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct RequestRow {
    client_id: String,
    scope: String,
    address: String,
    created_at: i64,
    expires_at: i64,
}

impl From<RequestRow> for DeviceRequest {
    fn from(row: RequestRow) -> Self {
        let RequestRow { client_id, scope, address, created_at, expires_at } = row;
        Self { client_id, scope, address, created_at, expires_at }
    }
}

#[derive(sqlx::FromRow)]
struct GrantRow {
    status: String,
    polled_at: i64,
    poll_interval: i64,
}

// An update that changes nothing takes the row's lock, so that looks are judged one by one.
const LOCK_GRANT: &str = "UPDATE device_grants SET status = status WHERE device_hash = $1 AND expires_at > $2
    RETURNING status, polled_at, poll_interval";

const USE_GRANT: &str = "DELETE FROM device_grants WHERE device_hash = $1
    RETURNING user_id, client_id, scope,
      EXISTS (SELECT 1 FROM sessions WHERE sessions.id = device_grants.session_id
              AND sessions.ended_at IS NULL AND sessions.expires_at > $2),
      (SELECT changed_at FROM credentials WHERE credentials.user_id = device_grants.user_id)";

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl DeviceStore for SqlStore<Pool> {
    async fn add(&self, grant: &NewGrant) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let added = sqlx::query(
            "INSERT INTO device_grants (device_hash, user_code, client_id, scope, address, status, polled_at,
               poll_interval, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, 'PENDING', 0, $6, $7, $8)",
        )
        .bind(grant.device_hash.0.as_slice())
        .bind(&grant.user_code)
        .bind(&grant.client_id)
        .bind(&grant.scope)
        .bind(&grant.address)
        .bind(grant.interval)
        .bind(grant.created_at)
        .bind(grant.expires_at)
        .execute(&mut *tx)
        .await;
        match added {
            Err(error) if is_unique_violation(&error) => return Ok(false),
            added => added?,
        };
        tx.commit().await?;
        Ok(true)
    }

    async fn find(&self, user_code: &str, now: i64) -> Result<Option<DeviceRequest>> {
        let row: Option<RequestRow> = sqlx::query_as(
            "SELECT client_id, scope, address, created_at, expires_at FROM device_grants
             WHERE user_code = $1 AND status = 'PENDING' AND expires_at > $2",
        )
        .bind(user_code)
        .bind(now)
        .fetch_optional(self.pool.read())
        .await?;
        Ok(row.map(DeviceRequest::from))
    }

    async fn decide(&self, user_code: &str, approve: bool, by: (&str, &str), event: &Event) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let decided = sqlx::query(
            "UPDATE device_grants SET status = $2, user_id = $3, session_id = $4
             WHERE user_code = $1 AND status = 'PENDING' AND expires_at > $5",
        )
        .bind(user_code)
        .bind(if approve { "APPROVED" } else { "DENIED" })
        .bind(by.0)
        .bind(by.1)
        .bind(event.at)
        .execute(&mut *tx)
        .await?;
        if decided.rows_affected() == 0 {
            return Ok(false);
        }
        tx.record(event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn poll(&self, device_hash: TokenHash, step: i64, now: i64) -> Result<Poll> {
        let hash = device_hash.0.as_slice();
        let mut tx = self.pool.begin().await?;
        let row: Option<GrantRow> =
            sqlx::query_as(LOCK_GRANT).bind(hash).bind(now).fetch_optional(&mut *tx).await?;
        let Some(grant) = row else { return Ok(Poll::Dead) };
        let poll = match grant.status.as_str() {
            "APPROVED" => {
                let (user_id, client_id, scope, live, password): (String, String, String, bool, Option<i64>) =
                    sqlx::query_as(USE_GRANT).bind(hash).bind(now).fetch_one(&mut *tx).await?;
                let approval = Approval { user_id, client_id, scope, password };
                if live { Poll::Approved(approval) } else { Poll::Dead }
            }
            "DENIED" => Poll::Denied,
            _ => {
                let early = now < grant.polled_at + grant.poll_interval;
                let interval = if early { grant.poll_interval + step } else { grant.poll_interval };
                sqlx::query(
                    "UPDATE device_grants SET polled_at = $2, poll_interval = $3 WHERE device_hash = $1",
                )
                .bind(hash)
                .bind(now)
                .bind(interval)
                .execute(&mut *tx)
                .await?;
                if early { Poll::TooEarly(interval) } else { Poll::Pending }
            }
        };
        tx.commit().await?;
        Ok(poll)
    }

    async fn prune(&self, now: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query("DELETE FROM device_grants WHERE expires_at <= $1")
            .bind(now)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
