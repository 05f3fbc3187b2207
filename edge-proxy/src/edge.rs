//! What every request needs: the upstreams, the verifier, the route table, the limits.

use std::sync::Arc;

use proto::{Access, MethodPolicy, policy::DEFAULT_MAX_REQUEST_BYTES};
use service_kit::{
    Clock, Error, Ids, Result,
    admin::Readiness,
    client::Upstream,
    shutdown::Tasks,
    tls::Identity,
    token::{RemoteAuthority, Verifier},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::{
    Config, NAME, UpstreamsConfig,
    client::TrustedProxies,
    exchange::Exchange,
    health::Health,
    rate::Limits,
    routes::{self, RouteTable},
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
    /// Who is believed about addresses.
    pub(crate) trusted_proxies: TrustedProxies,
    /// Access tokens for opaque ones.
    pub(crate) exchange: Exchange,
    /// How often an address may do what.
    pub(crate) limits: Limits,
    /// Open sockets of gateways.
    pub(crate) gateways: Arc<Crowd>,
    pub(crate) health: Health,
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
    /// The same once more, over connections of their own: what streams have not read holds up no call.
    streams: [Upstream; 3],
}

impl Edge {
    pub(crate) fn new(config: Config, tasks: Tasks, clock: Clock) -> anyhow::Result<Self> {
        let link = &config.gateway_link;
        anyhow::ensure!(
            link.dead_seconds > link.ping_seconds,
            "gateway_link.dead_seconds must be more than ping_seconds: gateways only answer pings"
        );
        let identity = Identity::load(&config.tls, NAME)?;
        let upstreams = Upstreams::new(&identity, &config.upstreams)?;
        let authority = RemoteAuthority::new(upstreams.auth.clone());
        let verifier = Verifier::new(config.token.clone(), Arc::new(authority), clock.clone());
        verifier.follow(&tasks);
        Ok(Self {
            verifier,
            ids: Ids::new(clock.clone()),
            routes: routes::of_contract()?,
            trusted_proxies: TrustedProxies::read(&config.trusted_proxies)?,
            exchange: Exchange::new(upstreams.auth.clone(), clock.clone()),
            limits: Limits::new(&config.limits, &clock),
            gateways: Arc::default(),
            health: Health::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
            local: local(config.reflection, &tasks)?,
            upstreams,
            config,
            tasks,
        })
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

    /// Ready when every upstream answers.
    pub(crate) fn readiness(&self) -> Readiness {
        self.upstreams.all().into_iter().fold(Readiness::new(), |readiness, upstream| {
            let upstream = upstream.clone();
            readiness.with(upstream.service(), move || {
                let upstream = upstream.clone();
                Box::pin(async move { upstream.check().await })
            })
        })
    }
}

impl Upstreams {
    fn new(identity: &Identity, config: &UpstreamsConfig) -> anyhow::Result<Self> {
        let pool = |service, at| Upstream::new(identity, service, at);
        let streams = |service, at| Upstream::for_streams(identity, service, at);
        Ok(Self {
            auth: pool("auth-service", &config.auth)?,
            project: pool("project-service", &config.project)?,
            gateway: pool("gateway-service", &config.gateway)?,
            streams: [
                streams("auth-service", &config.auth)?,
                streams("project-service", &config.project)?,
                streams("gateway-service", &config.gateway)?,
            ],
        })
    }

    pub(crate) fn all(&self) -> [&Upstream; 3] {
        [&self.auth, &self.project, &self.gateway]
    }

    /// The service that owns a method, by its package: `tollgate.auth.v1` is auth-service's.
    pub(crate) fn of(&self, method: &MethodPolicy) -> Option<&Upstream> {
        let owner = method.package().strip_prefix("tollgate.")?.split('.').next()?;
        let streams = method.descriptor.is_client_streaming() || method.descriptor.is_server_streaming();
        let pools = if streams { self.streams.each_ref() } else { self.all() };
        pools.into_iter().find(|upstream| upstream.service().strip_suffix("-service") == Some(owner))
    }
}

/// `grpc.health.v1`, and reflection in development.
fn local(reflection: bool, tasks: &Tasks) -> anyhow::Result<Routes> {
    let (health, service) = tonic_health::server::health_reporter();
    let stop = tasks.stopping();
    tasks.spawn("health", async move {
        health.set_service_status("", ServingStatus::Serving).await;
        stop.cancelled().await;
        health.set_service_status("", ServingStatus::NotServing).await;
        Ok(())
    });
    let mut routes = Routes::new(service);
    if reflection {
        routes = routes.add_service(service_kit::server::reflection(proto::DESCRIPTORS)?);
    }
    Ok(routes.prepare())
}
