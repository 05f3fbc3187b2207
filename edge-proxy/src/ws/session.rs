//! The life of one open socket: one task that is its only writer.
//!
//! While something is being written, reading goes on and nothing more is taken from gateway-service, so a
//! slow peer holds up nobody but itself.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use proto::gateway::{Event, GatewayFrame, Heartbeat, PlatformFrame, gateway_frame, platform_frame};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tonic::Status;

use super::{
    activity::{Activity, Watched},
    end::{End, GOODBYE, end_of, farewell_of, internal, restart, say_goodbye},
    link::{Link, ToPlatform},
    proof::Proof,
    wire::{self, NotUnderstood},
};
use crate::config::GatewayLinkConfig;

/// The largest message of a gateway.
const MAX_INBOUND: usize = 64 * 1024;
/// The largest event. gateway-service refuses larger ones when they are made.
const MAX_EVENT: usize = 1024 * 1024;
/// How long a peer may take nothing while something is being written to it.
const STUCK: Duration = Duration::from_secs(10);
/// How many pings and pongs a second are worth an answer: a few are enough for any network.
const CONTROL_FRAMES: u32 = 10;
/// How many messages that make no sense are worth a warning; more would let a gateway fill the log.
const WARNINGS: u32 = 5;

#[cfg(test)]
mod tests;

type Socket<I> = WebSocketStream<Watched<I>>;

/// The rhythm of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    ping: Duration,
    dead: Duration,
    platform: Duration,
}

impl Timing {
    pub(super) fn of(config: &GatewayLinkConfig) -> Self {
        Self {
            ping: Duration::from_secs(config.ping_seconds.max(1)),
            dead: Duration::from_secs(config.dead_seconds.max(1)),
            platform: Duration::from_secs(config.platform_seconds.max(1)),
        }
    }
}

/// A socket and the stream behind it.
#[derive(Debug)]
pub(super) struct Session<S> {
    link: Link<S>,
    timing: Timing,
    /// Taken from the socket, not yet by gateway-service. While it is there, nothing more is read.
    held: Option<GatewayFrame>,
    proof: Proof,
    last_heartbeat: Instant,
    /// When gateway-service was last heard of; later by the time that it was not listened to since.
    platform_at: Instant,
    /// Pings and pongs since the beginning of a second.
    control: (Instant, u32),
    warnings: u32,
}

impl<S: Stream<Item = Result<PlatformFrame, Status>> + Unpin> Session<S> {
    pub(super) fn new(link: Link<S>, timing: Timing) -> Self {
        let now = Instant::now();
        Self {
            link,
            timing,
            held: None,
            proof: Proof::new(),
            last_heartbeat: now,
            platform_at: now,
            control: (now, 0),
            warnings: 0,
        }
    }

    pub(super) fn gateway_id(&self) -> &str {
        &self.link.connected.gateway_id
    }

    pub(super) fn connection_id(&self) -> &str {
        &self.link.connected.connection_id
    }

    /// Serves an upgraded connection until it ends, or until `farewell` completes.
    pub(super) async fn run<I: AsyncRead + AsyncWrite + Unpin>(
        mut self: Box<Self>,
        io: I,
        farewell: impl Future<Output = ()> + Unpin,
    ) -> End {
        let activity = Activity::new();
        let watched = Watched { io, activity: activity.clone() };
        let mut socket = WebSocketStream::from_raw_socket(watched, Role::Server, Some(small())).await;
        let end = self.relay(&mut socket, &activity, farewell).await;
        // Whoever does not take part in the goodbyes is simply left.
        let socket_over = tokio::time::timeout(GOODBYE, say_goodbye(&mut socket, &end));
        let stream_over = tokio::time::timeout(GOODBYE, self.leave(&end));
        let _ = tokio::join!(socket_over, stream_over);
        end
    }

    /// Ends the stream to gateway-service once it has taken what the gateway said last: dropped at once,
    /// the stream would take acknowledgements with it that are still on their way.
    async fn leave(self: Box<Self>, end: &End) {
        if matches!(end, End::Silent) {
            return;
        }
        let Self { link: Link { to_platform, mut from_platform, .. }, mut held, .. } = *self;
        if held.is_some() {
            let _ = hand_over(&to_platform, &mut held).await;
        }
        drop(to_platform);
        while let Some(Ok(_)) = from_platform.next().await {}
    }

    async fn relay<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut Socket<I>,
        activity: &Arc<Activity>,
        mut farewell: impl Future<Output = ()> + Unpin,
    ) -> End {
        let (sink, mut source) = socket.split();
        let mut writer = Writer::new(sink);
        let mut ping_at = Instant::now() + self.timing.ping;
        let mut wake = pin!(sleep_until(ping_at));
        match wire::connection_ack(&self.link.connected) {
            Ok(ack) => {
                if let Err(error) = writer.begin(Message::text(ack)).await {
                    return End::Lost(error);
                }
            }
            Err(error) => return internal(&error),
        }
        loop {
            let dead_at = activity.last_read() + self.timing.dead;
            let due = match writer.busy_since {
                Some(since) => dead_at.min(since.max(activity.last_written()) + STUCK),
                None => dead_at.min(ping_at).min(self.platform_at + self.timing.platform),
            };
            // Deadlines mostly move away: the timer is only touched when it would be late.
            if due < wake.deadline() || wake.is_elapsed() {
                wake.as_mut().reset(due);
            }
            let busy = writer.busy_since.is_some();
            let outcome = tokio::select! {
                message = source.next(), if self.held.is_none() => self.inbound(message),
                sent = writer.finish(), if busy => sent.map_err(End::Lost).map(|waited| {
                    // While it waited, gateway-service was not listened to.
                    self.platform_at += waited;
                }),
                frame = self.link.from_platform.next(), if !busy => match self.outbound(frame) {
                    Ok(Some(message)) => writer.begin(message).await.map_err(End::Lost),
                    Ok(None) => Ok(()),
                    Err(end) => Err(end),
                },
                sent = hand_over(&self.link.to_platform, &mut self.held), if self.held.is_some() => sent,
                () = wake.as_mut() => Ok(()),
                () = &mut farewell => Err(End::Farewell(CloseCode::Restart, "server restart".to_owned())),
            };
            if let Err(end) = outcome {
                return end;
            }
            let now = Instant::now();
            if now >= activity.last_read() + self.timing.dead {
                return End::Silent;
            }
            match writer.busy_since {
                Some(since) if now >= since.max(activity.last_written()) + STUCK => return End::Stuck,
                None if now >= ping_at => {
                    ping_at = now + self.timing.ping;
                    if let Err(error) = writer.begin(Message::Ping(self.proof.ping())).await {
                        return End::Lost(error);
                    }
                }
                None if now >= self.platform_at + self.timing.platform => return self.unheard(),
                _ => {}
            }
        }
    }

    /// A message of the gateway.
    fn inbound(&mut self, message: Option<Result<Message, Error>>) -> Result<(), End> {
        match message {
            Some(Ok(Message::Close(_))) => return Err(End::PeerLeft),
            Some(Ok(Message::Text(text))) => match wire::deployment_ack(&text) {
                Ok(ack) => {
                    self.held = Some(GatewayFrame { frame: Some(gateway_frame::Frame::DeploymentAck(ack)) });
                }
                Err(why) => self.note(why),
            },
            Some(Ok(Message::Binary(_))) => tracing::debug!("a binary message is ignored"),
            Some(Ok(Message::Pong(payload))) => {
                self.count_control()?;
                if let Some(revision) = self.proof.pong(&payload) {
                    // Not one of many signs of life: it must arrive.
                    self.last_heartbeat = Instant::now();
                    self.held = Some(heartbeat(revision));
                }
            }
            Some(Ok(_)) => self.count_control()?,
            Some(Err(error)) => return Err(end_of(error)),
            None => return Err(End::Lost(Error::ConnectionClosed)),
        }
        // Any message is a sign of life. gateway-service cuts a link that shows none for 30 s: leaving out
        // the pong that follows within 5 s of another message keeps the gap below 25 s, 15 s would not.
        if self.held.is_none() && self.last_heartbeat.elapsed() >= self.timing.ping / 4 {
            self.last_heartbeat = Instant::now();
            // Where there is no room, gateway-service has signs of life enough that it has not read.
            let _ = self.link.to_platform.try_send(Box::new(heartbeat(0)));
        }
        Ok(())
    }

    /// Each ping costs an answer, and each of both a turn.
    fn count_control(&mut self) -> Result<(), End> {
        if self.control.0.elapsed() >= Duration::from_secs(1) {
            self.control = (Instant::now(), 0);
        }
        self.control.1 += 1;
        match self.control.1 {
            0..=CONTROL_FRAMES => Ok(()),
            _ => Err(End::Farewell(CloseCode::Policy, "too many pings".to_owned())),
        }
    }

    /// gateway-service is stuck, and pings of ours would keep its gateway for good.
    fn unheard(&self) -> End {
        tracing::warn!(gateway = self.gateway_id(), "gateway-service shows no sign of life");
        restart()
    }

    fn note(&mut self, why: NotUnderstood) {
        let gateway = &self.link.connected.gateway_id;
        match why {
            NotUnderstood::UnknownType(kind) => tracing::debug!(gateway, kind, "a message is ignored"),
            NotUnderstood::Malformed(error) if self.warnings < WARNINGS => {
                self.warnings += 1;
                tracing::warn!(gateway, %error, "a message of a gateway makes no sense");
            }
            NotUnderstood::Malformed(_) => {}
        }
    }

    /// What a frame of gateway-service becomes.
    fn outbound(&mut self, frame: Option<Result<PlatformFrame, Status>>) -> Result<Option<Message>, End> {
        self.platform_at = Instant::now();
        match frame {
            Some(Ok(PlatformFrame { frame: Some(platform_frame::Frame::Event(event)) })) => {
                Ok(self.event(&event))
            }
            Some(Ok(PlatformFrame { frame: Some(platform_frame::Frame::Close(close)) })) => {
                Err(farewell_of(close))
            }
            // Its heartbeats are for those who speak gRPC; ours are pings.
            Some(Ok(_)) => Ok(None),
            Some(Err(status)) => {
                let gateway = self.gateway_id();
                tracing::warn!(gateway, code = ?status.code(), reason = status.message(), "the link broke");
                Err(restart())
            }
            None => Err(restart()),
        }
    }

    /// One bad event must not cut the link: it would come again with the next one.
    fn event(&mut self, event: &Event) -> Option<Message> {
        let (gateway, kind) = (&self.link.connected.gateway_id, &event.r#type);
        match wire::event(event) {
            Ok(text) if text.len() <= MAX_EVENT => {
                metrics::counter!("edge_gateway_events_total").increment(1);
                self.proof.wrote(event.revision);
                Some(Message::text(text))
            }
            Ok(text) => {
                tracing::error!(gateway, kind, bytes = text.len(), "an event is too large and is left out");
                None
            }
            Err(error) => {
                tracing::error!(gateway, kind, %error, "an event is not JSON and is left out");
                None
            }
        }
    }
}

/// The one writer of a socket: one message at a time.
pub(crate) struct Writer<S> {
    sink: S,
    /// Since when a message is on its way out.
    busy_since: Option<Instant>,
}

impl<S: Sink<Message, Error = Error> + Unpin> Writer<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink, busy_since: None }
    }

    /// Since when a message is on its way out.
    pub(crate) fn busy_since(&self) -> Option<Instant> {
        self.busy_since
    }

    /// Begins to write a message. There must be none on its way.
    pub(crate) async fn begin(&mut self, message: Message) -> Result<(), Error> {
        self.busy_since = Some(Instant::now());
        self.sink.feed(message).await
    }

    /// Goes on until the message is out, and says how long that took. May be dropped and called again.
    pub(crate) async fn finish(&mut self) -> Result<Duration, Error> {
        self.sink.flush().await?;
        Ok(self.busy_since.take().map(|since| since.elapsed()).unwrap_or_default())
    }
}

/// A sign of life; also the proof that a gateway has read everything up to a revision, which 0 is not.
fn heartbeat(revision: u64) -> GatewayFrame {
    let beat = Heartbeat { revision, ..Heartbeat::default() };
    GatewayFrame { frame: Some(gateway_frame::Frame::Heartbeat(beat)) }
}

/// Gives a frame to gateway-service as soon as it takes one.
async fn hand_over(to_platform: &ToPlatform, held: &mut Option<GatewayFrame>) -> Result<(), End> {
    let Ok(permit) = to_platform.reserve().await else { return Err(restart()) };
    if let Some(frame) = held.take() {
        permit.send(Box::new(frame));
    }
    Ok(())
}

/// Buffers that fit small messages: the defaults are 128 KiB for each idle socket.
fn small() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(512)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_EVENT + MAX_INBOUND)
        .max_message_size(Some(MAX_INBOUND))
        .max_frame_size(Some(MAX_INBOUND))
}
