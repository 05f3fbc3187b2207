//! Who somebody is: accounts, passwords, sessions, and the keys that sign access tokens.
//!
//! It never knows what somebody may touch: organizations and roles are project-service's.

pub mod cli;
mod config;
mod delivery;
mod domain;
mod grpc;
mod store;

use std::sync::Arc;

use anyhow::Context as _;
use service_kit::{
    Clock, Ids,
    admin::Readiness,
    client::Upstream,
    db::Database,
    idempotency::Keys,
    outbox::{Nudge, Relay},
    seal::Sealer,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    tls::Identity,
    token::Verifier,
};

pub use config::{
    AccountConfig, AuditConfig, Config, KeysConfig, MailConfig, PasskeyConfig, PasswordConfig,
    ProviderConfig, SessionConfig, ThrottleConfig, UpstreamsConfig,
};

pub use domain::keys::{KeyInfo, KeyState, Revoked, SigningKeys};

use domain::{
    Shared,
    audit::Journal,
    audit_log::Exporter,
    hashing::Hasher,
    issuer::Issuer,
    keys::KeyRing,
    mail::Mailroom,
    password::Rules as PasswordRules,
    revocations::RevocationFeed,
    service_accounts::{self, Memberships},
};
use grpc::{identity::LocalAuthority, project::RemoteOrganizations};

/// The name of the service, in certificates, logs and health answers.
pub const NAME: &str = "auth-service";

/// The default configuration: TOML, every setting with a comment.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Starts the service on sockets that are bound already.
pub async fn start(config: Config, listeners: Listeners) -> anyhow::Result<Running> {
    start_at(config, listeners, Clock::system()).await
}

/// As [`start`], in the time of `clock`: tests move it.
pub async fn start_at(config: Config, listeners: Listeners, clock: Clock) -> anyhow::Result<Running> {
    config.check()?;
    let reflection = config.reflection;
    let identity = Identity::load(&config.tls, NAME)?;
    let database = Database::open(&config.database, &sqlx::migrate!()).await?;
    let stores = store::open(&database);
    let file = &config.keys.sealing_key_file;
    let sealer =
        Sealer::load_or_create(file).with_context(|| format!("keys.sealing_key_file {}", file.display()))?;
    let ids = Ids::new(clock.clone());
    let journal = Journal::new(clock.clone(), ids.clone());
    let keys = SigningKeys::new(&stores.keys, &sealer, &clock, &journal, &config.keys);
    let keys = Arc::new(KeyRing::load(keys).await?);
    let tasks = Tasks::new();
    let callers = Keys::start(&database, config.idempotency, clock.clone(), &tasks)?;
    domain::pruning::spawn(&tasks, stores.clone(), &config, journal.clone(), clock.clone());
    let revocations = stores.revocations.clone();
    let feed = RevocationFeed::spawn(&tasks, revocations, keys.clone(), clock.clone()).await?;
    Exporter::new(&config, stores.audit_log.clone(), sealer.clone(), clock.clone()).spawn(&tasks);

    let authority = LocalAuthority { keys: keys.clone(), feed: feed.clone() };
    let verifier = Verifier::new(config.token.clone(), Arc::new(authority), clock.clone());
    verifier.follow(&tasks);
    let project = Upstream::new(&identity, "project-service", &config.upstreams.project)?;
    let shared = Shared {
        organizations: Arc::new(RemoteOrganizations::new(project)),
        hasher: Arc::new(Hasher::new(&config.password)?),
        journal,
        issuer: Issuer::new(keys.clone(), config.token.clone(), clock.clone(), ids.clone()),
        mailroom: Mailroom::new(sealer.clone(), ids.clone()),
        password_rules: Arc::new(PasswordRules::load(&config)?),
        mail_nudge: Nudge::default(),
        membership_nudge: Nudge::default(),
        config: Arc::new(config),
        stores,
        clock,
        ids,
        sealer,
    };
    delivery::spawn(&tasks, &shared, store::mail::queue(&database))?;
    let memberships = Memberships {
        store: shared.stores.service_accounts.clone(),
        organizations: shared.organizations.clone(),
    };
    let nudge = shared.membership_nudge.clone();
    let entries = store::outbox(&database);
    Relay::spawn(&tasks, service_accounts::TOPIC, entries, Arc::new(memberships), nudge);
    let routes = callers.guard(grpc::routes(&shared, keys, feed, verifier.clone())?);
    let readiness = Readiness::new().with_database(&database);
    let server = GrpcServer { name: NAME, identity, verifier, routes, tasks, readiness, reflection };
    server.serve(listeners).await
}

/// The signing keys in the database of a configuration, for the command line: a service that runs on it
/// notices what is changed.
pub async fn signing_keys(config: &Config, clock: Clock) -> anyhow::Result<SigningKeys> {
    config.check()?;
    let stores = store::open(&Database::open_existing(&config.database, &sqlx::migrate!()).await?);
    let file = &config.keys.sealing_key_file;
    // Keys that are sealed with a new one would be of no use to the service.
    anyhow::ensure!(file.is_file(), "there is no keys.sealing_key_file {}", file.display());
    let sealer =
        Sealer::load_or_create(file).with_context(|| format!("keys.sealing_key_file {}", file.display()))?;
    let journal = Journal::new(clock.clone(), Ids::new(clock.clone()));
    Ok(SigningKeys::new(&stores.keys, &sealer, &clock, &journal, &config.keys))
}
