//! One connection of one gateway: hello, then frames both ways until either side ends it.

use std::{
    collections::VecDeque,
    fmt::Display,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use proto::{
    gateway::{
        self, Connected, GatewayFrame, Hello, PlatformFrame, gateway_frame::Frame as From,
        platform_frame::Frame as To,
    },
    time::Timestamp,
};
use service_kit::{Error, Kind};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    heartbeat::{Beat, Heartbeat},
    hub::Hub,
    outbound::{Backlog, Outgoing},
};
use crate::domain::{acks::Received, tokens::Bearer};

/// How long the last frame may take to find room in the queue of a slow peer.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long to wait before an acknowledgement is recorded again, should the database be busy.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_millis(1_000)];

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
    pub(super) backlog: Arc<Backlog>,
    queue: mpsc::Sender<Outgoing>,
    cursor: AtomicI64,
    unanswered: Mutex<VecDeque<(i64, Instant)>>,
    closing: Mutex<bool>,
    farewell: watch::Sender<Option<Farewell>>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is in the queue.
    Queued,
    /// The queue is full.
    Full,
    /// The peer is gone.
    Gone,
}

impl Link {
    /// A connection that nothing was sent on.
    pub(super) fn new(
        id: String,
        bearer: Bearer,
        queue: mpsc::Sender<Outgoing>,
        backlog: Arc<Backlog>,
    ) -> Self {
        let farewell = watch::channel(None).0;
        let (cursor, closing) = (AtomicI64::new(0), Mutex::new(false));
        Self { id, bearer, backlog, queue, cursor, unanswered: Mutex::default(), closing, farewell }
    }

    /// An event was queued that the peer does not acknowledge.
    pub(super) fn note_unanswered(&self, revision: i64) {
        self.unanswered().push_back((revision, Instant::now()));
    }

    /// Those of these events that were queued before the peer was last heard of for certain.
    fn outlived(&self, silence: Duration) -> Vec<i64> {
        let is_old = |(_, queued): &&(i64, Instant)| queued.elapsed() >= silence;
        self.unanswered().iter().take_while(is_old).map(|(revision, _)| *revision).collect()
    }

    fn unanswered(&self) -> MutexGuard<'_, VecDeque<(i64, Instant)>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether nothing can be sent any more.
    pub(super) fn is_gone(&self) -> bool {
        self.queue.is_closed() || *self.closing()
    }

    /// Queues a frame without waiting.
    pub(super) fn offer(&self, frame: To) -> Offered {
        // Held while the frame is queued: nothing comes after the last frame.
        let closing = self.closing();
        if *closing {
            return Offered::Gone;
        }
        match self.queue.try_send(Ok(PlatformFrame { frame: Some(frame) })) {
            Ok(()) => Offered::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Offered::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Offered::Gone,
        }
    }

    /// Asks the connection to end. The first reason counts.
    pub(super) fn close(&self, code: u32, reason: &str) {
        self.farewell.send_if_modified(|farewell| {
            let first = farewell.is_none();
            if first {
                *farewell = Some(Farewell { code, reason: reason.to_owned() });
            }
            first
        });
    }

    fn closing(&self) -> MutexGuard<'_, bool> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a connection from its hello to its end.
pub(super) async fn run<S, E>(
    hub: Hub,
    bearer: Bearer,
    inbound: S,
    queue: mpsc::Sender<Outgoing>,
    backlog: Arc<Backlog>,
) where
    S: Stream<Item = Result<GatewayFrame, E>> + Send,
    E: Display,
{
    let mut inbound = pin!(inbound);
    let hello = match hello(&hub, &mut inbound).await {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(gateway = bearer.gateway_id, %error, "connection without a hello");
            let _ = queue.try_send(Err(error));
            return;
        }
    };
    let link = Arc::new(Link::new(hub.ids().next(), bearer, queue, backlog));
    let connected = Connected {
        gateway_id: link.bearer.gateway_id.clone(),
        connection_id: link.id.clone(),
        timestamp: Some(Timestamp::from_unix_ms(hub.clock().now_ms())),
    };
    let joined = hub.join(link.clone(), connected);
    tracing::info!(
        gateway = link.bearer.gateway_id,
        connection = link.id,
        remote = shown(&hello.remote_address),
        instance = shown(&hello.instance_id),
        version = shown(&hello.version),
        "gateway connected"
    );
    let reason = pump(&hub, &link, &mut inbound).await;
    drop(joined);
    tracing::info!(gateway = link.bearer.gateway_id, connection = link.id, reason, "gateway disconnected");
}

/// The first frame.
async fn hello<S, E>(hub: &Hub, inbound: &mut S) -> Result<Hello, Error>
where
    S: Stream<Item = Result<GatewayFrame, E>> + Unpin,
    E: Display,
{
    let first = tokio::select! {
        first = tokio::time::timeout(hub.config().hello(), inbound.next()) => first,
        () = hub.stopping() => return Err(Hub::draining()),
    };
    match first {
        Ok(Some(Ok(GatewayFrame { frame: Some(From::Hello(hello)) }))) => Ok(hello),
        Ok(Some(Ok(_))) => Err(Error::field("hello", "must be the first frame")),
        Ok(Some(Err(error))) => {
            Err(Error::new(Kind::Cancelled, "STREAM_BROKEN", "the stream broke").caused_by(broken(&error)))
        }
        Ok(None) => Err(Error::field("hello", "is required")),
        Err(_) => Err(Error::new(Kind::DeadlineExceeded, "NO_HELLO", "the first frame did not come in time")),
    }
}

/// Frames both ways. Returns why it ended.
async fn pump<S, E>(hub: &Hub, link: &Arc<Link>, inbound: &mut S) -> String
where
    S: Stream<Item = Result<GatewayFrame, E>> + Unpin,
    E: Display,
{
    let config = hub.config();
    let mut heartbeat = Heartbeat::new(config.heartbeat(), config.silence());
    let mut farewell = link.farewell.subscribe();
    loop {
        tokio::select! {
            biased;
            asked = asked_to_end(&mut farewell) => return end(link, asked).await,
            () = link.queue.closed() => return "the peer is gone".to_owned(),
            frame = inbound.next() => match frame {
                None => return "closed by the peer".to_owned(),
                Some(Err(error)) => return format!("the stream broke: {error}"),
                Some(Ok(frame)) => {
                    heartbeat.heard();
                    if let Err(error) = take(hub, link, frame).await {
                        // Unacknowledged, everything comes again on the next connection.
                        let reason = format!("frame not recorded: {error}");
                        let _ = tokio::time::timeout(FAREWELL, link.queue.send(Err(error))).await;
                        return reason;
                    }
                }
            },
            () = link.backlog.drained() => hub.wake(&link.bearer.gateway_id),
            beat = heartbeat.next() => match beat {
                Beat::Send => {
                    let revision = hub.head(&link.bearer.gateway_id);
                    // A full queue says enough: its peer has something to read.
                    link.offer(To::Heartbeat(gateway::Heartbeat { revision }));
                    complete(hub, link).await;
                }
                Beat::Dead => {
                    let reason = "no sign of life".to_owned();
                    return end(link, Farewell { code: 4408, reason }).await;
                }
            },
        }
    }
}

/// What is never acknowledged is done once the connection has outlived it for as long as a dead peer may
/// go unnoticed. If it ends before, the event is sent again on the next one.
async fn complete(hub: &Hub, link: &Link) {
    let done = link.outlived(hub.config().silence());
    if done.is_empty() {
        return;
    }
    match hub.events().complete(&link.bearer.gateway_id, &done, hub.clock().now_ms()).await {
        Ok(()) => drop(link.unanswered().drain(..done.len())),
        Err(error) => tracing::warn!(gateway = link.bearer.gateway_id, %error, "events not completed yet"),
    }
}

/// Completes when the platform wants the connection to end.
async fn asked_to_end(farewell: &mut watch::Receiver<Option<Farewell>>) -> Farewell {
    match farewell.wait_for(Option::is_some).await.map(|asked| asked.clone()) {
        Ok(Some(farewell)) => farewell,
        // The link holds the sender as long as the connection runs.
        _ => std::future::pending().await,
    }
}

async fn take(hub: &Hub, link: &Link, frame: GatewayFrame) -> Result<(), Error> {
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
            record(hub, link, &received).await
        }
        Some(From::Heartbeat(_)) => Ok(()),
        Some(From::Hello(_)) | None => {
            tracing::debug!(gateway = link.bearer.gateway_id, connection = link.id, "frame ignored");
            Ok(())
        }
    }
}

/// Records an acknowledgement. The peer waits meanwhile; it is better off than with a new connection.
async fn record(hub: &Hub, link: &Link, received: &Received) -> Result<(), Error> {
    for pause in RETRIES {
        match hub.acks().record(&link.bearer.gateway_id, received).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(gateway = link.bearer.gateway_id, %error, "acknowledgement not recorded yet");
                tokio::time::sleep(pause).await;
            }
        }
    }
    hub.acks().record(&link.bearer.gateway_id, received).await
}

async fn end(link: &Link, farewell: Farewell) -> String {
    *link.closing() = true;
    let frame = To::Close(gateway::Close { code: farewell.code, reason: farewell.reason.clone() });
    let close = link.queue.send(Ok(PlatformFrame { frame: Some(frame) }));
    let _ = tokio::time::timeout(FAREWELL, close).await;
    farewell.reason
}

/// What a peer says of itself, fit for a log.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn broken(error: &impl Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
