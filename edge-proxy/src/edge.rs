//! What every request needs: the upstreams, the verifier, the route table, the limits.

use std::sync::Arc;

use proto::MethodPolicy;
use service_kit::{
    Clock, Ids,
    admin::Readiness,
    client::Upstream,
    shutdown::Tasks,
    tls::Identity,
    token::{RemoteAuthority, Verifier},
};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::{
    Config, NAME,
    client::TrustedProxies,
    exchange::Exchange,
    health::Health,
    rate::Limits,
    routes::{self, RouteTable},
    ws::Crowd,
};

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
    /// gateway-service again, over connections of their own for the links of gateways.
    pub(crate) gateway_links: Upstream,
    /// Open sockets of gateways.
    pub(crate) gateways: Arc<Crowd>,
    pub(crate) health: Health,
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
        let identity = Identity::load(&config.tls, NAME)?;
        let upstreams = Upstreams {
            auth: Upstream::new(&identity, "auth-service", &config.upstreams.auth)?,
            project: Upstream::new(&identity, "project-service", &config.upstreams.project)?,
            gateway: Upstream::new(&identity, "gateway-service", &config.upstreams.gateway)?,
        };
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
            gateway_links: Upstream::for_streams(&identity, "gateway-service", &config.upstreams.gateway)?,
            gateways: Arc::default(),
            health: Health::default(),
            local: local(config.reflection, &tasks)?,
            upstreams,
            config,
            tasks,
        })
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
