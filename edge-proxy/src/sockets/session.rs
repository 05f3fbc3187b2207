//! The life of one socket that carries a call: one task that is its only writer.
//!
//! A message of the client is read when the service has taken the one before, a message of the service when the
//! client has: neither side can fill the edge.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use proto::MethodPolicy;
use service_kit::{Error, Kind};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as Broken, Message,
        protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::records::{self, Fault, Said};
use crate::{
    config::{LimitsConfig, SocketsConfig},
    connect::{Answers, Codecs, Format, Piece},
    layers::Response,
    rescue::Refusal,
    ws::{Activity, End, GOODBYE, Watched, Writer, end_of, say_goodbye},
};

/// How many pings and pongs a second are worth an answer.
const CONTROL_FRAMES: u32 = 10;
/// What a record adds to a message in JSON, generously.
const RECORD: usize = 64;

#[cfg(test)]
mod tests;

/// The answer to a call on its way.
pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Response, Refusal>> + Send>>;

/// The call behind a socket.
pub(super) enum Call {
    /// The service has not begun to answer.
    Opening(Opening),
    /// It has.
    Open(Answers),
    /// There is no more to come.
    Over,
}

impl Call {
    pub(super) fn of(answer: Response) -> Self {
        Self::Open(Answers::of(answer).1)
    }

    /// The next piece of the answer. May be dropped and called again.
    async fn next(&mut self) -> Piece {
        loop {
            match self {
                Self::Opening(answer) => match answer.await {
                    Ok(answer) => *self = Self::of(answer),
                    Err(refusal) => {
                        *self = Self::Over;
                        return Piece::End(Box::new(refusal.into_status()), HeaderMap::new());
                    }
                },
                Self::Open(answers) => return answers.next().await,
                Self::Over => return std::future::pending().await,
            }
        }
    }
}

/// The body of the call: what the socket hands over. It says when somebody asks for it, which nobody does before
/// the call is admitted.
pub(super) struct Frames {
    frames: mpsc::Receiver<Bytes>,
    begun: Option<oneshot::Sender<()>>,
}

impl Frames {
    pub(super) fn new(frames: mpsc::Receiver<Bytes>) -> (Self, oneshot::Receiver<()>) {
        let (begun, receiver) = oneshot::channel();
        (Self { frames, begun: Some(begun) }, receiver)
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(begun) = self.begun.take() {
            // Nobody waits when the answer came first.
            let _ = begun.send(());
        }
        self.frames.poll_recv(cx).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

/// The rhythm of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    ping: Duration,
    dead: Duration,
    /// How long a client may take nothing of what there is for it.
    patience: Duration,
    /// When the caller's token ends.
    expires: Option<Instant>,
}

impl Timing {
    pub(super) fn of(sockets: &SocketsConfig, limits: &LimitsConfig, expires: Option<Instant>) -> Self {
        Self {
            ping: Duration::from_secs(sockets.ping_seconds),
            dead: Duration::from_secs(sockets.dead_seconds),
            patience: Duration::from_secs(limits.write_seconds.max(1)),
            expires,
        }
    }
}

/// A socket's side of a call.
pub(super) struct Session {
    call: Call,
    /// `None` once the client has said that there is no more.
    to_service: Option<mpsc::Sender<Bytes>>,
    /// Taken from the socket, not yet by the service. While it is there, nothing more is read.
    held: Option<Bytes>,
    /// When reading went on last: who is not listened to shows no sign of life.
    reads_since: Instant,
    /// The last record and how the socket is closed after it.
    last: Option<(Message, End)>,
    code: Option<Code>,
    codecs: Codecs,
    format: Format,
    single: bool,
    limit: usize,
    /// Pings and pongs since the beginning of a second.
    control: (Instant, u32),
}

impl Session {
    pub(super) fn new(
        call: Call,
        to_service: mpsc::Sender<Bytes>,
        codecs: Codecs,
        format: Format,
        policy: &MethodPolicy,
    ) -> Self {
        let now = Instant::now();
        Self {
            call,
            to_service: Some(to_service),
            held: None,
            reads_since: now,
            last: None,
            code: None,
            codecs,
            format,
            single: !policy.descriptor.is_client_streaming(),
            limit: policy.max_request_bytes,
            control: (now, 0),
        }
    }

    /// Carries the call over an upgraded connection; says why the socket ended, and how the call did.
    pub(super) async fn run<I: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        io: I,
        timing: Timing,
        stop: CancellationToken,
    ) -> (End, Option<Code>) {
        let activity = Activity::new();
        let watched = Watched { io, activity: activity.clone() };
        let rules = small(self.limit + RECORD);
        let mut socket = WebSocketStream::from_raw_socket(watched, Role::Server, Some(rules)).await;
        let end = self.relay(&mut socket, &activity, timing, &stop).await;
        // Cancels the call if it is not over.
        self.call = Call::Over;
        self.to_service = None;
        // Whoever does not take part in the goodbyes is simply left.
        let _ = tokio::time::timeout(GOODBYE, say_goodbye(&mut socket, &end)).await;
        (end, self.code)
    }

    async fn relay<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut WebSocketStream<Watched<I>>,
        activity: &Arc<Activity>,
        timing: Timing,
        stop: &CancellationToken,
    ) -> End {
        let (sink, mut source) = socket.split();
        let mut writer = Writer::new(sink);
        let mut closing = None;
        let mut stopping = pin!(stop.cancelled());
        let mut ping_at = Instant::now() + timing.ping;
        let mut wake = pin!(sleep_until(ping_at));
        loop {
            let busy = writer.busy_since();
            if busy.is_none() {
                if let Some(end) = closing.take() {
                    return end;
                }
                if let Some((record, end)) = self.last.take() {
                    if let Err(error) = writer.begin(record).await {
                        return End::Lost(error);
                    }
                    closing = Some(end);
                    continue;
                }
            }
            let reads = self.held.is_none() && closing.is_none() && self.last.is_none();
            let dead_at = activity.last_read().max(self.reads_since) + timing.dead;
            let mut due = busy.map_or(ping_at, |since| since.max(activity.last_written()) + timing.patience);
            if reads {
                due = due.min(dead_at);
            }
            if let Some(expires) = timing.expires.filter(|_| self.last.is_none() && closing.is_none()) {
                due = due.min(expires);
            }
            if due < wake.deadline() || wake.is_elapsed() {
                wake.as_mut().reset(due);
            }
            let going = self.last.is_none() && closing.is_none();
            let outcome = tokio::select! {
                message = source.next(), if reads => self.inbound(message),
                sent = writer.finish(), if busy.is_some() => sent.map(|_| ()).map_err(End::Lost),
                piece = self.call.next(), if busy.is_none() && going => match self.outbound(piece) {
                    Some(message) => writer.begin(message).await.map_err(End::Lost),
                    None => Ok(()),
                },
                () = hand_over(&mut self.to_service, &mut self.held), if self.held.is_some() => {
                    self.reads_since = Instant::now();
                    if self.single {
                        self.to_service = None;
                    }
                    Ok(())
                }
                () = wake.as_mut() => Ok(()),
                () = &mut stopping, if going => {
                    self.fail(&super::draining().into());
                    Ok(())
                }
            };
            if let Err(end) = outcome {
                return end;
            }
            // What ends while the edge drains may end by that: a client is told to go elsewhere.
            if stop.is_cancelled()
                && let Some((_, End::Farewell(code, _))) = &mut self.last
            {
                *code = CloseCode::Away;
            }
            let now = Instant::now();
            if reads && now >= activity.last_read().max(self.reads_since) + timing.dead {
                return End::Silent;
            }
            match writer.busy_since() {
                Some(since) if now >= since.max(activity.last_written()) + timing.patience => {
                    return End::Stuck;
                }
                None if now >= ping_at => {
                    ping_at = now + timing.ping;
                    if let Err(error) = writer.begin(Message::Ping(Bytes::new())).await {
                        return End::Lost(error);
                    }
                }
                _ => {}
            }
            if going && timing.expires.is_some_and(|expires| now >= expires) {
                let error =
                    Error::new(Kind::Unauthenticated, "TOKEN_EXPIRED", "the access token has expired");
                self.fail(&error.into());
            }
        }
    }

    /// A message of the client.
    fn inbound(&mut self, message: Option<Result<Message, Broken>>) -> Result<(), End> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(end_of(error)),
            None => return Err(End::Lost(Broken::ConnectionClosed)),
        };
        match message {
            Message::Close(_) => return Err(End::PeerLeft),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return self.count_control(),
            Message::Text(_) | Message::Binary(_) => {}
        }
        match records::read(message, self.format, &self.codecs, self.limit) {
            Ok(Said::Message(_)) if self.to_service.is_none() => {
                let message =
                    "no message can follow: the method takes one, or the client has ended its stream";
                let error = Error::new(Kind::Unimplemented, "MALFORMED_MESSAGE", message);
                self.fail(&error.into());
            }
            Ok(Said::Message(frame)) => self.held = Some(frame),
            Ok(Said::End) => self.to_service = None,
            Err(Fault::Framing(code, message)) => return Err(End::Unreadable(code, message.to_owned())),
            Err(Fault::Message(refusal)) => self.fail(&refusal.into_status()),
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

    /// What a piece of the answer becomes.
    fn outbound(&mut self, piece: Piece) -> Option<Message> {
        match piece {
            Piece::Message(message) => match records::message(message, self.format, &self.codecs) {
                Ok(message) => return Some(message),
                Err(error) => self.fail(&error.into()),
            },
            Piece::End(status, trailers) => self.end(&status, &trailers),
        }
        None
    }

    fn fail(&mut self, status: &Status) {
        self.end(status, &HeaderMap::new());
    }

    /// The call is over: its last record follows what is being written. The first word counts.
    fn end(&mut self, status: &Status, trailers: &HeaderMap) {
        if self.code.is_some() {
            return;
        }
        self.code = Some(status.code());
        self.call = Call::Over;
        self.held = None;
        let farewell = End::Farewell(records::close_code(status), String::new());
        self.last = Some((records::end(status, trailers, self.format), farewell));
    }
}

/// Gives a frame to the service as soon as it takes one. A service that takes no more has answered, or will.
async fn hand_over(to_service: &mut Option<mpsc::Sender<Bytes>>, held: &mut Option<Bytes>) {
    let Some(sender) = to_service else {
        *held = None;
        return;
    };
    match sender.reserve().await {
        Ok(permit) => {
            if let Some(frame) = held.take() {
                permit.send(frame);
            }
        }
        Err(_) => *held = None,
    }
}

/// Buffers that grow with what is in them, and no more than one message of a client.
fn small(most: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        .max_message_size(Some(most))
        .max_frame_size(Some(most))
}
