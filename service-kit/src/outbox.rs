//! The transactional outbox: events leave a service only if the change that caused them was committed,
//! and then for certain, in the order of commits of their topic.
//!
//! A service's migrations hold the two tables of [`SCHEMA`]. `append` runs in the service's own
//! transaction; a [`Relay`] delivers and then deletes. Receivers must take an id that they know as done.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use tokio::sync::Notify;
use tracing::Instrument as _;
use trait_gen::trait_gen;

use crate::{
    db::{PostgresPool, SqlitePool},
    error::Result,
    shutdown::Tasks,
};

/// What a service's migrations hold for its outbox.
pub const SCHEMA: &str = "
CREATE TABLE outbox_heads (topic TEXT PRIMARY KEY, head BIGINT NOT NULL);
CREATE TABLE outbox (
  topic TEXT NOT NULL, position BIGINT NOT NULL, id TEXT NOT NULL, payload BYTEA NOT NULL,
  PRIMARY KEY (topic, position)
);";

/// How many entries one delivery carries at most: what a receiver takes in one call.
const BATCH: i64 = 500;

/// How many rows one statement writes. Each binds four values, and SQLite takes at most 32,766.
const ROWS: usize = 1_000;

/// How long to wait after a first failure; it doubles up to 5 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// An entry that has not been delivered yet.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Entry {
    /// The position in the topic: the order of commits.
    pub position: i64,
    /// The id by which a receiver knows it again.
    pub id: String,
    /// What the topic says it is; usually an encoded protobuf message.
    pub payload: Vec<u8>,
}

/// Writes to the outbox within a transaction.
#[async_trait]
pub trait Append {
    /// Adds an entry to a topic. The row of the topic stays locked until the transaction ends, so
    /// positions are in the order of commits.
    async fn append(&mut self, topic: &str, id: &str, payload: Vec<u8>) -> sqlx::Result<()>;
    /// Adds entries, ids and payloads, to a topic in their order, with few statements. The lock is that
    /// of [`Self::append`].
    async fn append_all(&mut self, topic: &str, entries: Vec<(String, Vec<u8>)>) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Append for Connection {
    async fn append(&mut self, topic: &str, id: &str, payload: Vec<u8>) -> sqlx::Result<()> {
        self.append_all(topic, vec![(id.to_owned(), payload)]).await
    }

    async fn append_all(&mut self, topic: &str, entries: Vec<(String, Vec<u8>)>) -> sqlx::Result<()> {
        let count = i64::try_from(entries.len()).unwrap_or(i64::MAX);
        if count == 0 {
            return Ok(());
        }
        let head: i64 = sqlx::query_scalar(
            "INSERT INTO outbox_heads (topic, head) VALUES ($1, $2)
             ON CONFLICT (topic) DO UPDATE SET head = outbox_heads.head + excluded.head RETURNING head",
        )
        .bind(topic)
        .bind(count)
        .fetch_one(&mut *self)
        .await?;
        let mut entries = (head - count + 1..).zip(entries);
        loop {
            let rows: Vec<(i64, (String, Vec<u8>))> = entries.by_ref().take(ROWS).collect();
            if rows.is_empty() {
                return Ok(());
            }
            let mut query = QueryBuilder::new("INSERT INTO outbox (topic, position, id, payload) ");
            query.push_values(rows, |mut row, (position, (id, payload))| {
                row.push_bind(topic).push_bind(position).push_bind(id).push_bind(payload);
            });
            // Not kept prepared: the text changes with the number of rows.
            query.build().persistent(false).execute(&mut *self).await?;
        }
    }
}

/// Reads and deletes entries.
#[async_trait]
pub trait Entries: Send + Sync + 'static {
    /// The oldest entries of a topic, in order.
    async fn oldest(&self, topic: &str, most: i64) -> sqlx::Result<Vec<Entry>>;
    /// Deletes the entries up to and including a position.
    async fn delete_through(&self, topic: &str, position: i64) -> sqlx::Result<()>;
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl Entries for Pool {
    async fn oldest(&self, topic: &str, most: i64) -> sqlx::Result<Vec<Entry>> {
        sqlx::query_as("SELECT position, id, payload FROM outbox WHERE topic = $1 ORDER BY position LIMIT $2")
            .bind(topic)
            .bind(most)
            .fetch_all(self.read())
            .await
    }

    async fn delete_through(&self, topic: &str, position: i64) -> sqlx::Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM outbox WHERE topic = $1 AND position <= $2")
            .bind(topic)
            .bind(position)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }
}

/// Where a relay delivers to.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Delivers entries in order: all, or an error, after which the same entries come again.
    async fn deliver(&self, entries: &[Entry]) -> Result<()>;
}

/// Wakes a relay after a commit, so that nothing waits for the next look. Each relay has one of its own: a
/// nudge wakes one, and is kept for it while it is busy.
#[derive(Debug, Clone, Default)]
pub struct Nudge {
    own: Arc<Notify>,
    also: Option<Arc<Notify>>,
}

impl Nudge {
    /// There may be something to deliver.
    pub fn now(&self) {
        self.own.notify_one();
        if let Some(also) = &self.also {
            also.notify_one();
        }
    }

    /// A nudge that wakes another relay too, whose topic the same transactions write.
    pub fn with(other: &Self) -> Self {
        Self { own: Arc::default(), also: Some(other.own.clone()) }
    }
}

/// Delivers one topic.
#[derive(Debug)]
pub struct Relay;

impl Relay {
    /// Starts delivering `topic` until the service drains. Looks at once after a nudge, and each second
    /// for what another instance wrote; after a failure waits longer each time.
    pub fn spawn(
        tasks: &Tasks,
        topic: &'static str,
        entries: Arc<dyn Entries>,
        sink: Arc<dyn Sink>,
        nudge: Nudge,
    ) {
        let stop = tasks.stopping();
        tasks.spawn("outbox relay", async move {
            let mut backoff = FIRST_BACKOFF;
            while !stop.is_cancelled() {
                let (wait, wakes) = match Self::round(topic, &*entries, &*sink).await {
                    Ok(true) => {
                        backoff = FIRST_BACKOFF;
                        continue;
                    }
                    Ok(false) => {
                        backoff = FIRST_BACKOFF;
                        (Duration::from_secs(1), true)
                    }
                    Err(error) => {
                        tracing::warn!(topic, %error, "outbox delivery failed, will try again");
                        backoff = (backoff * 2).min(Duration::from_secs(5));
                        (backoff, false)
                    }
                };
                tokio::select! {
                    () = nudge.own.notified(), if wakes => {}
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => {}
                }
            }
            // What was committed last still leaves, if the receiver is there.
            while Self::round(topic, &*entries, &*sink).await.unwrap_or(false) {}
            Ok(())
        });
    }

    /// Delivers one batch; false when there was nothing.
    async fn round(topic: &'static str, entries: &dyn Entries, sink: &dyn Sink) -> Result<bool> {
        let batch = entries.oldest(topic, BATCH).await?;
        let Some(last) = batch.last() else { return Ok(false) };
        // A trace of its own: the calls that wrote the entries are over, and there may be many.
        let span = tracing::info_span!("deliver", topic, trace_id = tracing::field::Empty);
        crate::telemetry::note_trace(&span);
        sink.deliver(&batch).instrument(span).await?;
        entries.delete_through(topic, last.position).await?;
        metrics::counter!("tollgate_outbox_delivered_total", "topic" => topic)
            .increment(u64::try_from(batch.len()).unwrap_or(0));
        Ok(true)
    }
}
