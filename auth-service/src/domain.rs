//! The rules: what an account, a password, a session and a signing key are. No gRPC and no SQL here.

pub(crate) mod accounts;
pub(crate) mod audit;
pub(crate) mod audit_log;
pub(crate) mod devices;
pub(crate) mod email;
pub(crate) mod hashing;
pub(crate) mod issuer;
pub(crate) mod keys;
pub(crate) mod known_devices;
pub(crate) mod logins;
pub(crate) mod mail;
pub(crate) mod opaque_tokens;
pub(crate) mod organizations;
pub(crate) mod password;
pub(crate) mod passwords;
pub(crate) mod pending;
pub(crate) mod providers;
pub(crate) mod pruning;
pub(crate) mod revocations;
pub(crate) mod second_factors;
pub(crate) mod secret;
pub(crate) mod service_accounts;
pub(crate) mod sessions;
pub(crate) mod throttle;

use std::sync::Arc;

use service_kit::{Clock, Ids, outbox::Nudge, seal::Sealer};

use crate::{config::Config, store::Stores};

/// What every part of the domain is made with. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) stores: Stores,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) journal: audit::Journal,
    /// Seals what must be read again: private keys, one-time password secrets, mail that waits.
    pub(crate) sealer: Sealer,
    pub(crate) hasher: Arc<hashing::Hasher>,
    pub(crate) password_rules: Arc<password::Rules>,
    pub(crate) issuer: issuer::Issuer,
    pub(crate) organizations: Arc<dyn organizations::Organizations>,
    pub(crate) mailroom: mail::Mailroom,
    /// Told after a transaction that put mail into the outbox.
    pub(crate) mail_nudge: Nudge,
    /// Told after a transaction that changed a service account.
    pub(crate) membership_nudge: Nudge,
}
