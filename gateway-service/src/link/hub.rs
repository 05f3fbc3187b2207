//! The registry of live connections: which gateway has which, how many there may be, and who is told when.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::{self, Display},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use proto::gateway::{Connected, GatewayFrame, platform_frame::Frame};
use service_kit::{Clock, Error, Ids, Kind, Result, bus::Bus, opaque, outbox::Nudge, shutdown::Tasks};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    cluster::Node,
    connection::{self, Link},
    delivery,
    outbound::{Outbound, framed},
    redelivery::{self, Sent},
};
use crate::{
    config::LinkConfig,
    domain::connections::{Admission, Connection},
    domain::{acks::Acks, journal::Journal, tokens::Bearer},
    store::{ConnectionStore, EventStore, InstanceStore, TokenStore},
};

pub(super) const RESTART: u32 = 1012;
pub(super) const TOKEN_REVOKED: u32 = 4401;
pub(super) const GATEWAY_DELETED: u32 = 4404;
pub(super) const REPLACED: u32 = 4409;

/// What a hub needs.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: LinkConfig,
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) journal: Journal,
    pub(crate) tokens: Arc<dyn TokenStore>,
    pub(crate) connections: Arc<dyn ConnectionStore>,
    pub(crate) instances: Arc<dyn InstanceStore>,
    pub(crate) acks: Acks,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) reports: Nudge,
    pub(crate) web: Nudge,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) tasks: Tasks,
}

/// The live connections of this instance. Clones share them.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    parts: Parts,
    slots: Arc<Semaphore>,
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
    node: Node,
    suspects: Suspects,
}

/// Gateways of which something may be gone.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub(super) gateways: Mutex<BTreeSet<String>>,
    pub(super) news: Notify,
}

/// The connections of one gateway.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) gateway_id: String,
    pub(super) wake: Notify,
    pub(super) ended: CancellationToken,
    pub(super) sent: Sent,
    /// Whose turn it is to give to the connections: the lane's own task, or an append.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    links: Mutex<Vec<Arc<Link>>>,
    head: AtomicI64,
    given: AtomicI64,
}

/// Keeps a connection in the registry until it is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    hub: Hub,
    link: Arc<Link>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("config", &self.0.parts.config).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub without connections.
    pub(crate) fn new(parts: Parts) -> Self {
        let slots = Arc::new(Semaphore::new(parts.config.max_connections.min(Semaphore::MAX_PERMITS)));
        metrics::gauge!("tollgate_gateway_connections").set(0.0);
        let node = Node::new(parts.ids.next());
        Self(Arc::new(Inner { parts, slots, lanes: Mutex::default(), node, suspects: Suspects::default() }))
    }

    /// Enters among the instances, and starts to look after the connections.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        self.start_node().await?;
        redelivery::start(self);
        self.start_upkeep().await
    }

    /// Opens a connection of an authenticated gateway over any transport: takes its frames, returns those
    /// for it. RESOURCE_EXHAUSTED above the cap, UNAVAILABLE while the service drains.
    pub(crate) fn open<S, E>(&self, bearer: Bearer, inbound: S) -> Result<Outbound>
    where
        S: Stream<Item = Result<GatewayFrame, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        if self.0.parts.tasks.stopping().is_cancelled() {
            return Err(Self::draining());
        }
        let slot = self.slot(&bearer)?;
        let (queue, outbound) = Outbound::new();
        // Boxed: a future keeps a copy of what it passes on.
        let inbound = Box::pin(inbound.peekable());
        let run = connection::run(self.clone(), bearer, inbound, queue);
        self.0.parts.tasks.spawn_short(run.map(|()| drop(slot)));
        Ok(outbound)
    }

    fn slot(&self, bearer: &Bearer) -> Result<OwnedSemaphorePermit> {
        self.0.slots.clone().try_acquire_owned().map_err(|_| {
            let most = self.config().max_connections;
            tracing::warn!(gateway = bearer.gateway_id, most, "connection refused: the instance is full");
            metrics::counter!("tollgate_gateway_refusals_total", "reason" => "instance_full").increment(1);
            let message = format!("maximum connection limit reached ({most})");
            Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", message)
                .retry_after(Duration::from_secs(5))
        })
    }

    /// Whether a gateway is connected to this instance.
    pub(super) fn is_connected_here(&self, gateway_id: &str) -> bool {
        self.lanes().contains_key(gateway_id)
    }

    /// The gateways that are connected to this instance.
    pub(crate) fn gateways(&self) -> Vec<String> {
        self.lanes().keys().cloned().collect()
    }

    /// Those of these gateways that are connected, to whichever instance.
    pub(crate) async fn connected(&self, gateway_ids: &[String]) -> Result<HashSet<String>> {
        Ok(self.connections().connected(gateway_ids).await?.into_iter().collect())
    }

    /// The error of a connection that comes while the service drains.
    pub(super) fn draining() -> Error {
        Error::new(Kind::Unavailable, "DRAINING", "the service restarts").retry_after(Duration::from_secs(1))
    }

    /// Completes when the service drains.
    pub(super) async fn stopping(&self) {
        self.0.parts.tasks.stopping().cancelled_owned().await;
    }

    pub(super) fn config(&self) -> &LinkConfig {
        &self.0.parts.config
    }

    pub(super) fn acks(&self) -> &Acks {
        &self.0.parts.acks
    }

    pub(super) fn events(&self) -> &dyn EventStore {
        &*self.0.parts.events
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.0.parts.journal
    }

    pub(super) fn connections(&self) -> &dyn ConnectionStore {
        &*self.0.parts.connections
    }

    pub(super) fn instances(&self) -> &dyn InstanceStore {
        &*self.0.parts.instances
    }

    pub(super) fn tokens(&self) -> &dyn TokenStore {
        &*self.0.parts.tokens
    }

    pub(super) fn bus(&self) -> &dyn Bus {
        &*self.0.parts.bus
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.parts.tasks
    }

    pub(super) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(super) fn suspects(&self) -> &Suspects {
        &self.0.suspects
    }

    /// Registers a connection in the database: its epoch, and the head of the gateway's log.
    pub(super) async fn admit(&self, connection: &Connection) -> Result<(i64, i64)> {
        let most = self.config().max_connections_per_organization;
        let admitted = self.connections().connect(connection, most).await.inspect_err(|_| {
            // It may have been committed all the same.
            self.orphan(&connection.id, &connection.gateway_id);
        });
        match admitted? {
            Admission::Admitted { epoch, head, replaced } => {
                self.web().now();
                if replaced {
                    self.announce(&connection.gateway_id).await;
                }
                Ok((epoch, head))
            }
            Admission::NoGateway => Err(Error::unauthenticated("the gateway does not exist any more")),
            Admission::NoNode => Err(Self::draining()),
            Admission::Full => {
                let gateway = &connection.gateway_id;
                tracing::warn!(gateway, most, "connection refused: the organization is full");
                metrics::counter!("tollgate_gateway_refusals_total", "reason" => "organization_full")
                    .increment(1);
                let message = format!("maximum connection limit of the organization reached ({most})");
                Err(Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", message)
                    .retry_after(Duration::from_secs(5)))
            }
        }
    }

    pub(super) fn reports(&self) -> &Nudge {
        &self.0.parts.reports
    }

    pub(super) fn web(&self) -> &Nudge {
        &self.0.parts.web
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.0.parts.clock
    }

    pub(super) fn ids(&self) -> &Ids {
        &self.0.parts.ids
    }

    /// Puts a connection into the registry, tells it so, and starts to deliver to it.
    pub(super) fn join(&self, link: Arc<Link>, connected: Connected) -> Joined {
        let mut lanes = self.lanes();
        let lane = lanes.entry(link.bearer.gateway_id.clone()).or_insert_with(|| {
            let lane = Arc::new(Lane::new(link.bearer.gateway_id.clone()));
            self.0.parts.tasks.spawn_short(delivery::run(self.clone(), lane.clone()));
            lane
        });
        let mut links = lane.links_mut();
        lane.raise_head(i64::try_from(connected.head_revision).unwrap_or(0));
        link.yield_to_newest(&links);
        // Under the lock: no event comes before it, and who has read it finds the connection registered.
        link.offer(&framed(Frame::Connected(connected)));
        links.push(link.clone());
        drop(links);
        lane.wake.notify_one();
        metrics::gauge!("tollgate_gateway_connections").increment(1.0);
        metrics::counter!("tollgate_gateway_connects_total").increment(1);
        // The drain may have listed the connections before this one was there.
        if self.0.parts.tasks.stopping().is_cancelled() {
            link.close(RESTART, "service restart");
        }
        drop(lanes);
        Joined { hub: self.clone(), link }
    }

    fn leave(&self, link: &Arc<Link>) {
        let mut lanes = self.lanes();
        metrics::gauge!("tollgate_gateway_connections").decrement(1.0);
        metrics::counter!("tollgate_gateway_disconnects_total").increment(1);
        let Some(lane) = lanes.get(&link.bearer.gateway_id) else { return };
        let mut links = lane.links_mut();
        links.retain(|other| other.id != link.id);
        if links.is_empty() {
            drop(links);
            lane.ended.cancel();
            lanes.remove(&link.bearer.gateway_id);
        }
    }

    /// There may be something to send to a gateway.
    pub(super) fn wake(&self, gateway_id: &str) {
        if let Some(lane) = self.lanes().get(gateway_id) {
            lane.wake.notify_one();
        }
    }

    /// The newest revision of a gateway's log.
    pub(super) async fn head_of(&self, gateway_id: &str) -> Result<u64> {
        let heads = self.events().heads(&[gateway_id.to_owned()]).await?;
        Ok(heads.first().and_then(|(_, head)| u64::try_from(*head).ok()).unwrap_or(0))
    }

    /// The newest revision of a connected gateway's log, as far as it is known here.
    pub(super) fn head(&self, gateway_id: &str) -> u64 {
        let head = self.lanes().get(gateway_id).map_or(0, |lane| lane.head.load(Ordering::SeqCst));
        u64::try_from(head).unwrap_or(0)
    }

    /// There may be something to send to anybody.
    pub(super) fn wake_all(&self) {
        self.lanes().values().for_each(|lane| lane.wake.notify_one());
    }

    /// The log of a gateway has this revision.
    pub(super) fn seen(&self, gateway_id: &str, head: i64) {
        if let Some(lane) = self.lanes().get(gateway_id)
            && lane.raise_head(head)
        {
            lane.wake.notify_one();
        }
    }

    /// The lane of a gateway that is connected here.
    pub(super) fn lane(&self, gateway_id: &str) -> Option<Arc<Lane>> {
        self.lanes().get(gateway_id).cloned()
    }

    /// The gateways that are connected here.
    pub(super) fn all_lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes().values().cloned().collect()
    }

    /// The connections now.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.lanes().values().flat_map(|lane| lane.links_mut().clone()).collect()
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<String, Arc<Lane>>> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a gateway that is sent away is told about coming back. Full jitter: a fleet that comes back at once
/// brings the next instance down.
pub(super) fn patience() -> String {
    format!("retry_after_ms={}", 500 + u16::from_be_bytes(opaque::random()) % 4_500)
}

impl Lane {
    fn new(gateway_id: String) -> Self {
        Self {
            gateway_id,
            wake: Notify::new(),
            ended: CancellationToken::new(),
            sent: Sent::default(),
            turn: Arc::default(),
            links: Mutex::default(),
            head: AtomicI64::new(0),
            given: AtomicI64::new(0),
        }
    }

    /// The connections now.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.links_mut().clone()
    }

    /// The log has this revision. Says whether that is news.
    pub(super) fn raise_head(&self, revision: i64) -> bool {
        self.head.fetch_max(revision, Ordering::SeqCst) < revision
    }

    /// Nobody who was connected needs to be told of anything up to here.
    pub(super) fn given(&self) -> i64 {
        self.given.load(Ordering::SeqCst)
    }

    pub(super) fn set_given(&self, revision: i64) {
        self.given.fetch_max(revision, Ordering::SeqCst);
    }

    fn links_mut(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Joined {
    /// The connection.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.leave(&self.link);
    }
}
