//! What every request needs: the upstreams, the verifier, the route table, the limits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use proto::{Access, MethodPolicy, policy::DEFAULT_MAX_REQUEST_BYTES};
use service_kit::{
    Clock, Error, Ids, Result,
    admin::Readiness,
    bus::{self, Bus},
    shutdown::Tasks,
    tls::Identity,
    token::{RemoteAuthority, Verifier},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower_http::cors::CorsLayer;

use crate::{
    Config, NAME, UpstreamsConfig,
    cache::{self, Cache},
    composite::{self, Composites},
    exchange::Exchange,
    grpc,
    health::Health,
    layers::{cors, trace::Figures},
    listener::Addresses,
    live::{Fixed, Live},
    load::Load,
    rate::Shared,
    routes::{self, RouteTable},
    upstream::Upstream,
    ws::Crowd,
};

/// How many large bodies of gateways may be under way at once.
const LARGE_BODIES: usize = 8;

/// What every request needs. One for the process.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) config: Config,
    pub(crate) upstreams: Upstreams,
    pub(crate) verifier: Verifier,
    pub(crate) ids: Ids,
    pub(crate) routes: RouteTable,
    /// Reads that are made of others.
    pub(crate) composites: Composites,
    /// What services can take.
    pub(crate) load: Arc<Load>,
    /// What a reload replaces.
    pub(crate) live: Arc<ArcSwap<Live>>,
    /// What it does not.
    pub(crate) fixed: Fixed,
    /// Which pages may call.
    pub(crate) cors: CorsLayer,
    /// What is measured of requests.
    pub(crate) figures: Arc<Figures>,
    /// Access tokens for opaque ones.
    pub(crate) exchange: Exchange,
    /// Who has how many connections.
    pub(crate) addresses: Arc<Addresses>,
    /// Open sockets of gateways.
    pub(crate) gateways: Arc<Crowd>,
    pub(crate) health: Health,
    /// Answers that are kept.
    pub(crate) cache: Arc<Cache>,
    /// Who says what changed.
    bus: Arc<dyn Bus>,
    /// Room for large bodies of gateways.
    large_bodies: Semaphore,
    pub(crate) tasks: Tasks,
    /// Health and reflection, which the edge answers itself.
    pub(crate) local: Routes,
}

/// The services behind the edge.
#[derive(Debug)]
pub(crate) struct Upstreams {
    pub(crate) auth: Upstream,
    pub(crate) project: Upstream,
    pub(crate) gateway: Upstream,
}

impl Edge {
    pub(crate) fn new(config: Config, tasks: Tasks, clock: Clock) -> anyhow::Result<Self> {
        let link = &config.gateway_link;
        anyhow::ensure!(
            link.dead_seconds > link.ping_seconds,
            "gateway_link.dead_seconds must be more than ping_seconds: gateways only answer pings"
        );
        config.sockets.check()?;
        let shared = Shared::start(&config.limits.shared, &tasks)?;
        let fixed = Fixed { clock: clock.clone(), shared };
        let identity = Identity::load(&config.tls, NAME)?;
        let upstreams = Upstreams::start(&identity, &config.upstreams, &tasks)?;
        let authority = RemoteAuthority::new(upstreams.auth.clone());
        let verifier = Verifier::new(config.token.clone(), Arc::new(authority), clock.clone());
        verifier.follow(&tasks);
        let routes = routes::of_contract()?;
        let live = Arc::new(ArcSwap::from_pointee(Live::new(&config, &fixed, None)?));
        let load = Arc::new(Load::new(&config.concurrency, &upstreams.all().map(Upstream::service))?);
        load.show_at_scrapes();
        Ok(Self {
            cors: cors::rules(&live),
            live,
            figures: Arc::default(),
            verifier,
            ids: Ids::new(clock.clone()),
            composites: composite::check(&routes)?,
            routes,
            load,
            fixed,
            exchange: Exchange::new(upstreams.auth.clone(), clock.clone()),
            addresses: Arc::default(),
            gateways: Arc::default(),
            health: Health::default(),
            cache: Arc::new(Cache::new(&config.cache, clock.clone())?),
            bus: bus::connect(&config.bus, &tasks)?,
            large_bodies: Semaphore::new(LARGE_BODIES),
            local: local(config.reflection, &tasks)?,
            upstreams,
            config,
            tasks,
        })
    }

    /// Listens to what makes kept answers wrong.
    pub(crate) async fn follow_changes(&self) -> anyhow::Result<()> {
        cache::follow(&self.bus, self.cache.changes(), &self.tasks).await
    }

    /// Room for the body of a call. Large ones of gateways are few at a time: whether a gateway's token is good only its
    /// service knows, once it has the whole call, and until then anybody could fill our memory and its.
    pub(crate) fn room(&self, policy: &MethodPolicy) -> Result<Option<SemaphorePermit<'_>>> {
        if policy.access != Access::Gateway || policy.max_request_bytes <= DEFAULT_MAX_REQUEST_BYTES {
            return Ok(None);
        }
        let full = |error| Error::unavailable("too many large bodies are under way", error);
        self.large_bodies.try_acquire().map(Some).map_err(full)
    }

    /// Ready once every service has answered, and from then on as long as one does. An edge that a balancer takes out
    /// because one service is down takes down the others with it, and the answers that it keeps.
    pub(crate) fn readiness(&self) -> Readiness {
        let services = self.upstreams.all().map(|upstream| (upstream.clone(), AtomicBool::new(false)));
        let services = Arc::new(services);
        Readiness::new().with("services", move || {
            let services = services.clone();
            Box::pin(async move {
                let checks = services.iter().map(async |(upstream, was_there)| {
                    let outcome = upstream.check().await;
                    was_there.fetch_or(outcome.is_ok(), Ordering::Relaxed);
                    let known = was_there.load(Ordering::Relaxed);
                    outcome.err().map(|error| (known, format!("{}: {error:#}", upstream.service())))
                });
                let down: Vec<_> = join_all(checks).await.into_iter().flatten().collect();
                if down.len() < services.len() && down.iter().all(|(known, _)| *known) {
                    return Ok(());
                }
                let down: Vec<String> = down.into_iter().map(|(_, why)| why).collect();
                anyhow::bail!("{}", down.join(", "))
            })
        })
    }
}

impl Upstreams {
    fn start(identity: &Identity, config: &UpstreamsConfig, tasks: &Tasks) -> anyhow::Result<Self> {
        config.check()?;
        let start = |name, at| Upstream::start(identity, name, at, &config.resilience, tasks);
        Ok(Self {
            auth: start("auth-service", &config.auth)?,
            project: start("project-service", &config.project)?,
            gateway: start("gateway-service", &config.gateway)?,
        })
    }

    pub(crate) fn all(&self) -> [&Upstream; 3] {
        [&self.auth, &self.project, &self.gateway]
    }

    /// The service that owns a method, by its package: `tollgate.auth.v1` is auth-service's.
    pub(crate) fn of(&self, method: &MethodPolicy) -> Option<&Upstream> {
        let owner = method.package().strip_prefix("tollgate.")?.split('.').next()?;
        self.all().into_iter().find(|upstream| upstream.service().strip_suffix("-service") == Some(owner))
    }
}

/// `grpc.health.v1`, and reflection in development.
fn local(reflection: bool, tasks: &Tasks) -> anyhow::Result<Routes> {
    let health = HealthServer::new(grpc::health::Own::new(tasks.stopping()));
    let mut routes = Routes::new(health);
    if reflection {
        routes = routes
            .add_service(service_kit::server::reflection(proto::DESCRIPTORS)?)
            .add_service(service_kit::server::reflection_v1alpha(proto::DESCRIPTORS)?);
    }
    Ok(routes.prepare())
}
