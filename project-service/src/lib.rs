//! Organizations, members and roles, projects, APIs with all their parts, revisions, and deployments as
//! desired state. Answers every service that asks what a user may touch.
//!
//! It holds no identity (auth-service does) and no connection to a gateway (gateway-service does).

mod config;
pub mod domain;
mod grpc;
pub mod store;

use std::sync::Arc;

use service_kit::{
    Clock, Ids,
    admin::Readiness,
    bus::{self, Announcer},
    client::Upstream,
    db::Database,
    idempotency::Keys,
    outbox::{Nudge, Relay},
    seal::Sealer,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    tls::Identity,
    token::{RemoteAuthority, Verifier},
};
use tonic::service::Routes;

pub use crate::config::{Config, KeysConfig, UpstreamsConfig};
use crate::{
    domain::{
        access::Access,
        apis::Apis,
        deployments::{
            Deployments,
            events::{Delivery, TOPIC},
        },
        imports::Imports,
        organizations::Organizations,
        projects::Projects,
        revisions::Revisions,
    },
    grpc::{
        apis::ApiGrpc,
        deployments::{DeploymentGrpc, DesiredStateGrpc},
        gateways::RemoteGateways,
        organizations::{AccessGrpc, OrganizationGrpc},
        projects::ProjectGrpc,
    },
    store::Stores,
};

/// The service's name in certificates, logs and metrics.
pub const NAME: &str = "project-service";

/// The default settings, commented.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Starts the service on bound sockets.
pub async fn start(config: Config, listeners: Listeners) -> anyhow::Result<Running> {
    let identity = Identity::load(&config.tls, NAME)?;
    let sealer = Sealer::load_or_create(&config.keys.sealing_key_file)?;
    let database = Database::open(&config.database, &store::MIGRATIONS).await?;
    let stores = Stores::new(&database);
    let (clock, tasks) = (Clock::system(), Tasks::new());
    let ids = Ids::new(clock.clone());

    let access = Access::new(stores.organizations.clone());
    let organizations = Organizations::new(stores.organizations, access.clone(), clock.clone(), ids.clone());
    let projects = Projects::new(stores.projects, access.clone(), clock.clone(), ids.clone());
    let nudge = Nudge::default();
    let apis = Apis::new(
        stores.apis,
        projects.clone(),
        access.clone(),
        sealer,
        nudge.clone(),
        clock.clone(),
        ids.clone(),
    );
    let revisions = Revisions::new(apis.clone(), stores.revisions.clone(), clock.clone(), ids.clone());
    let upstream = Upstream::new(&identity, "gateway-service", &config.upstreams.gateway)?;
    let gateways = Arc::new(RemoteGateways::new(upstream));
    let deployments = Deployments::new(
        apis.clone(),
        stores.deployments.clone(),
        stores.revisions,
        gateways.clone(),
        nudge.clone(),
        (clock.clone(), ids.clone()),
    );
    let imports = Imports::new(stores.imports, clock.clone(), ids);
    let delivery = Arc::new(Delivery::new(gateways, stores.deployments));
    Relay::spawn(&tasks, TOPIC, store::outbox(&database), delivery, nudge);
    let announcer = Arc::new(Announcer::new(bus::connect(&config.bus, &tasks)?));
    Relay::spawn(&tasks, store::CHANGES, store::outbox(&database), announcer, stores.changes);

    let routes = Routes::new(OrganizationGrpc { organizations: organizations.clone() }.server())
        .add_service(AccessGrpc { access, organizations }.server())
        .add_service(ProjectGrpc { projects }.server())
        .add_service(ApiGrpc { apis, revisions }.server())
        .add_service(DeploymentGrpc { deployments: deployments.clone() }.server())
        .add_service(DesiredStateGrpc { deployments, imports }.server());
    let routes = Keys::start(&database, config.idempotency, clock.clone(), &tasks)?.guard(routes);
    let auth = Upstream::new(&identity, "auth-service", &config.upstreams.auth)?;
    let verifier = Verifier::new(config.token, Arc::new(RemoteAuthority::new(auth)), clock);
    verifier.follow(&tasks);
    let readiness = Readiness::new().with_database(&database);
    GrpcServer { name: NAME, identity, verifier, routes, tasks, readiness, reflection: config.reflection }
        .serve(listeners)
        .await
}
