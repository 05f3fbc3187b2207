//! SQL of what leaves for the bus when something changes: hints for whoever keeps what was read before.

use async_trait::async_trait;
use serde_json::json;
use service_kit::{bus::announcement, outbox::Append as _};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

/// The outbox topic of hints.
pub(crate) const TOPIC: &str = "changes";

/// What is another than it was. The subject on the bus is `changed.<kind>.<id>`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Changed<'a> {
    /// An organization, or which projects it has.
    Organization(&'a str),
    /// A project, or which APIs it has.
    Project(&'a str),
    /// An API, or which revisions it has.
    Api(&'a str),
    /// What a user may see.
    User(&'a str),
}

impl Changed<'_> {
    fn subject(self) -> String {
        let (kind, id) = match self {
            Self::Organization(id) => ("organization", id),
            Self::Project(id) => ("project", id),
            Self::Api(id) => ("api", id),
            Self::User(id) => ("user", id),
        };
        format!("changed.{kind}.{id}")
    }
}

/// Tells of changes within the transaction that makes them.
#[async_trait]
pub(super) trait Tell {
    /// The last that a transaction does: the topic stays locked until it ends.
    async fn tell(&mut self, changes: &[Changed<'_>]) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Tell for Connection {
    async fn tell(&mut self, changes: &[Changed<'_>]) -> sqlx::Result<()> {
        let entry = |change: &Changed<'_>| {
            let subject = change.subject();
            (subject.clone(), announcement(subject, json!({})))
        };
        self.append_all(TOPIC, changes.iter().map(entry).collect()).await
    }
}
