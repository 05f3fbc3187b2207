//! gateway-service owns the gateway registry, the gateways' tokens, their live links and their event logs.
//!
//! A gateway's log is the truth about what it is told: events come in over gRPC, in one transaction with
//! their revisions, and leave over the link until the gateway acknowledges them. What ought to run where is
//! project-service's to know.

mod config;
mod domain;
mod events;
mod grpc;
mod link;
mod store;

use std::sync::Arc;

use proto::gateway::{
    delivery_service_server::DeliveryServiceServer,
    gateway_internal_service_server::GatewayInternalServiceServer, gateway_link_server::GatewayLinkServer,
    gateway_operations_service_server::GatewayOperationsServiceServer,
    gateway_service_server::GatewayServiceServer,
};
use service_kit::{
    Clock, Ids,
    admin::Readiness,
    bus::{self, Announcer, Bus},
    client::Upstream,
    db::Database,
    idempotency::Keys,
    outbox::{Nudge, Relay},
    server::{GrpcServer, Listeners, Running, max_request_bytes},
    shutdown::Tasks,
    tls::Identity,
    token::{RemoteAuthority, Verifier},
};
use tonic::service::Routes;

pub use config::{Config, LinkConfig, Upstreams};

use crate::{
    domain::{
        access::Access, acks, acks::Acks, artifacts::Artifacts, figures, gateways::Gateways,
        imports::Imports, journal::Journal, log::Log, manifests::Manifests, operations::Operations,
        reconcile::Reconciliation, retention::Retention, retries::Retries, tokens::Tokens, web,
    },
    grpc::{
        delivery::DeliveryApi, gateways::GatewayApi, internal::InternalApi, link::LinkApi,
        operations::OperationsApi, project::ProjectClient,
    },
    link::{Hub, Parts, Reports},
    store::Stores,
};

/// The service's name, also in its certificate.
pub const NAME: &str = "gateway-service";

/// The default configuration, TOML with comments.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// How much longer free JSON may be as protobuf: `0,` is two bytes there and eleven here.
const EXPANDED: usize = 6;

/// Starts the service on bound sockets.
pub async fn start(config: Config, listeners: Listeners) -> anyhow::Result<Running> {
    start_at(config, listeners, Clock::system()).await
}

/// The same with another clock, for tests.
pub async fn start_at(config: Config, listeners: Listeners, clock: Clock) -> anyhow::Result<Running> {
    config.link.check()?;
    let tasks = Tasks::new();
    let bus = bus::connect(&config.bus, &tasks)?;
    let identity = Identity::load(&config.tls, NAME)?;
    let database = Database::open(&config.database, &sqlx::migrate!()).await?;
    let auth = Upstream::new(&identity, "auth-service", &config.upstreams.auth)?;
    let project = Upstream::new(&identity, "project-service", &config.upstreams.project)?;
    let verifier = Verifier::new(config.token, Arc::new(RemoteAuthority::new(auth)), clock.clone());
    verifier.follow(&tasks);
    let keys = Keys::start(&database, config.idempotency, clock.clone(), &tasks)?;
    let parts = Service {
        link: config.link,
        stores: Stores::new(&database),
        project: ProjectClient::new(project),
        bus,
        clock,
        tasks: tasks.clone(),
    };
    let server = GrpcServer {
        name: NAME,
        identity,
        verifier,
        routes: keys.guard(parts.routes().await?),
        tasks,
        readiness: Readiness::new().with_database(&database),
        reflection: config.reflection,
    };
    server.serve(listeners).await
}

/// What the service is put together from.
struct Service {
    link: LinkConfig,
    stores: Stores,
    project: ProjectClient,
    bus: Arc<dyn Bus>,
    clock: Clock,
    tasks: Tasks,
}

impl Service {
    async fn routes(self) -> anyhow::Result<Routes> {
        let Self { link, stores, project, bus, clock, tasks } = self;
        let (ids, web) = (Ids::new(clock.clone()), Nudge::default());
        // What is reported is shown too.
        let reports = Nudge::with(&web);
        let project = Arc::new(project);
        let entries = stores.outbox.0.clone();
        Relay::spawn(&tasks, acks::REPORTS, entries.clone(), project.clone(), reports.clone());
        Relay::spawn(&tasks, web::TOPIC, entries, Arc::new(Announcer::new(bus.clone())), web.clone());
        let retention =
            Retention { store: stores.retention.clone(), clock: clock.clone(), hours: link.retention_hours };
        retention.start(&tasks);
        let journal = Journal::start(stores.events.clone(), clock.clone(), &tasks);
        let hub = Hub::new(Parts {
            config: link,
            events: stores.events.clone(),
            journal: journal.clone(),
            connections: stores.connections.clone(),
            instances: stores.instances.clone(),
            tokens: stores.tokens.clone(),
            acks: Acks { journal, reports: reports.clone(), clock: clock.clone() },
            bus: bus.clone(),
            reports: reports.clone(),
            web,
            clock: clock.clone(),
            ids: ids.clone(),
            tasks: tasks.clone(),
        });
        hub.start().await?;
        let inbox = Reports::new(stores.reports, bus.clone(), &hub);
        inbox.start().await?;
        let reconciliation = Reconciliation {
            store: stores.reconcile.clone(),
            wanted: project.clone(),
            bus: bus.clone(),
            clock: clock.clone(),
            link,
            suspects: Arc::default(),
        };
        reconciliation.clone().start(hub.clone(), &tasks);
        let retries = Retries { store: stores.retries, bus: bus.clone(), clock: clock.clone(), link };
        retries.start(hub.clone(), &tasks);
        let gateways = Gateways {
            store: stores.gateways.clone(),
            access: Access::new(project.clone()),
            hub: hub.clone(),
            reports,
            clock: clock.clone(),
            ids: ids.clone(),
        };
        let tokens = Tokens {
            store: stores.tokens,
            gateways: gateways.clone(),
            hub: hub.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
        };
        let registry = GatewayApi { gateways: gateways.clone(), tokens: tokens.clone(), hub: hub.clone() };
        let log =
            Log { store: stores.events.clone(), hub: hub.clone(), bus: bus.clone(), clock: clock.clone() };
        figures::follow(&tasks, stores.operations.clone(), link, clock.clone());
        let operations = Operations {
            store: stores.operations,
            connections: stores.connections,
            gateways: gateways.clone(),
            log: log.clone(),
            reconciliation,
            bus,
            link,
            clock: clock.clone(),
            ids,
        };
        let delivery = DeliveryApi { gateways, log, hub: hub.clone() };
        let internal = InternalApi {
            tokens: tokens.clone(),
            imports: Imports::new(project.clone(), stores.imports, clock.clone()),
            artifacts: Artifacts { desired: project, log: stores.events },
            manifests: Manifests { store: stores.gateways },
        };
        let limit = |service: &str| max_request_bytes(&format!("tollgate.gateway.v1.{service}"));
        Ok(Routes::new(
            GatewayServiceServer::new(registry).max_decoding_message_size(limit("GatewayService")),
        )
        .add_service(DeliveryServiceServer::new(delivery).max_decoding_message_size(limit("DeliveryService")))
        .add_service(
            GatewayOperationsServiceServer::new(OperationsApi { operations })
                .max_decoding_message_size(EXPANDED * limit("GatewayOperationsService")),
        )
        .add_service(
            GatewayInternalServiceServer::new(internal)
                .max_decoding_message_size(limit("GatewayInternalService")),
        )
        .add_service(
            GatewayLinkServer::new(LinkApi { tokens, hub, reports: inbox })
                .max_decoding_message_size(limit("GatewayLink")),
        ))
    }
}
