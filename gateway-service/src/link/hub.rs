//! The registry of live connections: which gateway has which, how many there may be, and who is told when.

use std::{
    collections::HashMap,
    fmt::{self, Display},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use proto::gateway::{Connected, GatewayFrame, platform_frame::Frame};
use service_kit::{
    Clock, Error, Ids, Kind, Result,
    bus::{Bus, Received},
    opaque,
    outbox::Nudge,
    shutdown::Tasks,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{self, Link},
    delivery,
    outbound::Outbound,
};
use crate::{
    config::LinkConfig,
    domain::{acks::Acks, log::SUBJECT, tokens::Bearer},
    store::{EventStore, TokenStore},
};

const RESTART: u32 = 1012;
const TOKEN_REVOKED: u32 = 4401;
const GATEWAY_DELETED: u32 = 4404;
/// When the service drains, so many connections are closed at once, and the next after a pause: not all of
/// them shall come back in the same moment.
const DRAIN_BATCH: usize = 100;
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// How many ids one question to the database names.
const CHUNK: usize = 500;

/// What a hub needs.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: LinkConfig,
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) tokens: Arc<dyn TokenStore>,
    pub(crate) acks: Acks,
    pub(crate) reports: Nudge,
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
}

/// The connections of one gateway.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) gateway_id: String,
    pub(super) wake: Notify,
    pub(super) ended: CancellationToken,
    links: Mutex<Vec<Arc<Link>>>,
    head: AtomicI64,
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
        Self(Arc::new(Inner { parts, slots, lanes: Mutex::default() }))
    }

    /// Starts to listen for hints, to look at the log, and to wait for the end.
    pub(crate) async fn start(&self, bus: &dyn Bus) -> anyhow::Result<()> {
        let tasks = &self.0.parts.tasks;
        let mut hints = bus.subscribe(SUBJECT).await?;
        let hub = self.clone();
        tasks.spawn("link hints", async move {
            loop {
                tokio::select! {
                    received = hints.next() => match received {
                        Received::Message(message) => hub.hint(&message.subject[SUBJECT.len()..]),
                        Received::Lost => hub.lanes().values().for_each(|lane| lane.wake.notify_one()),
                        Received::Closed => anyhow::bail!("the bus is gone"),
                    },
                    () = hub.stopping() => return Ok(()),
                }
            }
        });
        let hub = self.clone();
        tasks.spawn("link poll", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(hub.config().poll()) => {}
                    () = hub.stopping() => return Ok(()),
                }
                if let Err(error) = hub.look().await {
                    tracing::warn!(%error, "the log cannot be looked at, will try again");
                }
            }
        });
        let hub = self.clone();
        tasks.spawn("link drain", async move {
            hub.stopping().await;
            hub.drain().await;
            Ok(())
        });
        Ok(())
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
        let (queue, backlog, outbound) = Outbound::new();
        let hub = self.clone();
        self.0.parts.tasks.spawn_short(async move {
            connection::run(hub, bearer, inbound, queue, backlog).await;
            drop(slot);
        });
        Ok(outbound)
    }

    fn slot(&self, bearer: &Bearer) -> Result<OwnedSemaphorePermit> {
        self.0.slots.clone().try_acquire_owned().map_err(|_| {
            let most = self.config().max_connections;
            tracing::warn!(gateway = bearer.gateway_id, most, "connection refused: the instance is full");
            let message = format!("maximum connection limit reached ({most})");
            Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", message)
                .retry_after(Duration::from_secs(5))
        })
    }

    /// Whether a gateway is connected now.
    pub(crate) fn is_connected(&self, gateway_id: &str) -> bool {
        self.lanes().contains_key(gateway_id)
    }

    /// Closes the connections that a token opened.
    pub(crate) fn token_revoked(&self, token_id: &str) {
        for link in self.links().iter().filter(|link| link.bearer.token_id == token_id) {
            link.close(TOKEN_REVOKED, "token revoked");
        }
    }

    /// Closes the connections of a gateway.
    pub(crate) fn gateway_deleted(&self, gateway_id: &str) {
        for link in self.links().iter().filter(|link| link.bearer.gateway_id == gateway_id) {
            link.close(GATEWAY_DELETED, "gateway deleted");
        }
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

    pub(super) fn reports(&self) -> &Nudge {
        &self.0.parts.reports
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
        // Under the lock: no event comes before it, and who has read it finds the connection registered.
        link.offer(Frame::Connected(connected));
        links.push(link.clone());
        drop(links);
        lane.wake.notify_one();
        metrics::gauge!("tollgate_gateway_connections").increment(1.0);
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

    /// The newest revision of a connected gateway's log, as far as it is known here.
    pub(super) fn head(&self, gateway_id: &str) -> u64 {
        let head = self.lanes().get(gateway_id).map_or(0, |lane| lane.head.load(Ordering::SeqCst));
        u64::try_from(head).unwrap_or(0)
    }

    fn hint(&self, gateway_id: &str) {
        if self.is_connected(gateway_id) {
            self.wake(gateway_id);
        } else {
            metrics::counter!("tollgate_gateway_deliveries_total", "outcome" => "offline").increment(1);
            tracing::warn!(gateway = gateway_id, "gateway not connected here: the event waits in its log");
        }
    }

    /// Looks for what no hint told: events, revoked tokens and deleted gateways of other instances.
    async fn look(&self) -> Result<()> {
        let gateways: Vec<String> = self.lanes().keys().cloned().collect();
        for asked in gateways.chunks(CHUNK) {
            let heads: HashMap<String, i64> = self.0.parts.events.heads(asked).await?.into_iter().collect();
            for gateway in asked {
                match heads.get(gateway) {
                    None => self.gateway_deleted(gateway),
                    Some(head) => self.seen(gateway, *head),
                }
            }
        }
        let links = self.links();
        for asked in links.chunks(CHUNK) {
            let ids: Vec<String> = asked.iter().map(|link| link.bearer.token_id.clone()).collect();
            let active = self.0.parts.tokens.active(&ids).await?;
            for link in asked.iter().filter(|link| !active.contains(&link.bearer.token_id)) {
                link.close(TOKEN_REVOKED, "token revoked");
            }
        }
        Ok(())
    }

    fn seen(&self, gateway_id: &str, head: i64) {
        if let Some(lane) = self.lanes().get(gateway_id)
            && lane.raise_head(head)
        {
            lane.wake.notify_one();
        }
    }

    async fn drain(&self) {
        let links = self.links();
        for (at, batch) in links.chunks(DRAIN_BATCH).enumerate() {
            if at > 0 {
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
            for link in batch {
                // Full jitter: a fleet that comes back at once brings the next instance down.
                let wait = 500 + u16::from_be_bytes(opaque::random()) % 4_500;
                link.close(RESTART, &format!("service restart, retry_after_ms={wait}"));
            }
        }
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.lanes().values().flat_map(|lane| lane.links_mut().clone()).collect()
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<String, Arc<Lane>>> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new(gateway_id: String) -> Self {
        Self {
            gateway_id,
            wake: Notify::new(),
            ended: CancellationToken::new(),
            links: Mutex::default(),
            head: AtomicI64::new(0),
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

    fn links_mut(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.leave(&self.link);
    }
}
