//! What the service keeps: SQL and nothing else. One method is one transaction. Written once, for SQLite
//! and PostgreSQL.
//!
//! Whoever writes to a gateway's log or tokens updates the gateway's row first: that row is the lock.

mod acks;
mod appends;
mod connections;
mod deliveries;
mod dialect;
mod drift;
mod events;
mod failures;
mod gateways;
mod imports;
mod instances;
mod keys;
mod operations;
mod reconcile;
mod reports;
mod retention;
mod retries;
mod settle;
#[cfg(test)]
mod tests;
mod tokens;
mod web;

use std::{collections::HashMap, fmt, sync::Arc};

use async_trait::async_trait;
use service_kit::{Ids, Result, db::Database, opaque, outbox::Entries, page::Page};

use crate::domain::{
    acks::{AckFrom, Verdict},
    connections::{Admission, Connection, Note},
    figures::Figures,
    gateways::{Details, Gateway},
    imports::Adopted,
    instances::{Author, Belief, Change, Position, Refusal, Reply, Settled, Subject},
    log::{Appended, Delivery, NewEvent, Requeue, Taken},
    operations::{Deliveries, FailedDelivery, Held, Live, Scope},
    reconcile::{Drifted, Repair, Told},
    retries::RetryRule,
    states::{ArtifactState, DriftRule},
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
    /// Appends events in order, all or none, and takes what is to be sent to their gateways then. An event whose id is
    /// known changes nothing.
    async fn append(&self, events: &[NewEvent], deliveries: &[Delivery], now: i64) -> Result<Appended>;
    /// Applies acknowledgements, one after the other, and takes what is to be sent; reports both.
    async fn write(&self, batch: &Batch, now: i64) -> Result<Outcome>;
    /// These events, which no gateway acknowledges, are done; false when the connection does not count any more.
    async fn complete(&self, author: Author<'_>, revisions: &[i64], now: i64) -> Result<bool>;
    /// Appends fresh copies of the events that are to be sent again and that no newer one makes needless, in order.
    /// Returns how many, and the newest revision of the log (0 when there is no such gateway).
    async fn requeue(&self, asked: Requeue<'_>, ids: &Ids, now: i64) -> Result<(usize, i64)>;
    /// Those of these events, by gateway, that were sent and are still not answered.
    async fn unanswered(&self, sent: &[(String, i64)]) -> Result<HashMap<String, Vec<i64>>>;
    /// For each artifact of a gateway the `performedAt` of its newest event, as the gateway knows it.
    async fn performed(&self, gateway_id: &str) -> Result<Vec<(String, i64)>>;
    /// The newest revision of each of these gateways; those that do not exist are left out.
    async fn heads(&self, gateway_ids: &[String]) -> Result<Vec<(String, i64)>>;
}

/// What gateways ran before the log knew it.
#[async_trait]
pub(crate) trait ImportStore: fmt::Debug + Send + Sync + 'static {
    /// Appends events that a gateway has performed already, as done; of an artifact that the log knows nothing
    /// changes.
    async fn adopt(&self, gateway_id: &str, adopted: &[Adopted], now: i64) -> Result<()>;
}

/// Live connections, and the instances of this service that serve them.
#[async_trait]
pub(crate) trait ConnectionStore: fmt::Debug + Send + Sync + 'static {
    /// Registers an instance of this service.
    async fn enter(&self, node_id: &str, now: i64) -> Result<()>;
    /// One more sign of life; false when the instance was declared dead.
    async fn beat(&self, node_id: &str) -> Result<bool>;
    /// Every instance with its beat; below zero are those that were declared dead.
    async fn nodes(&self) -> Result<Vec<(String, i64)>>;
    /// Declares an instance dead if its beat is still this one. Says whether it was.
    async fn declare_dead(&self, node_id: &str, beat: i64) -> Result<bool>;
    /// Forgets some connections of a dead instance, or the instance when it has none: then 0.
    async fn bury(&self, node_id: &str, now: i64) -> Result<usize>;
    /// Registers a connection, unless its organization has `most` already. An older connection of the same
    /// gateway instance is forgotten.
    async fn connect(&self, connection: &Connection, most: u32) -> Result<Admission>;
    /// Removes a connection; false when it is gone already.
    async fn disconnect(&self, connection_id: &str, gateway_id: &str, now: i64) -> Result<bool>;
    /// Those of these gateways that are connected to any instance of this service.
    async fn connected(&self, gateway_ids: &[String]) -> Result<Vec<String>>;
    /// Those of these connections that still count, and when they were last heard of.
    async fn heard_at(&self, connection_ids: &[String]) -> Result<Vec<(String, i64)>>;
    /// Keeps how far connections are.
    /// Returns those that are noted: others are being written by somebody else just now.
    async fn note(&self, notes: &[Note]) -> Result<Vec<String>>;
}

/// What gateways report whose connection another instance of this service serves.
#[async_trait]
pub(crate) trait ReportStore: fmt::Debug + Send + Sync + 'static {
    /// Leaves a report for whoever serves the connection, and notes the sign of life; false when the gateway
    /// has no such connection.
    async fn leave(&self, connection_id: &str, gateway_id: &str, report: &[u8], now: i64) -> Result<bool>;
    /// Those of these connections for which something was left.
    async fn waiting(&self, connection_ids: &[String]) -> Result<Vec<String>>;
    /// Takes what was left for a connection, in the order in which it came.
    async fn take(&self, connection_id: &str) -> Result<Vec<Vec<u8>>>;
}

/// What instances of gateways get, and what they say that they run.
#[async_trait]
pub(crate) trait InstanceStore: fmt::Debug + Send + Sync + 'static {
    /// Where the log and an instance are.
    async fn position(&self, gateway_id: &str, instance_id: &str) -> Result<Position>;
    /// What an instance is believed to run.
    async fn belief(&self, gateway_id: &str, instance_id: &str) -> Result<Belief>;
    /// The newest event of each key up to a revision, in order.
    async fn newest(&self, gateway_id: &str, upto: i64) -> Result<Vec<Subject>>;
    /// The head of the log, and what an instance needs of the events after a revision, in order: those that no
    /// newer one makes needless, without those that it refused.
    async fn changes(
        &self,
        gateway_id: &str,
        instance_id: &str,
        after: i64,
        most: usize,
    ) -> Result<(i64, Vec<Change>)>;
    /// The head of the log, and the events that no newer one makes needless, in order: read at one moment.
    async fn state(&self, gateway_id: &str) -> Result<(i64, Vec<Change>)>;
    /// Notes that these events are now sent, and reports first sendings.
    async fn deliver(&self, gateway_id: &str, changes: &[Change], now: i64) -> Result<()>;
    /// Records answers, and that everything up to `applied` is answered. Events that the gateway as a whole has
    /// now performed or refused are returned and reported; `None` when the connection does not count any more.
    async fn record(
        &self,
        author: Author<'_>,
        answers: &[Reply],
        applied: i64,
        now: i64,
    ) -> Result<Option<Vec<Settled>>>;
    /// Records the answers to a snapshot of a revision (and whether the instance began anew with it): what was
    /// not in it runs no more. Returns the same as `record`.
    async fn replace(
        &self,
        author: Author<'_>,
        snapshot: (i64, bool),
        answers: &[Reply],
        now: i64,
    ) -> Result<Option<Vec<Settled>>>;
    /// Notes that an instance has refused a snapshot of a revision; false when the connection does not count any
    /// more.
    async fn refuse_snapshot(
        &self,
        author: Author<'_>,
        revision: i64,
        refusal: &Refusal,
        now: i64,
    ) -> Result<bool>;
}

/// What is done and old.
#[async_trait]
pub(crate) trait RetentionStore: fmt::Debug + Send + Sync + 'static {
    /// Deletes up to `most` events that are done, were appended before a time and say nothing of what a gateway
    /// has, and raises the floors of their logs. Returns how many.
    async fn prune_events(&self, before: i64, most: i64) -> Result<u64>;
    /// Forgets up to `most` instances of gateways that are not connected and were last seen before a time, with
    /// what they reported. Returns how many.
    async fn prune_instances(&self, before: i64, most: i64) -> Result<u64>;
    /// Deletes up to `most` failures that were noted before a time. Returns how many.
    async fn prune_failures(&self, before: i64, most: i64) -> Result<u64>;
}

/// What gateways refused.
#[async_trait]
pub(crate) trait RetryStore: fmt::Debug + Send + Sync + 'static {
    /// Appends once more what these gateways refused, is the newest of its key, and is due. Returns the gateways whose
    /// logs have grown.
    async fn retry(&self, gateway_ids: &[String], rule: RetryRule) -> Result<Vec<String>>;
}

/// What reconciliation reads and repairs.
#[async_trait]
pub(crate) trait ReconcileStore: fmt::Debug + Send + Sync + 'static {
    /// The host that a gateway serves on, and the newest of its log about each artifact, in the order of the log.
    async fn told(&self, gateway_id: &str) -> Result<Option<(String, Vec<Told>)>>;
    /// Appends what the log lacks, as far as it still is what was seen; how many events.
    async fn repair(&self, gateway_id: &str, repairs: &[Repair], now: i64) -> Result<usize>;
    /// What has been wanted of these gateways since `before` (Unix milliseconds), or longer, and is not so: on any
    /// of their instances that say what they run.
    async fn drifted(&self, gateway_ids: &[String], before: i64) -> Result<Vec<Drifted>>;
}

/// What is written to the logs in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) answers: Vec<AckFrom>,
    pub(crate) deliveries: Vec<Delivery>,
}

/// What became of a [`Batch`], in its order.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) taken: Vec<Taken>,
}

/// What operators ask.
#[async_trait]
pub(crate) trait OperationsStore: fmt::Debug + Send + Sync + 'static {
    /// A page of live connections, newest first, and how many there are. Those last heard of before
    /// `quiet_since` are stale.
    async fn connections(&self, scope: &Scope, quiet_since: i64, page: Page) -> Result<(Vec<Live>, i64)>;
    /// A page of the failures in `[from, to)`, newest first, and how many there are.
    async fn failures(
        &self,
        scope: &Scope,
        from: i64,
        to: i64,
        page: Page,
    ) -> Result<(Vec<FailedDelivery>, i64)>;
    /// A page of the artifacts of a gateway, and how many there are.
    async fn artifacts(
        &self,
        gateway_id: &str,
        drift: DriftRule,
        only_drifted: bool,
        page: Page,
    ) -> Result<(Vec<ArtifactState>, i64)>;
    /// Where all gateways stand.
    async fn figures(&self, drift: DriftRule) -> Result<Figures>;
    /// Whether the log of a gateway knows an artifact.
    async fn has_artifact(&self, gateway_id: &str, artifact_id: &str) -> Result<bool>;
    /// Whether the log of a gateway has this event.
    async fn has_event(&self, gateway_id: &str, event_id: &str) -> Result<bool>;
    /// What of operators' events a gateway's log holds, and whether it has a key already.
    async fn held(&self, gateway_id: &str, key: &str) -> Result<Held>;
    /// What was delivered, and what was not.
    async fn deliveries(&self, scope: &Scope) -> Result<Deliveries>;
}

/// Every store over one database.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    pub(crate) gateways: Arc<dyn GatewayStore>,
    pub(crate) tokens: Arc<dyn TokenStore>,
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) connections: Arc<dyn ConnectionStore>,
    pub(crate) instances: Arc<dyn InstanceStore>,
    pub(crate) operations: Arc<dyn OperationsStore>,
    pub(crate) reports: Arc<dyn ReportStore>,
    pub(crate) imports: Arc<dyn ImportStore>,
    pub(crate) retention: Arc<dyn RetentionStore>,
    pub(crate) retries: Arc<dyn RetryStore>,
    pub(crate) reconcile: Arc<dyn ReconcileStore>,
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
                Self {
                    gateways: store.clone(),
                    tokens: store.clone(),
                    events: store.clone(),
                    connections: store.clone(),
                    instances: store.clone(),
                    operations: store.clone(),
                    imports: store.clone(),
                    retention: store.clone(),
                    retries: store.clone(),
                    reconcile: store.clone(),
                    reports: store,
                    outbox,
                }
            }
            Database::Postgres(pool) => {
                let store = Arc::new(SqlStore { pool: pool.clone() });
                let outbox = OutboxEntries(Arc::new(pool.clone()));
                Self {
                    gateways: store.clone(),
                    tokens: store.clone(),
                    events: store.clone(),
                    connections: store.clone(),
                    instances: store.clone(),
                    operations: store.clone(),
                    imports: store.clone(),
                    retention: store.clone(),
                    retries: store.clone(),
                    reconcile: store.clone(),
                    reports: store,
                    outbox,
                }
            }
        }
    }
}

/// Appends `column IN ($n, …)` to a dynamic query.
macro_rules! push_in {
    ($query:expr, $column:expr, $texts:expr) => {{
        $query.push($column).push(" IN (");
        for (at, text) in $texts.into_iter().enumerate() {
            if at > 0 {
                $query.push(", ");
            }
            $query.push_bind::<&str>(text.as_ref());
        }
        $query.push(")");
    }};
}
use push_in;
