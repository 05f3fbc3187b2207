//! Sessions and refresh tokens.

use std::fmt;

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    page::Page,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    SqlStore, audit::Record as _, known_devices::Remember as _, mail::Post as _, revocations::Revoke as _,
    throttles::Forgive as _,
};
use crate::domain::{
    audit::{Chain, Event},
    revocations::remembered_until,
    sessions::{EndReason, Exchange, Listed, MOST_SESSIONS, NewSession, Rotation, Session, Which},
    throttle::Key,
};

/// Keeps sessions.
#[async_trait]
pub(crate) trait SessionStore: fmt::Debug + Send + Sync {
    /// Adds a session with its first refresh token, forgives the failed logins of its owner, makes the
    /// device known, ends the oldest of too many sessions, and records it. False, and nothing is done, when
    /// there is no such account, it is disabled, or its password is another one by now.
    async fn open(&self, new: NewSession<'_>) -> Result<bool>;
    /// Uses a refresh token up and stores its successor. Of calls side by side one succeeds; a token that
    /// was used before, and not just now, ends its session, writes to its owner and records it.
    async fn rotate(&self, exchange: Exchange<'_>) -> Result<Rotation>;
    /// Notes that the owner of a live session has proven who they are, forgives what failed in it, and
    /// records `event`.
    async fn prove(
        &self,
        user_id: &str,
        id: &str,
        amr: &[String],
        now: i64,
        event: &Event,
    ) -> Result<Option<Session>>;
    /// A page of the sessions of a user that can still be refreshed, the last used first, and how many
    /// there are.
    async fn live(&self, user_id: &str, page: Page, now: i64) -> Result<(Vec<Listed>, i64)>;
    /// Ends sessions of a user, revokes their access tokens and records `event`; the ids of those that
    /// were live. Nothing is recorded when there were none.
    async fn end(
        &self,
        user_id: &str,
        which: &Which<'_>,
        reason: EndReason,
        event: &Event,
    ) -> Result<Vec<String>>;
    /// Deletes sessions past their end, with their tokens; says how many.
    async fn prune(&self, now: i64) -> Result<u64>;
}

/// Ends sessions within a transaction.
#[async_trait]
pub(crate) trait EndSessions {
    /// Ends sessions of a user and revokes their access tokens; the ids of those that were live. It
    /// revokes, so nothing but the audit log may come after it.
    async fn end_sessions(
        &mut self,
        user_id: &str,
        which: &Which<'_>,
        reason: EndReason,
        now: i64,
    ) -> sqlx::Result<Vec<String>>;
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    id: String,
    user_id: String,
    client_id: String,
    scope: String,
    amr: String,
    created_at: i64,
    authenticated_at: i64,
    expires_at: i64,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        Self {
            id: row.id,
            user_id: row.user_id,
            client_id: row.client_id,
            scope: row.scope,
            amr: row.amr.split(' ').map(str::to_owned).collect(),
            created_at: row.created_at,
            authenticated_at: row.authenticated_at,
            expires_at: row.expires_at,
        }
    }
}

#[derive(sqlx::FromRow)]
struct ListedRow {
    #[sqlx(flatten)]
    session: SessionRow,
    address: String,
    device: String,
    last_used_at: i64,
}

impl From<ListedRow> for Listed {
    fn from(row: ListedRow) -> Self {
        let ListedRow { session, address, device, last_used_at } = row;
        Self { session: session.into(), address, device, last_used_at }
    }
}

#[derive(sqlx::FromRow)]
struct RepeatedRow {
    #[sqlx(flatten)]
    session: SessionRow,
    successor: Vec<u8>,
}

/// The bytes of a hash, which stand before what is sealed of a successor.
const HASH: usize = 32;

const ADD_TOKEN: &str =
    "INSERT INTO refresh_tokens (hash, session_id, created_at, expires_at) VALUES ($1, $2, $3, $4)";

const USE_TOKEN: &str = "UPDATE refresh_tokens SET used_at = $2, successor = $3
    WHERE hash = $1 AND used_at IS NULL
    RETURNING session_id, expires_at";

/// The session of a token that was used after `$3`, if it is live and the successor is unused.
const REPEATED: &str =
    "SELECT s.id, s.user_id, s.client_id, s.scope, s.amr, s.created_at, s.authenticated_at,
      s.expires_at, t.successor
    FROM refresh_tokens t
      JOIN sessions s ON s.id = t.session_id
      JOIN refresh_tokens n ON n.hash = substr(t.successor, 1, 32)
    WHERE t.hash = $1 AND t.used_at > $3 AND s.ended_at IS NULL AND s.expires_at > $2
      AND n.used_at IS NULL AND n.expires_at > $2";

const LIVE: &str =
    "SELECT id, user_id, client_id, scope, amr, created_at, authenticated_at, expires_at, address,
      device, last_used_at
    FROM sessions s WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND EXISTS
      (SELECT 1 FROM refresh_tokens t WHERE t.session_id = s.id AND t.used_at IS NULL AND t.expires_at > $2)
    ORDER BY last_used_at DESC, id DESC LIMIT $3 OFFSET $4";

const COUNT_LIVE: &str = "SELECT COUNT(*)
    FROM sessions s WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND EXISTS
      (SELECT 1 FROM refresh_tokens t WHERE t.session_id = s.id AND t.used_at IS NULL AND t.expires_at > $2)";

const DISPLACE: &str = "UPDATE sessions SET ended_at = $2, end_reason = $3 WHERE id IN
      (SELECT id FROM sessions WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2
       ORDER BY created_at DESC, id DESC LIMIT 1000 OFFSET $4)
    RETURNING id";

const TOUCH_SESSION: &str = "UPDATE sessions SET last_used_at = $2, address = $3, device = $4
    WHERE id = $1 AND ended_at IS NULL AND expires_at > $2
    RETURNING id, user_id, client_id, scope, amr, created_at, authenticated_at, expires_at";

const END_SESSION_OF_TOKEN: &str = "UPDATE sessions SET ended_at = $2, end_reason = $3
    WHERE ended_at IS NULL AND expires_at > $2
      AND id = (SELECT session_id FROM refresh_tokens WHERE hash = $1)
    RETURNING id, user_id, client_id, scope, amr, created_at, authenticated_at, expires_at";

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl EndSessions for Connection {
    async fn end_sessions(
        &mut self,
        user_id: &str,
        which: &Which<'_>,
        reason: EndReason,
        now: i64,
    ) -> sqlx::Result<Vec<String>> {
        let (only, but) = match which {
            Which::One(id) => (Some(*id), None),
            Which::Others(id) => (None, Some(*id)),
            Which::All => (None, None),
        };
        let ended: Vec<String> = sqlx::query_scalar(
            "UPDATE sessions SET ended_at = $2, end_reason = $3
             WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2
               AND ($4 IS NULL OR id = $4) AND ($5 IS NULL OR id <> $5)
             RETURNING id",
        )
        .bind(user_id)
        .bind(now)
        .bind(reason.name())
        .bind(only)
        .bind(but)
        .fetch_all(&mut *self)
        .await?;
        self.revoke(&ended, remembered_until(now)).await?;
        Ok(ended)
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl SessionStore for SqlStore<Pool> {
    async fn open(&self, new: NewSession<'_>) -> Result<bool> {
        let (session, token) = (new.session, new.token);
        let mut tx = self.pool.begin().await?;
        // An update that changes nothing locks the account: its logins are counted one by one.
        let address: Option<String> = sqlx::query_scalar(
            "UPDATE users SET updated_at = updated_at WHERE id = $1 AND disabled_at IS NULL
             RETURNING email_canonical",
        )
        .bind(&session.user_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(address) = address else { return Ok(false) };
        // Read with the account locked, as a change of the password locks it: one waits for the other.
        let password: Option<i64> =
            sqlx::query_scalar("SELECT changed_at FROM credentials WHERE user_id = $1")
                .bind(&session.user_id)
                .fetch_optional(&mut *tx)
                .await?;
        if new.password.is_some() && new.password != password {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO sessions (id, user_id, client_id, scope, amr, created_at, last_used_at,
               authenticated_at, expires_at, address, device)
             VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9, $10)",
        )
        .bind(&session.id)
        .bind(&session.user_id)
        .bind(&session.client_id)
        .bind(&session.scope)
        .bind(session.amr.join(" "))
        .bind(session.created_at)
        .bind(session.authenticated_at)
        .bind(session.expires_at)
        .bind(new.client.address_text())
        .bind(&new.client.device)
        .execute(&mut *tx)
        .await?;
        sqlx::query(ADD_TOKEN)
            .bind(token.hash.0.as_slice())
            .bind(&session.id)
            .bind(token.created_at)
            .bind(token.expires_at)
            .execute(&mut *tx)
            .await?;
        tx.forgive(&Key::of_canonical(&address)).await?;
        if let Some(key) = new.forgiven {
            tx.forgive(key).await?;
        }
        if let Some(device) = new.device {
            tx.remember(&session.user_id, new.forgiven, device, session.created_at).await?;
        }
        let displaced: Vec<String> = sqlx::query_scalar(DISPLACE)
            .bind(&session.user_id)
            .bind(session.created_at)
            .bind(EndReason::Displaced.name())
            .bind(MOST_SESSIONS)
            .fetch_all(&mut *tx)
            .await?;
        tx.revoke(&displaced, remembered_until(session.created_at)).await?;
        if !displaced.is_empty() {
            tx.record(&new.displacing.on(&displaced.join(" "))).await?;
        }
        tx.record(&new.event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn rotate(&self, exchange: Exchange<'_>) -> Result<Rotation> {
        let Exchange { presented, successor, sealed, grace_ms, client, reuse, letter } = exchange;
        let (presented, now) = (presented.0.as_slice(), successor.created_at);
        let sealed = sealed.map(|sealed| [successor.hash.0.as_slice(), &sealed].concat());
        let mut tx = self.pool.begin().await?;
        let used: Option<(String, i64)> =
            sqlx::query_as(USE_TOKEN).bind(presented).bind(now).bind(sealed).fetch_optional(&mut *tx).await?;
        let Some((session_id, expires_at)) = used else {
            // Unknown, or used before.
            let repeated: Option<RepeatedRow> = sqlx::query_as(REPEATED)
                .bind(presented)
                .bind(now)
                .bind(now - grace_ms)
                .fetch_optional(&mut *tx)
                .await?;
            if let Some(RepeatedRow { session, successor }) = repeated.filter(|_| grace_ms > 0) {
                return Ok(Rotation::Repeated(session.into(), successor[HASH..].to_vec()));
            }
            // Locks are taken in one order, token before session, everywhere.
            let ended: Option<SessionRow> = sqlx::query_as(END_SESSION_OF_TOKEN)
                .bind(presented)
                .bind(now)
                .bind(EndReason::RefreshReused.name())
                .fetch_optional(&mut *tx)
                .await?;
            let Some(ended) = ended.map(Session::from) else { return Ok(Rotation::Dead) };
            let address: String = sqlx::query_scalar("SELECT email FROM users WHERE id = $1")
                .bind(&ended.user_id)
                .fetch_one(&mut *tx)
                .await?;
            tx.post(&letter(&address)?).await?;
            tx.revoke(std::slice::from_ref(&ended.id), remembered_until(now)).await?;
            tx.record(&reuse.into_chain(Chain::User(ended.user_id.clone())).on(&ended.id)).await?;
            tx.commit().await?;
            return Ok(Rotation::Reused(ended));
        };
        if expires_at <= now {
            return Ok(Rotation::Dead);
        }
        let live: Option<SessionRow> = sqlx::query_as(TOUCH_SESSION)
            .bind(&session_id)
            .bind(now)
            .bind(client.address_text())
            .bind(&client.device)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(session) = live else { return Ok(Rotation::Dead) };
        sqlx::query(ADD_TOKEN)
            .bind(successor.hash.0.as_slice())
            .bind(&session_id)
            .bind(successor.created_at)
            .bind(successor.expires_at)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Rotation::Rotated(session.into()))
    }

    async fn prove(
        &self,
        user_id: &str,
        id: &str,
        amr: &[String],
        now: i64,
        event: &Event,
    ) -> Result<Option<Session>> {
        let mut tx = self.pool.begin().await?;
        let row: Option<SessionRow> = sqlx::query_as(
            "UPDATE sessions SET authenticated_at = $3, amr = $4
             WHERE id = $2 AND user_id = $1 AND ended_at IS NULL AND expires_at > $3
             RETURNING id, user_id, client_id, scope, amr, created_at, authenticated_at, expires_at",
        )
        .bind(user_id)
        .bind(id)
        .bind(now)
        .bind(amr.join(" "))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        tx.forgive(&Key::of_session(id)).await?;
        tx.record(event).await?;
        tx.commit().await?;
        Ok(Some(row.into()))
    }

    async fn live(&self, user_id: &str, page: Page, now: i64) -> Result<(Vec<Listed>, i64)> {
        let rows: Vec<ListedRow> = sqlx::query_as(LIVE)
            .bind(user_id)
            .bind(now)
            .bind(page.sql_limit())
            .bind(page.sql_offset())
            .fetch_all(self.pool.read())
            .await?;
        let total =
            sqlx::query_scalar(COUNT_LIVE).bind(user_id).bind(now).fetch_one(self.pool.read()).await?;
        Ok((rows.into_iter().map(Listed::from).collect(), total))
    }

    async fn end(
        &self,
        user_id: &str,
        which: &Which<'_>,
        reason: EndReason,
        event: &Event,
    ) -> Result<Vec<String>> {
        let mut tx = self.pool.begin().await?;
        let ended = tx.end_sessions(user_id, which, reason, event.at).await?;
        if !ended.is_empty() {
            tx.record(event).await?;
            tx.commit().await?;
        }
        Ok(ended)
    }

    async fn prune(&self, now: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        // Tokens first, in the order of locks of `rotate`.
        sqlx::query(
            "DELETE FROM refresh_tokens WHERE session_id IN (SELECT id FROM sessions WHERE expires_at <= $1)",
        )
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let gone =
            sqlx::query("DELETE FROM sessions WHERE expires_at <= $1").bind(now).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
