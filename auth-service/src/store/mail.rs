//! Mail that waits in the outbox, and what limits it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{Database, PostgresPool, SqlitePool},
    outbox::{Append as _, Entries, Entry},
};
use sqlx::{PgConnection, Postgres, SqliteConnection, Transaction};
use tokio::sync::Mutex;
use trait_gen::trait_gen;

use super::{SqlStore, audit::Record as _, pending::Pend as _};
use crate::domain::{
    audit::Event,
    mail::{ASIDE, Envelope, LIMIT, Outgoing, TOPIC},
    pending::{Kind, Pending},
};

/// How many letters one instance takes at a time.
const BATCH: i64 = 50;

/// Posts mail within a transaction.
#[async_trait]
pub(crate) trait Post {
    /// Adds an envelope to the outbox. The topic stays locked until the transaction ends: post after all
    /// other statements but revocations and the audit log's.
    async fn post(&mut self, envelope: &Envelope) -> sqlx::Result<()>;
    /// Whether a user has not yet had enough letters of this purpose. The user's row must be locked.
    async fn has_room(&mut self, user_id: Option<&str>, outgoing: &Outgoing) -> sqlx::Result<bool>;
    /// Posts a letter that anybody can ask for, if there is room for it; false if not. Its link is good from
    /// now on, and earlier ones are not.
    async fn post_limited(&mut self, user_id: Option<&str>, outgoing: &Outgoing) -> sqlx::Result<bool>;
}

/// Mail that is not part of another change.
#[async_trait]
pub(crate) trait MailStore: fmt::Debug + Send + Sync {
    /// Posts a letter that anybody can ask for and records `event`; `refused` instead when the user has had
    /// enough of its purpose, or is disabled. For nobody (`None`) it does the same work.
    async fn send(
        &self,
        user_id: Option<&str>,
        outgoing: &Outgoing,
        event: &Event,
        refused: &Event,
    ) -> Result<bool>;
    /// Keeps a letter that the server refused for now out of the way of others.
    async fn put_aside(&self, envelope: &Envelope) -> Result<()>;
    /// Brings back all that was put aside; says how many.
    async fn bring_back(&self) -> Result<u64>;
}

/// The letters to deliver, for a relay.
pub(crate) fn queue(database: &Database) -> Arc<dyn Entries> {
    match database {
        Database::Sqlite(pool) => Arc::new(pool.clone()),
        Database::Postgres(pool) => Arc::new(Claims { pool: pool.clone(), open: Mutex::default() }),
    }
}

/// Letters on PostgreSQL, where several instances deliver: each locks what it takes until it is deleted,
/// and passes over what another one has locked, so that every letter leaves once.
#[derive(Debug)]
struct Claims {
    pool: PostgresPool,
    open: Mutex<Option<(Transaction<'static, Postgres>, Vec<i64>)>>,
}

#[async_trait]
impl Entries for Claims {
    async fn oldest(&self, topic: &str, most: i64) -> sqlx::Result<Vec<Entry>> {
        let mut open = self.open.lock().await;
        // What was taken and not deleted could not be delivered: anybody may try.
        if let Some((tx, _)) = open.take() {
            tx.rollback().await?;
        }
        let mut tx = self.pool.begin().await?;
        let batch: Vec<Entry> = sqlx::query_as(
            "SELECT position, id, payload FROM outbox WHERE topic = $1 ORDER BY position LIMIT $2
             FOR UPDATE SKIP LOCKED",
        )
        .bind(topic)
        .bind(most.min(BATCH))
        .fetch_all(&mut *tx)
        .await?;
        if !batch.is_empty() {
            *open = Some((tx, batch.iter().map(|entry| entry.position).collect()));
        }
        Ok(batch)
    }

    async fn delete_through(&self, topic: &str, _position: i64) -> sqlx::Result<()> {
        let Some((mut tx, positions)) = self.open.lock().await.take() else { return Ok(()) };
        sqlx::query("DELETE FROM outbox WHERE topic = $1 AND position = ANY($2)")
            .bind(topic)
            .bind(positions)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Post for Connection {
    async fn post(&mut self, envelope: &Envelope) -> sqlx::Result<()> {
        self.append(TOPIC, &envelope.id, envelope.payload.clone()).await
    }

    async fn has_room(&mut self, user_id: Option<&str>, outgoing: &Outgoing) -> sqlx::Result<bool> {
        let sent: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM pending WHERE user_id = $1 AND kind = $2 AND payload = $3 AND expires_at > $4",
        )
        .bind(user_id)
        .bind(Kind::LetterMark.name())
        .bind(outgoing.purpose.name().as_bytes())
        .bind(outgoing.mark.created_at)
        .fetch_one(&mut *self)
        .await?;
        Ok(sent < LIMIT)
    }

    async fn post_limited(&mut self, user_id: Option<&str>, outgoing: &Outgoing) -> sqlx::Result<bool> {
        if !self.has_room(user_id, outgoing).await? {
            return Ok(false);
        }
        let of_user = |pending: &Pending| Pending { user_id: user_id.map(str::to_owned), ..pending.clone() };
        if let Some(link) = &outgoing.link {
            self.drop_pending(user_id.unwrap_or_default(), link.kind).await?;
            self.put_pending(&of_user(link)).await?;
        }
        self.put_pending(&of_user(&outgoing.mark)).await?;
        self.post(&outgoing.envelope).await?;
        Ok(true)
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl MailStore for SqlStore<Pool> {
    async fn send(
        &self,
        user_id: Option<&str>,
        outgoing: &Outgoing,
        event: &Event,
        refused: &Event,
    ) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        // An update that changes nothing takes the row's lock, so that letters are counted one by one.
        let found =
            sqlx::query("UPDATE users SET updated_at = updated_at WHERE id = $1 AND disabled_at IS NULL")
                .bind(user_id)
                .execute(&mut *tx)
                .await?;
        let may = found.rows_affected() == 1 || user_id.is_none();
        let sent = may && tx.post_limited(user_id, outgoing).await?;
        tx.record(if sent { event } else { refused }).await?;
        tx.commit().await?;
        Ok(sent)
    }

    async fn put_aside(&self, envelope: &Envelope) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.append(ASIDE, &envelope.id, envelope.payload.clone()).await?;
        Ok(tx.commit().await?)
    }

    async fn bring_back(&self) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let waiting: Vec<(String, Vec<u8>)> =
            sqlx::query_as("DELETE FROM outbox WHERE topic = $1 RETURNING id, payload")
                .bind(ASIDE)
                .fetch_all(&mut *tx)
                .await?;
        for (id, payload) in &waiting {
            tx.append(TOPIC, id, payload.clone()).await?;
        }
        tx.commit().await?;
        Ok(u64::try_from(waiting.len()).unwrap_or(u64::MAX))
    }
}
