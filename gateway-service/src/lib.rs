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
    gateway_service_server::GatewayServiceServer,
};
use service_kit::{
    Clock, Ids,
    admin::Readiness,
    bus::{Bus, MemoryBus},
    client::Upstream,
    db::Database,
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
        access::Access, acks, acks::Acks, artifacts::Artifacts, gateways::Gateways, log::Log,
        manifests::Manifests, tokens::Tokens,
    },
    grpc::{
        delivery::DeliveryApi, gateways::GatewayApi, internal::InternalApi, link::LinkApi,
        project::ProjectClient,
    },
    link::{Hub, Parts},
    store::Stores,
};

/// The service's name, also in its certificate.
pub const NAME: &str = "gateway-service";

/// The default configuration, TOML with comments.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Starts the service on bound sockets.
pub async fn start(config: Config, listeners: Listeners) -> anyhow::Result<Running> {
    let (clock, tasks) = (Clock::system(), Tasks::new());
    let identity = Identity::load(&config.tls, NAME)?;
    let database = Database::open(&config.database, &sqlx::migrate!()).await?;
    let auth = Upstream::new(&identity, "auth-service", &config.upstreams.auth)?;
    let project = Upstream::new(&identity, "project-service", &config.upstreams.project)?;
    let verifier = Verifier::new(config.token, Arc::new(RemoteAuthority::new(auth)), clock.clone());
    verifier.follow(&tasks);
    let parts = Service {
        link: config.link,
        stores: Stores::new(&database),
        project: ProjectClient::new(project),
        bus: MemoryBus::shared(),
        clock,
        tasks: tasks.clone(),
    };
    let server = GrpcServer {
        name: NAME,
        identity,
        verifier,
        routes: parts.routes().await?,
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
        let (ids, reports) = (Ids::new(clock.clone()), Nudge::default());
        let project = Arc::new(project);
        let entries = stores.outbox.0.clone();
        Relay::spawn(&tasks, acks::REPORTS, entries, project.clone(), reports.clone());
        let hub = Hub::new(Parts {
            config: link,
            events: stores.events.clone(),
            tokens: stores.tokens.clone(),
            acks: Acks { store: stores.events.clone(), reports: reports.clone(), clock: clock.clone() },
            reports: reports.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            tasks,
        });
        hub.start(&*bus).await?;
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
            ids,
        };
        let registry = GatewayApi { gateways: gateways.clone(), tokens: tokens.clone(), hub: hub.clone() };
        let delivery =
            DeliveryApi { gateways, log: Log { store: stores.events.clone(), bus, clock }, hub: hub.clone() };
        let internal = InternalApi {
            tokens: tokens.clone(),
            artifacts: Artifacts { desired: project, log: stores.events },
            manifests: Manifests { store: stores.gateways },
        };
        let limit = |service: &str| max_request_bytes(&format!("tollgate.gateway.v1.{service}"));
        Ok(Routes::new(
            GatewayServiceServer::new(registry).max_decoding_message_size(limit("GatewayService")),
        )
        .add_service(DeliveryServiceServer::new(delivery).max_decoding_message_size(limit("DeliveryService")))
        .add_service(
            GatewayInternalServiceServer::new(internal)
                .max_decoding_message_size(limit("GatewayInternalService")),
        )
        .add_service(
            GatewayLinkServer::new(LinkApi { tokens, hub }).max_decoding_message_size(limit("GatewayLink")),
        ))
    }
}
