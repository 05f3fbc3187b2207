//! Where everything is kept: SQL for SQLite and PostgreSQL, and no rule.

pub(crate) mod accounts;
pub(crate) mod keys;
pub(crate) mod sessions;
pub(crate) mod throttles;

use std::sync::Arc;

use service_kit::db::Database;

/// The stores of one database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    pub(crate) accounts: Arc<dyn accounts::AccountStore>,
    pub(crate) keys: Arc<dyn keys::KeyStore>,
    pub(crate) sessions: Arc<dyn sessions::SessionStore>,
    pub(crate) throttles: Arc<dyn throttles::ThrottleStore>,
}

/// Every store, over one kind of pool.
#[derive(Debug, Clone)]
pub(crate) struct SqlStore<P> {
    pool: P,
}

/// The stores of an open database.
pub(crate) fn open(database: &Database) -> Stores {
    match database {
        Database::Sqlite(pool) => over(SqlStore { pool: pool.clone() }),
        Database::Postgres(pool) => over(SqlStore { pool: pool.clone() }),
    }
}

fn over<S>(store: S) -> Stores
where
    S: accounts::AccountStore + keys::KeyStore + sessions::SessionStore + throttles::ThrottleStore + 'static,
{
    let store = Arc::new(store);
    Stores { accounts: store.clone(), keys: store.clone(), sessions: store.clone(), throttles: store }
}
