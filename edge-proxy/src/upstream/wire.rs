//! One HTTP/2 connection to an instance, on `h2` itself: a call costs no task and no channel of its own. Only a
//! request that is a stream has a task, which carries its messages.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{
    PingPong, Reason,
    client::{self, Connection, ResponseFuture, SendRequest},
};
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Body,
    http2::{Received, pass_on, silence},
};

/// Bytes of requests that wait for a connection, of each stream.
const SEND_BUFFER: usize = 1024 * 1024;

/// What calls and long streams need of HTTP/2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    stream_window: u32,
    connection_window: u32,
    ping_interval: Duration,
    ping_timeout: Duration,
}

impl Shape {
    /// For calls.
    pub(super) const CALLS: Self = Self {
        stream_window: 256 * 1024,
        connection_window: 4 * 1024 * 1024,
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(10),
    };

    /// For thousands of long streams. What a stream has not read counts against its connection too: with
    /// these windows, 4,096 streams that are stuck leave room for the one that is not. An instance that stands
    /// still is noticed in 10 s, so that whoever hangs on it goes elsewhere.
    pub(super) const STREAMS: Self = Self {
        stream_window: 32 * 1024,
        connection_window: 160 * 1024 * 1024,
        ping_interval: Duration::from_secs(5),
        ping_timeout: Duration::from_secs(5),
    };
}

/// The near end of a connection. It says goodbye and ends when this and all calls on it are gone.
#[derive(Debug)]
pub(super) struct Wire {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
    /// `h2` does not tell a connection that stands still that its last user has gone.
    _gone: oneshot::Sender<()>,
}

/// The far end of the same: carries it, and ends with it.
pub(super) type Run = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) head: http::Request<()>,
    pub(super) messages: Messages,
}

/// The messages of a request.
#[derive(Debug)]
pub(super) enum Messages {
    /// All of them.
    Whole(Bytes),
    /// As they come.
    Stream(Body),
}

/// Why a request was not sent; it comes back if it can be sent elsewhere.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) request: Option<Box<Outgoing>>,
    pub(super) error: h2::Error,
}

/// A request that was sent. Dropping it resets its stream.
#[derive(Debug)]
pub(super) struct Sent {
    answer: ResponseFuture,
    sending: Option<AbortOnDropHandle<()>>,
}

/// The body of an answer. Dropping it before its end resets its stream.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Received,
    _sending: Option<AbortOnDropHandle<()>>,
}

/// Begins HTTP/2 on a socket. `room` is kept at the number of streams that the peer takes.
pub(super) async fn begin<I>(io: I, shape: Shape, room: Arc<AtomicUsize>) -> io::Result<(Wire, Run)>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = client::Builder::new()
        .enable_push(false)
        .initial_window_size(shape.stream_window)
        .initial_connection_window_size(shape.connection_window)
        .max_send_buffer_size(SEND_BUFFER)
        // None before the instance has said how many: calls must not queue here that others could take.
        .initial_max_send_streams(0)
        .handshake::<_, Bytes>(io);
    let (sender, mut connection) = handshake.await.map_err(io::Error::other)?;
    let pings = connection.ping_pong();
    // Its settings have come when it says how many streams it takes.
    let settled = poll_fn(|cx| match connection.poll_unpin(cx) {
        Poll::Ready(ended) => Poll::Ready(Err(ended.err())),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    });
    settled.await.map_err(|ended| ended.map_or(io::ErrorKind::ConnectionReset.into(), io::Error::other))?;
    room.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
    let closed = Arc::new(AtomicBool::new(false));
    let (gone, going) = oneshot::channel();
    let run = Box::pin(carry(connection, pings, shape, room, closed.clone(), going));
    Ok((Wire { sender, closed, _gone: gone }, run))
}

/// Carries a connection to its end, or until its peer answers no ping.
async fn carry<I>(
    mut connection: Connection<I, Bytes>,
    pings: Option<PingPong>,
    shape: Shape,
    room: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    going: oneshot::Receiver<()>,
) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut going = Some(going);
    // A task of its own, so that the frames that come and go do not look at its timer each time.
    let mut silent = pings.map(|pings| {
        AbortOnDropHandle::new(tokio::spawn(silence(pings, shape.ping_interval, shape.ping_timeout)))
    });
    let ended = poll_fn(|cx| {
        if going.as_mut().is_some_and(|going| going.poll_unpin(cx).is_ready()) {
            going = None;
        }
        if silent.as_mut().is_some_and(|silent| silent.poll_unpin(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let polled = connection.poll_unpin(cx);
        if polled.is_pending() {
            room.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
        }
        polled.map_err(io::Error::other)
    });
    let ended = ended.await;
    closed.store(true, Ordering::Relaxed);
    ended
}

impl Wire {
    /// Whether it takes no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Sends a request.
    pub(super) fn send(&self, request: Outgoing) -> Result<Sent, Unsent> {
        let mut sender = self.sender.clone();
        // A connection that says goodbye, or has broken, says so here, while the request is still ours.
        if let Some(Err(error)) = poll_fn(|cx| sender.poll_ready(cx)).now_or_never() {
            self.closed.store(true, Ordering::Relaxed);
            return Err(Unsent { request: Some(Box::new(request)), error });
        }
        let Outgoing { head, messages } = request;
        let sent = sender.send_request(head, false);
        let (answer, mut stream) = sent.map_err(|error| Unsent { request: None, error })?;
        let sending = match messages {
            Messages::Whole(bytes) => {
                // An error of the stream is told by its answer too.
                let _ = stream.send_data(bytes, true);
                None
            }
            Messages::Stream(body) => Some(AbortOnDropHandle::new(tokio::spawn(pass_on(body, stream)))),
        };
        Ok(Sent { answer, sending })
    }
}

impl Sent {
    /// The answer, as soon as it begins.
    pub(super) async fn answer(self) -> Result<http::Response<Incoming>, h2::Error> {
        let Self { answer, sending } = self;
        let answer = answer.await?;
        Ok(answer.map(|stream| Incoming { body: Received::new(stream, None), _sending: sending }))
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        // RFC 9113 §8.1: with this reason the rest of the request is not wanted, and nothing is wrong.
        let counts = |frame: &Result<_, h2::Error>| {
            frame.as_ref().err().is_none_or(|error| error.reason() != Some(Reason::NO_ERROR))
        };
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| frame.filter(counts))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
