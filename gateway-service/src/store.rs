//! What the service keeps: SQL and nothing else. One method is one transaction. Written once, for SQLite
//! and PostgreSQL.
//!
//! Whoever writes to a gateway's log or tokens updates the gateway's row first: that row is the lock.

mod acks;
mod events;
mod gateways;
mod tokens;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use service_kit::{Result, db::Database, opaque, outbox::Entries, page::Page};

use crate::domain::{
    acks::{Ack, Verdict},
    gateways::{Details, Gateway},
    log::{Appended, LogEvent, NewEvent, Sending},
    tokens::{Issued, StoredToken, Token},
};

/// Gateways.
#[async_trait]
pub(crate) trait GatewayStore: fmt::Debug + Send + Sync + 'static {
    /// Adds a gateway; false when its organization has one of this name.
    async fn insert(&self, gateway: &Gateway) -> Result<bool>;
    /// One gateway.
    async fn find(&self, id: &str) -> Result<Option<Gateway>>;
    /// A page of the gateways of organizations by name, and how many there are.
    async fn list(&self, organization_ids: &[String], page: Page) -> Result<(Vec<Gateway>, i64)>;
    /// Those of the gateways that exist in the organization.
    async fn resolve(&self, organization_id: &str, ids: &[String]) -> Result<Vec<Gateway>>;
    /// Replaces the details and returns the gateway, if it exists.
    async fn update(&self, id: &str, details: &Details, now: i64) -> Result<Option<Gateway>>;
    /// Keeps a manifest and the version in it.
    async fn put_manifest(&self, id: &str, version: &str, manifest: &str) -> Result<()>;
    /// Deletes a gateway with everything of it, and reports its deployments as gone; false when there is
    /// none.
    async fn delete(&self, id: &str, now: i64) -> Result<bool>;
}

/// Tokens of gateways.
#[async_trait]
pub(crate) trait TokenStore: fmt::Debug + Send + Sync + 'static {
    /// Adds a token unless two are active.
    async fn issue(&self, gateway_id: &str, token: &Token, stored: &opaque::Stored) -> Result<Issued>;
    /// The tokens of a gateway, newest first.
    async fn list(&self, gateway_id: &str) -> Result<Vec<Token>>;
    /// Revokes a token; false when the gateway has none of this id.
    async fn revoke(&self, gateway_id: &str, token_id: &str, now: i64) -> Result<bool>;
    /// The token with this lookup text.
    async fn find(&self, lookup: &str) -> Result<Option<StoredToken>>;
    /// Notes when a token was used.
    async fn note_use(&self, token_id: &str, at: i64) -> Result<()>;
    /// Those of the tokens that are active.
    async fn active(&self, token_ids: &[String]) -> Result<Vec<String>>;
}

/// The logs of gateways.
#[async_trait]
pub(crate) trait EventStore: fmt::Debug + Send + Sync + 'static {
    /// Appends events in order, all or none. An event whose id is known changes nothing.
    async fn append(&self, events: &[NewEvent], now: i64) -> Result<Appended>;
    /// Events after a revision that are not acknowledged, in order.
    async fn open_after(&self, gateway_id: &str, revision: i64, most: usize) -> Result<Vec<LogEvent>>;
    /// Notes that these events are now sent, and reports first sendings. What was acknowledged in the
    /// meantime is left out of the answer.
    async fn stamp(&self, gateway_id: &str, events: Vec<Stamp>, now: i64) -> Result<Vec<Sending>>;
    /// These events, which no gateway acknowledges, are done.
    async fn complete(&self, gateway_id: &str, revisions: &[i64], now: i64) -> Result<()>;
    /// Applies an acknowledgement and reports it.
    async fn acknowledge(&self, gateway_id: &str, ack: &Ack, now: i64) -> Result<Verdict>;
    /// For each artifact of a gateway the `performedAt` of its newest event, as the gateway knows it.
    async fn performed(&self, gateway_id: &str) -> Result<Vec<(String, i64)>>;
    /// The newest revision of each of these gateways; those that do not exist are left out.
    async fn heads(&self, gateway_ids: &[String]) -> Result<Vec<(String, i64)>>;
}

/// What a sending gets before it is stamped.
#[derive(Debug)]
pub(crate) struct Stamp {
    pub(crate) event: LogEvent,
    pub(crate) correlation_id: String,
    /// The id of the report, should this be the first sending.
    pub(crate) report_id: String,
}

/// Every store over one database.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    pub(crate) gateways: Arc<dyn GatewayStore>,
    pub(crate) tokens: Arc<dyn TokenStore>,
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) outbox: OutboxEntries,
}

/// The outbox's reading side.
#[derive(Clone)]
pub(crate) struct OutboxEntries(pub(crate) Arc<dyn Entries>);

impl fmt::Debug for OutboxEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutboxEntries")
    }
}

#[derive(Debug, Clone)]
struct SqlStore<P> {
    pool: P,
}

impl Stores {
    /// The stores of a database.
    pub(crate) fn new(database: &Database) -> Self {
        match database {
            Database::Sqlite(pool) => {
                let store = Arc::new(SqlStore { pool: pool.clone() });
                let outbox = OutboxEntries(Arc::new(pool.clone()));
                Self { gateways: store.clone(), tokens: store.clone(), events: store, outbox }
            }
            Database::Postgres(pool) => {
                let store = Arc::new(SqlStore { pool: pool.clone() });
                let outbox = OutboxEntries(Arc::new(pool.clone()));
                Self { gateways: store.clone(), tokens: store.clone(), events: store, outbox }
            }
        }
    }
}

/// Appends ` column IN ($n, …)` to a dynamic query.
macro_rules! push_in {
    ($query:expr, $column:literal, $ids:expr) => {{
        $query.push(concat!($column, " IN ("));
        for (at, id) in $ids.iter().enumerate() {
            if at > 0 {
                $query.push(", ");
            }
            $query.push_bind(id.as_str());
        }
        $query.push(")");
    }};
}
use push_in;
