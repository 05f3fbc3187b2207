//! What the service keeps, in SQLite or PostgreSQL. All SQL of the service is here; no rule is.
//!
//! One method is one transaction. SQL is written once and compiled for both pools.

/// Appends ` column IN ($n, …)` to a dynamic query; of no ids, what matches nothing.
macro_rules! push_in {
    ($query:expr, $column:literal, $ids:expr) => {{
        $query.push(concat!($column, " IN ("));
        let mut ids = $query.separated(", ");
        for id in $ids {
            ids.push_bind(id.as_str());
        }
        $query.push(")");
    }};
}

pub mod apis;
mod changes;
pub mod deployments;
pub mod imports;
pub mod organizations;
pub mod projects;
pub mod revisions;

use std::sync::Arc;

use service_kit::{
    db::Database,
    outbox::{Entries, Nudge},
};

pub(crate) use self::changes::TOPIC as CHANGES;
use self::{
    apis::ApiStore, deployments::DeploymentStore, imports::ImportStore, organizations::OrganizationStore,
    projects::ProjectStore, revisions::RevisionStore,
};
use crate::domain::access::Role;

/// Brings a database of this service up to date.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The stores of one database.
#[derive(Debug, Clone)]
pub struct Stores {
    /// Organizations and memberships.
    pub organizations: Arc<dyn OrganizationStore>,
    /// Projects.
    pub projects: Arc<dyn ProjectStore>,
    /// APIs.
    pub apis: Arc<dyn ApiStore>,
    /// Revisions.
    pub revisions: Arc<dyn RevisionStore>,
    /// Deployments.
    pub deployments: Arc<dyn DeploymentStore>,
    /// Imports from gateways.
    pub imports: Arc<dyn ImportStore>,
    /// Wakes who tells of changes.
    pub changes: Nudge,
}

/// A store over one kind of pool.
#[derive(Debug, Clone)]
pub(crate) struct SqlStore<P> {
    pub(crate) pool: P,
    /// Wakes who tells of changes, once they are committed.
    pub(crate) changes: Nudge,
}

impl Stores {
    /// The stores of an open database.
    pub fn new(database: &Database) -> Self {
        let changes = Nudge::default();
        match database {
            Database::Sqlite(pool) => {
                Self::over(SqlStore { pool: pool.clone(), changes: changes.clone() }, changes)
            }
            Database::Postgres(pool) => {
                Self::over(SqlStore { pool: pool.clone(), changes: changes.clone() }, changes)
            }
        }
    }

    fn over<S>(store: S, changes: Nudge) -> Self
    where
        S: OrganizationStore + ProjectStore + ApiStore + RevisionStore + DeploymentStore + ImportStore,
    {
        let store = Arc::new(store);
        Self {
            organizations: store.clone(),
            projects: store.clone(),
            apis: store.clone(),
            revisions: store.clone(),
            deployments: store.clone(),
            imports: store,
            changes,
        }
    }
}

/// The outbox of an open database.
pub fn outbox(database: &Database) -> Arc<dyn Entries> {
    match database {
        Database::Sqlite(pool) => Arc::new(pool.clone()),
        Database::Postgres(pool) => Arc::new(pool.clone()),
    }
}

/// The names of at most five roles for `role IN ($a, $b, $c, $d, $e)`; an empty name matches nobody.
fn role_names(roles: &[Role]) -> [&'static str; Role::ALL.len()] {
    let mut names = [""; Role::ALL.len()];
    for (name, role) in names.iter_mut().zip(roles) {
        *name = role.as_str();
    }
    names
}

/// Whether a statement failed because a row that it refers to is not there, or is still referred to.
fn is_foreign_key_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_foreign_key_violation())
}
