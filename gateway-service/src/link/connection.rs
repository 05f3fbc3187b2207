//! One connection of one gateway: hello, then frames both ways until either side ends it.

use std::{
    fmt::Display,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream::Peekable};
use proto::{
    gateway::{
        self, Connected, GatewayFrame, PlatformFrame, gateway_frame::Frame as From,
        platform_frame::Frame as To,
    },
    time::Timestamp,
};
use service_kit::Error;
use tokio::sync::Notify;

use super::{
    admission::{self, Side},
    answering,
    answers::Answers,
    heartbeat::{Beat, Heartbeat},
    hub::{Hub, Joined, REPLACED},
    outbound::{Offered, Queue, framed},
    resume::Resume,
    unanswered::Unanswered,
};
use crate::domain::{
    acks::Received,
    connections::{Connection, Note},
    instances::Author,
    tokens::Bearer,
};

/// The transport whose gateways answer by calls of their own.
const DETACHED: &str = "sse";

/// How long the last frame may take to find room in the queue of a slow peer.
const FAREWELL: Duration = Duration::from_secs(1);

/// The end of a connection whose gateway instance has a newer one.
pub(super) const REPLACED_REASON: &str = "replaced by a newer connection";

/// How long to wait before an acknowledgement is recorded again, should the database be busy.
pub(super) const RETRIES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_millis(1_000)];

/// The frames of a peer.
pub(super) type Inbound<'a, S> = Pin<&'a mut Peekable<S>>;

/// Why the platform ends a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Farewell {
    /// A WebSocket close code.
    pub(super) code: u32,
    /// In words, at most 123 bytes.
    pub(super) reason: String,
}

/// What the hub holds of a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: String,
    pub(super) bearer: Bearer,
    /// Empty for those that share what they know.
    pub(super) instance_id: String,
    /// Only of those that answer every event.
    pub(super) answers: Option<Answers>,
    /// Only of those that keep what they have applied.
    pub(super) resume: Option<Resume>,
    /// Of the events on it that nothing answers.
    pub(super) unanswered: Unanswered,
    /// Whether its signs of life may arrive at another instance of this service.
    pub(super) is_detached: bool,
    epoch: i64,
    queue: Queue,
    cursor: AtomicI64,
    applied: AtomicI64,
    heard_at: AtomicI64,
    life: Notify,
    closing: Mutex<bool>,
    farewell: OnceLock<Farewell>,
    /// There is a farewell.
    asked: Notify,
}

impl Link {
    /// A connection that nothing was sent on.
    fn new((record, epoch): (Connection, i64), bearer: Bearer, side: Side, queue: Queue) -> Self {
        Self {
            id: record.id,
            bearer,
            instance_id: record.instance_id,
            answers: side.answers,
            resume: side.resume,
            unanswered: Unanswered::default(),
            is_detached: record.transport == DETACHED,
            epoch,
            queue,
            cursor: AtomicI64::new(side.cursor),
            applied: AtomicI64::new(record.applied_revision),
            heard_at: AtomicI64::new(record.heard_at),
            life: Notify::new(),
            closing: Mutex::new(false),
            farewell: OnceLock::new(),
            asked: Notify::new(),
        }
    }

    /// Whose answers come on it.
    pub(super) fn author(&self) -> Author<'_> {
        let instance_id = self.resume.as_ref().map_or("", |resume| &resume.instance_id);
        Author { gateway_id: &self.bearer.gateway_id, instance_id, connection_id: &self.id }
    }

    /// Of the connections of one gateway instance only the newest stays.
    pub(super) fn yield_to_newest(&self, others: &[Arc<Self>]) {
        let same = |other: &&Arc<Self>| !self.instance_id.is_empty() && other.instance_id == self.instance_id;
        for other in others.iter().filter(same) {
            let older = if other.epoch < self.epoch { other } else { self };
            older.close(REPLACED, REPLACED_REASON);
        }
    }

    /// It has done everything up to this revision.
    pub(super) fn has_applied(&self, revision: i64) {
        self.applied.store(revision, Ordering::SeqCst);
    }

    /// The peer gave a sign of life, by whatever way.
    pub(super) fn heard(&self, now: i64) {
        // It grows whatever the clock says: a sign of life is a change.
        let later = |before: i64| Some(now.max(before.saturating_add(1)));
        let _ = self.heard_at.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
        self.life.notify_one();
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Note {
        Note {
            connection_id: self.id.clone(),
            heard_at: self.heard_at.load(Ordering::SeqCst),
            sent_revision: self.cursor(),
            applied_revision: self.applied.load(Ordering::SeqCst),
        }
    }

    /// The newest revision that was sent on this connection.
    pub(super) fn cursor(&self) -> i64 {
        self.cursor.load(Ordering::SeqCst)
    }

    /// Everything up to `revision` was sent, or need not be.
    pub(super) fn advance(&self, revision: i64) {
        self.cursor.fetch_max(revision, Ordering::SeqCst);
    }

    /// How many frames may be queued now.
    pub(super) fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// How many bytes may be queued now.
    pub(super) fn room(&self) -> usize {
        self.queue.room()
    }

    /// The queue was full: whoever wants to send is to be told when it is not.
    pub(super) fn set_stuck(&self) {
        self.queue.set_stuck();
    }

    /// Whether nothing can be sent any more.
    pub(super) fn is_gone(&self) -> bool {
        self.queue.is_closed() || *self.closing()
    }

    /// Queues a frame without waiting.
    pub(super) fn offer(&self, frame: &Arc<PlatformFrame>) -> Offered {
        // Held while the frame is queued: nothing comes after the last frame.
        let closing = self.closing();
        if *closing { Offered::Gone } else { self.queue.offer(frame) }
    }

    /// Asks the connection to end. The first reason counts.
    pub(super) fn close(&self, code: u32, reason: &str) {
        if self.farewell.set(Farewell { code, reason: reason.to_owned() }).is_ok() {
            self.asked.notify_one();
        }
    }

    fn closing(&self) -> MutexGuard<'_, bool> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a connection from its hello to its end.
pub(super) async fn run<S, E>(hub: Hub, bearer: Bearer, mut inbound: Pin<Box<Peekable<S>>>, queue: Queue)
where
    S: Stream<Item = Result<GatewayFrame, E>> + Send,
    E: Display,
{
    let mut inbound = inbound.as_mut();
    // What is over soon is boxed: a connection keeps the room of its largest step as long as it lasts.
    let Some(joined) = Box::pin(enter(&hub, bearer, &mut inbound, queue)).await else { return };
    let link = joined.link().clone();
    let reason = pump(&hub, &link, &mut inbound).await;
    drop(joined);
    Box::pin(hub.forget(&link)).await;
    tracing::info!(gateway = link.bearer.gateway_id, connection = link.id, reason, "gateway disconnected");
}

/// From the hello to the place in the registry. Who gets none is told why.
async fn enter<S, E>(hub: &Hub, bearer: Bearer, inbound: &mut Inbound<'_, S>, queue: Queue) -> Option<Joined>
where
    S: Stream<Item = Result<GatewayFrame, E>> + Send,
    E: Display,
{
    let (hello, peer) = match admission::hello(hub, inbound).await {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(gateway = bearer.gateway_id, %error, "connection without a good hello");
            queue.end(Err(error)).await;
            return None;
        }
    };
    let now = hub.clock().now_ms();
    let record = admission::record(hub, &bearer, &hello, &peer, now);
    let (side, epoch, head) = match admission::admit(hub, &record, &peer).await {
        Ok(admitted) => admitted,
        Err(error) => {
            tracing::warn!(gateway = bearer.gateway_id, %error, "connection refused");
            queue.end(Err(error)).await;
            return None;
        }
    };
    let (remote, transport) = (record.remote_address.clone(), record.transport.clone());
    let link = Arc::new(Link::new((record, epoch), bearer, side, queue));
    let connected = Connected {
        gateway_id: link.bearer.gateway_id.clone(),
        connection_id: link.id.clone(),
        timestamp: Some(Timestamp::from_unix_ms(now)),
        epoch: u64::try_from(epoch).unwrap_or(0),
        head_revision: u64::try_from(head).unwrap_or(0),
    };
    let joined = hub.join(link.clone(), connected);
    tracing::info!(
        gateway = link.bearer.gateway_id,
        connection = link.id,
        instance = link.instance_id,
        remote,
        transport,
        version = peer.version,
        applied = peer.applied(),
        "gateway connected"
    );
    Some(joined)
}

/// Frames both ways. Returns why it ended.
async fn pump<S, E>(hub: &Hub, link: &Arc<Link>, inbound: &mut Inbound<'_, S>) -> String
where
    S: Stream<Item = Result<GatewayFrame, E>>,
    E: Display,
{
    let config = hub.config();
    let mut heartbeat = Heartbeat::new(config.heartbeat(), config.silence());
    loop {
        tokio::select! {
            biased;
            asked = asked_to_end(link) => return Box::pin(end(link, asked)).await,
            () = link.queue.closed() => return "the peer is gone".to_owned(),
            frame = inbound.next() => match frame {
                None => return "closed by the peer".to_owned(),
                Some(Err(error)) => return format!("the stream broke: {error}"),
                Some(Ok(frame)) => {
                    link.heard(hub.clock().now_ms());
                    if let Err(error) = Box::pin(take(hub, link, frame, inbound)).await {
                        // Unacknowledged, everything comes again on the next connection.
                        let reason = format!("frame not recorded: {error}");
                        let end = Box::pin(link.queue.end(Err(error)));
                        let _ = tokio::time::timeout(FAREWELL, end).await;
                        return reason;
                    }
                }
            },
            () = link.life.notified() => heartbeat.heard(),
            () = link.queue.drained() => hub.wake(&link.bearer.gateway_id),
            beat = heartbeat.next() => match beat {
                Beat::Send => {
                    let revision = hub.head(&link.bearer.gateway_id);
                    // A full queue says enough: its peer has something to read.
                    let beat = gateway::Heartbeat { revision, ..gateway::Heartbeat::default() };
                    link.offer(&framed(To::Heartbeat(beat)));
                    // Should it not have been possible when the proof came.
                    Box::pin(complete(hub, link)).await;
                }
                Beat::Dead => {
                    let reason = "no sign of life".to_owned();
                    return Box::pin(end(link, Farewell { code: 4408, reason })).await;
                }
            },
        }
    }
}

/// What nothing answers is done once the peer is proven to be done with it.
async fn complete(hub: &Hub, link: &Link) {
    let done = link.unanswered.proven();
    let Some(last) = done.last() else { return };
    match hub.events().complete(link.author(), &done, hub.clock().now_ms()).await {
        Ok(true) => link.unanswered.forget(*last),
        Ok(false) => link.close(REPLACED, REPLACED_REASON),
        Err(error) => tracing::warn!(gateway = link.bearer.gateway_id, %error, "events not completed yet"),
    }
}

/// Completes when the platform wants the connection to end.
async fn asked_to_end(link: &Link) -> Farewell {
    loop {
        if let Some(farewell) = link.farewell.get() {
            return farewell.clone();
        }
        link.asked.notified().await;
    }
}

async fn take<S, E>(
    hub: &Hub,
    link: &Link,
    frame: GatewayFrame,
    inbound: &mut Inbound<'_, S>,
) -> Result<(), Error>
where
    S: Stream<Item = Result<GatewayFrame, E>>,
{
    match frame.frame {
        Some(From::DeploymentAck(ack)) => {
            let received = Received {
                deployment_id: ack.deployment_id,
                resource: ack.resource_type,
                action: ack.action,
                status: ack.status,
                performed_at: ack.performed_at,
                error_code: ack.error_code,
            };
            record_ack(hub, link, &received).await
        }
        Some(From::EventAck(first)) => answering::take(hub, link, answering::batch(first, inbound)).await,
        Some(From::Heartbeat(beat)) => {
            link.unanswered.prove(beat.revision, link.queue.taken());
            complete(hub, link).await;
            answering::heartbeat(hub, link, &beat).await;
            Ok(())
        }
        Some(From::Hello(_)) | None => {
            tracing::debug!(gateway = link.bearer.gateway_id, connection = link.id, "frame ignored");
            Ok(())
        }
    }
}

/// Records an acknowledgement. The peer waits meanwhile; it is better off than with a new connection.
async fn record_ack(hub: &Hub, link: &Link, received: &Received) -> Result<(), Error> {
    let mut pauses = RETRIES.into_iter();
    let counts = loop {
        match (hub.acks().record(&link.bearer.gateway_id, &link.id, received).await, pauses.next()) {
            (Ok(counts), _) => break counts,
            (Err(error), Some(pause)) => {
                tracing::warn!(gateway = link.bearer.gateway_id, %error, "acknowledgement not recorded yet");
                tokio::time::sleep(pause).await;
            }
            (Err(error), None) => return Err(error),
        }
    };
    if !counts {
        link.close(REPLACED, REPLACED_REASON);
    } else if !received.error_code.is_empty() {
        // What is refused may come again at once in another form.
        hub.wake(&link.bearer.gateway_id);
    }
    Ok(())
}

async fn end(link: &Link, farewell: Farewell) -> String {
    *link.closing() = true;
    let frame = To::Close(gateway::Close { code: farewell.code, reason: farewell.reason.clone() });
    let close = link.queue.end(Ok(PlatformFrame { frame: Some(frame) }));
    let _ = tokio::time::timeout(FAREWELL, close).await;
    farewell.reason
}
