//! The way in for gateways whose stream only goes out: their reports become the frames of their connection.
//!
//! A report may come to any instance of this service. Only the one that serves the connection knows what is on
//! its way on it, so the report goes there: at once if that is this one, else through the database, with a hint.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use proto::gateway::{GatewayFrame, ReportRequest};
use service_kit::{
    Error, Kind, Result,
    bus::{Bus, Message, Received, Subscription},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::hub::Hub;
use crate::{
    domain::{
        reports::{check, frames},
        tokens::Bearer,
    },
    store::ReportStore,
};

/// The prefix of the bus subject that says that a gateway has reported.
const SUBJECT: &str = "gateway.reports.";
/// How many frames of a gateway may wait for its connection.
const CAPACITY: usize = 64;
/// How long a report waits for a connection that is busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many ids one question to the database names.
const CHUNK: usize = 500;

/// Where reports go. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reports(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ReportStore>,
    bus: Arc<dyn Bus>,
    hub: Hub,
    doors: Mutex<HashMap<String, Place>>,
}

/// Boxed: an empty queue has room for 32 frames already.
pub(crate) type Frames = mpsc::Sender<Box<GatewayFrame>>;

/// A connection that takes reports.
#[derive(Debug, Clone)]
struct Place {
    gateway_id: String,
    frames: Frames,
    /// Held by whoever hands over reports: what was left first goes first.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Keeps a connection open for reports until it is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    reports: Reports,
    connection_id: String,
}

impl Reports {
    /// No connection takes reports yet.
    pub(crate) fn new(store: Arc<dyn ReportStore>, bus: Arc<dyn Bus>, hub: &Hub) -> Self {
        Self(Arc::new(Inner { store, bus, hub: hub.clone(), doors: Mutex::default() }))
    }

    /// Starts to look for what came to other instances.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        let hints = self.0.bus.subscribe(SUBJECT).await?;
        let reports = self.clone();
        self.0.hub.tasks().spawn("link reports", async move { reports.listen(hints).await });
        Ok(())
    }

    /// The frames of a connection that is to be opened.
    pub(crate) fn queue() -> (Frames, mpsc::Receiver<Box<GatewayFrame>>) {
        mpsc::channel(CAPACITY)
    }

    /// Sends what a gateway reports on its connection to these frames from now on.
    pub(crate) fn open(&self, gateway_id: &str, connection_id: &str, frames: Frames) -> Door {
        let place = Place { gateway_id: gateway_id.to_owned(), frames, turn: Arc::default() };
        self.doors().insert(connection_id.to_owned(), place);
        Door { reports: self.clone(), connection_id: connection_id.to_owned() }
    }

    /// Takes a report. Returns the newest revision of the gateway's log. FAILED_PRECONDITION `NOT_CONNECTED`
    /// when the gateway has no such connection that takes reports.
    pub(crate) async fn take(&self, bearer: &Bearer, report: ReportRequest) -> Result<u64> {
        check(&report)?;
        let gateway_id = &bearer.gateway_id;
        let place = self.doors().get(&report.connection_id).cloned();
        match place {
            Some(place) if place.gateway_id == *gateway_id => {
                let fed = tokio::time::timeout(PATIENCE, self.feed(place, report)).await;
                let busy = |late| Error::unavailable("the connection is busy; try again", late);
                if !fed.map_err(busy)?? {
                    return Err(not_connected());
                }
            }
            Some(_) => return Err(not_connected()),
            None => self.leave(gateway_id, report).await?,
        }
        self.0.hub.head_of(gateway_id).await
    }

    /// Hands a report to a connection that is served here, after those that came before it by other instances;
    /// false when it has ended. Goes on when nobody waits for it: what was taken from the database is nowhere else.
    async fn feed(&self, place: Place, report: ReportRequest) -> Result<bool> {
        let (reports, connection_id) = (self.clone(), report.connection_id.clone());
        let (done, outcome) = oneshot::channel();
        self.0.hub.tasks().spawn_short(async move {
            let _turn = place.turn.lock().await;
            let fed = match reports.0.store.take(&connection_id).await {
                Ok(left) => Ok(feed_all(&place, &connection_id, left).await && feed(&place, report).await),
                Err(error) => Err(error),
            };
            let _ = done.send(fed);
        });
        outcome.await.unwrap_or(Ok(false))
    }

    /// Leaves a report for the instance that serves its connection.
    async fn leave(&self, gateway_id: &str, report: ReportRequest) -> Result<()> {
        let (connection_id, bytes) = (&report.connection_id, report.encode_to_vec());
        if !self.0.store.leave(connection_id, gateway_id, &bytes, self.0.hub.clock().now_ms()).await? {
            return Err(not_connected());
        }
        let hint = Message { subject: format!("{SUBJECT}{gateway_id}"), payload: Bytes::new() };
        if let Err(error) = self.0.bus.publish(hint).await {
            tracing::warn!(gateway = gateway_id, %error, "hint not published: the next look finds the report");
        }
        Ok(())
    }

    async fn listen(&self, mut hints: Subscription) -> anyhow::Result<()> {
        // Hints about some do not put off the look at all.
        let mut polls = tokio::time::interval(self.0.hub.config().poll());
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let gateway = tokio::select! {
                received = hints.next() => match received {
                    Received::Message(message) => Some(message.subject[SUBJECT.len()..].to_owned()),
                    Received::Lost => None,
                    Received::Closed => anyhow::bail!("the bus is gone"),
                },
                _ = polls.tick() => None,
                () = self.0.hub.stopping() => return Ok(()),
            };
            if let Err(error) = self.look(gateway.as_deref()).await {
                tracing::warn!(%error, "reports cannot be looked for, will try again");
            }
        }
    }

    /// Takes what was left for connections here: of one gateway, or of all.
    async fn look(&self, gateway_id: Option<&str>) -> Result<()> {
        let wanted = |place: &Place| gateway_id.is_none_or(|id| id == place.gateway_id);
        let here: HashMap<String, Place> = self
            .doors()
            .iter()
            .filter(|(_, place)| wanted(place))
            .map(|(id, place)| (id.clone(), place.clone()))
            .collect();
        let ids: Vec<String> = here.keys().cloned().collect();
        for some in ids.chunks(CHUNK) {
            for id in self.0.store.waiting(some).await? {
                if let Some(place) = here.get(&id) {
                    self.hand_over(id, place.clone());
                }
            }
        }
        Ok(())
    }

    /// Hands over what was left for a connection. One that is busy holds up no other, and takes it at a later look.
    fn hand_over(&self, connection_id: String, place: Place) {
        let Ok(turn) = place.turn.clone().try_lock_owned() else { return };
        let store = self.0.store.clone();
        self.0.hub.tasks().spawn_short(async move {
            match store.take(&connection_id).await {
                Ok(left) => drop(feed_all(&place, &connection_id, left).await),
                Err(error) => tracing::warn!(%error, "reports cannot be taken, will try again"),
            }
            drop(turn);
        });
    }

    fn doors(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.0.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.reports.doors().remove(&self.connection_id);
    }
}

/// Hands the frames of a report to its connection; false when that has ended.
async fn feed(place: &Place, report: ReportRequest) -> bool {
    for frame in frames(report) {
        if place.frames.send(Box::new(frame)).await.is_err() {
            return false;
        }
    }
    true
}

/// The same for reports that were left, in order. What is lost with a connection comes again on the next one.
async fn feed_all(place: &Place, connection_id: &str, left: Vec<Vec<u8>>) -> bool {
    for report in left {
        let fed = match ReportRequest::decode(report.as_slice()) {
            Ok(report) => feed(place, report).await,
            Err(error) => {
                tracing::error!(connection = connection_id, %error, "a report is not one");
                true
            }
        };
        if !fed {
            return false;
        }
    }
    true
}

fn not_connected() -> Error {
    let message = "there is no such connection (any more); subscribe again";
    Error::new(Kind::FailedPrecondition, "NOT_CONNECTED", message)
}
