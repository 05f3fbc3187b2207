//! Who somebody is: accounts, passwords, sessions, and the keys that sign access tokens.
//!
//! It never knows what somebody may touch: organizations and roles are project-service's.

mod config;
mod domain;
mod grpc;
mod store;

use std::sync::Arc;

use anyhow::Context as _;
use proto::auth::{auth_service_server::AuthServiceServer, key_service_server::KeyServiceServer};
use service_kit::{
    Clock, Ids,
    admin::Readiness,
    db::Database,
    seal::Sealer,
    server::{GrpcServer, Listeners, Running, max_request_bytes},
    shutdown::Tasks,
    tls::Identity,
    token::Verifier,
};
use tonic::service::Routes;

pub use config::{Config, KeysConfig, PasswordConfig, SessionConfig, ThrottleConfig};

use domain::{
    accounts::Accounts,
    hashing::Hasher,
    keys::KeyRing,
    sessions::{Deps, Sessions},
};

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
    let identity = Identity::load(&config.tls, NAME)?;
    let database = Database::open(&config.database, &sqlx::migrate!()).await?;
    let stores = store::open(&database);
    let file = &config.keys.sealing_key_file;
    let sealer =
        Sealer::load_or_create(file).with_context(|| format!("keys.sealing_key_file {}", file.display()))?;
    let keys = Arc::new(KeyRing::load(&*stores.keys, &sealer, &clock).await?);
    let ids = Ids::new(clock.clone());
    let hasher = Arc::new(Hasher::new(&config.password)?);

    let tasks = Tasks::new();
    domain::pruning::spawn(&tasks, stores.clone(), &config, clock.clone());
    let verifier = Verifier::new(config.token.clone(), keys.clone(), clock.clone());
    let sessions = Sessions::new(Deps {
        stores: stores.clone(),
        keys: keys.clone(),
        hasher: hasher.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        token: config.token,
        session: config.session,
        throttle: config.throttle,
    });
    let accounts = Accounts::new(stores.accounts, hasher, clock, ids, config.password.min_length);
    let api = grpc::AuthApi { accounts, sessions };
    let routes = Routes::new(
        AuthServiceServer::new(api)
            .max_decoding_message_size(max_request_bytes("tollgate.auth.v1.AuthService")),
    )
    .add_service(
        KeyServiceServer::new(grpc::KeyApi { keys })
            .max_decoding_message_size(max_request_bytes("tollgate.auth.v1.KeyService")),
    );
    let readiness = Readiness::new().with_database(&database);
    let server = GrpcServer {
        name: NAME,
        identity,
        verifier,
        routes,
        tasks,
        readiness,
        reflection: config.reflection,
    };
    server.serve(listeners).await
}
