//! Where everything is kept: SQL for SQLite and PostgreSQL, and no rule.

pub(crate) mod accounts;
pub(crate) mod audit;
pub(crate) mod audit_log;
pub(crate) mod devices;
pub(crate) mod keys;
pub(crate) mod known_devices;
pub(crate) mod mail;
pub(crate) mod opaque_tokens;
pub(crate) mod passwords;
pub(crate) mod pending;
pub(crate) mod providers;
pub(crate) mod revocations;
pub(crate) mod second_factors;
pub(crate) mod service_accounts;
pub(crate) mod sessions;
pub(crate) mod throttles;

use std::sync::Arc;

use service_kit::{db::Database, outbox::Entries};

/// The stores of one database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    pub(crate) accounts: Arc<dyn accounts::AccountStore>,
    pub(crate) audit_log: Arc<dyn audit_log::AuditLogStore>,
    pub(crate) devices: Arc<dyn devices::DeviceStore>,
    pub(crate) keys: Arc<dyn keys::KeyStore>,
    pub(crate) known_devices: Arc<dyn known_devices::KnownDeviceStore>,
    pub(crate) mail: Arc<dyn mail::MailStore>,
    pub(crate) opaque_tokens: Arc<dyn opaque_tokens::OpaqueTokenStore>,
    pub(crate) passwords: Arc<dyn passwords::PasswordStore>,
    pub(crate) pending: Arc<dyn pending::PendingStore>,
    pub(crate) providers: Arc<dyn providers::ProviderStore>,
    pub(crate) revocations: Arc<dyn revocations::RevocationStore>,
    pub(crate) second_factors: Arc<dyn second_factors::SecondFactorStore>,
    pub(crate) service_accounts: Arc<dyn service_accounts::ServiceAccountStore>,
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

/// The outbox of an open database.
pub(crate) fn outbox(database: &Database) -> Arc<dyn Entries> {
    match database {
        Database::Sqlite(pool) => Arc::new(pool.clone()),
        Database::Postgres(pool) => Arc::new(pool.clone()),
    }
}

fn over<S>(store: S) -> Stores
where
    S: accounts::AccountStore
        + audit_log::AuditLogStore
        + devices::DeviceStore
        + keys::KeyStore
        + known_devices::KnownDeviceStore
        + mail::MailStore
        + opaque_tokens::OpaqueTokenStore
        + passwords::PasswordStore
        + pending::PendingStore
        + providers::ProviderStore
        + revocations::RevocationStore
        + second_factors::SecondFactorStore
        + service_accounts::ServiceAccountStore
        + sessions::SessionStore
        + throttles::ThrottleStore
        + 'static,
{
    let store = Arc::new(store);
    Stores {
        accounts: store.clone(),
        audit_log: store.clone(),
        devices: store.clone(),
        keys: store.clone(),
        known_devices: store.clone(),
        mail: store.clone(),
        opaque_tokens: store.clone(),
        passwords: store.clone(),
        pending: store.clone(),
        providers: store.clone(),
        revocations: store.clone(),
        second_factors: store.clone(),
        service_accounts: store.clone(),
        sessions: store.clone(),
        throttles: store.clone(),
    }
}
