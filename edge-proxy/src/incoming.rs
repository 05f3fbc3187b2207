//! Bodies of requests as they come over their connections, and what becomes of those that nobody reads to the end.
//!
//! hyper closes a connection of HTTP/1.1 whose body was let go, without a word about it when the answer is ready
//! sooner: the client's next request finds nobody. So what is left of a small body is read and thrown away, and the
//! connection goes on; for a large one the answer says `Connection: close`, and `listener::linger` sees to it that it
//! arrives. HTTP/2 can end a stream by itself.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Request, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
    time::{timeout, timeout_at},
};
use tower::BoxError;

use crate::http2::Received;

/// What is left of a body is read up to here for the sake of its connection.
const SMALL: u64 = 256 * 1024;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer waits to know whether a body without a length is small.
const SOON: Duration = Duration::from_millis(100);

/// The body of a request.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Absent once it has ended.
    inner: Option<Inner>,
    /// Whom to tell what is left; absent where nobody has to know.
    left: Option<oneshot::Sender<Left>>,
    /// Whether the client waits to be asked for it (`Expect: 100-continue`).
    awaits: bool,
}

/// What it comes over.
#[derive(Debug)]
enum Inner {
    Http1(hyper::body::Incoming),
    Http2(Received),
}

/// What was left of a body.
#[derive(Debug)]
enum Left {
    /// Too much, or what was never asked for.
    Much,
    /// Little, which is being read.
    Little,
    /// Nobody knows how much: whether it has ended is known later.
    Unknown(JoinHandle<bool>),
}

/// What is known of a body when its request is answered.
#[derive(Debug)]
pub(crate) struct Rest(oneshot::Receiver<Left>);

/// Takes a request of HTTP/1.1 in.
pub(crate) fn accept(request: Request<hyper::body::Incoming>) -> (Request<Incoming>, Option<Rest>) {
    let (parts, inner) = request.into_parts();
    if inner.is_end_stream() {
        return (Request::from_parts(parts, Incoming { inner: None, left: None, awaits: false }), None);
    }
    let (sender, receiver) = oneshot::channel();
    let awaits = parts.version == Version::HTTP_11 && awaits(&parts.headers);
    let body = Incoming { inner: Some(Inner::Http1(inner)), left: Some(sender), awaits };
    (Request::from_parts(parts, body), Some(Rest(receiver)))
}

/// Takes a request of HTTP/2 in.
pub(crate) fn accept_http2(request: Request<RecvStream>) -> Request<Incoming> {
    let (parts, stream) = request.into_parts();
    let inner = (!stream.is_end_stream()).then(|| {
        let length = parts.headers.get(header::CONTENT_LENGTH);
        let announced = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Inner::Http2(Received::new(stream, announced))
    });
    Request::from_parts(parts, Incoming { inner, left: None, awaits: false })
}

fn awaits(headers: &HeaderMap) -> bool {
    headers.get_all(header::EXPECT).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Rest {
    /// Whether the connection is not to be used again after the answer, which is about to be sent.
    pub(crate) async fn ends_connection(mut self) -> bool {
        // Read to its end, or still being read: of a call with streams the answer may begin first.
        let Ok(left) = self.0.try_recv() else { return false };
        match left {
            Left::Much => true,
            Left::Little => false,
            Left::Unknown(mut reading) => {
                let ended = timeout(SOON, &mut reading).await.is_ok_and(|ended| ended.unwrap_or(false));
                reading.abort();
                !ended
            }
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        this.awaits = false;
        let frame = match inner {
            Inner::Http1(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from))
            }
            Inner::Http2(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from))
            }
        };
        if !matches!(frame, Some(Ok(_))) {
            this.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Some(Inner::Http1(body)) => body.is_end_stream(),
            Some(Inner::Http2(body)) => body.is_end_stream(),
            None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(Inner::Http1(body)) => body.size_hint(),
            Some(Inner::Http2(body)) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // HTTP/2 lets go of a stream alone.
        let (Some(Inner::Http1(inner)), Some(teller)) = (self.inner.take(), self.left.take()) else { return };
        if inner.is_end_stream() {
            return;
        }
        let left = match (inner.size_hint().exact(), Handle::try_current()) {
            _ if self.awaits => Left::Much,
            (Some(bytes), _) if bytes > SMALL => Left::Much,
            (_, Err(_)) => Left::Much,
            (Some(_), Ok(runtime)) => {
                runtime.spawn(discard(inner));
                Left::Little
            }
            (None, Ok(runtime)) => Left::Unknown(runtime.spawn(discard(inner))),
        };
        // Nobody listens when the answer has begun already.
        let _ = teller.send(left);
    }
}

/// Reads what is left of a body; says whether that was little.
async fn discard(mut body: hyper::body::Incoming) -> bool {
    let mut rest = SMALL;
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match timeout_at(until, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => {
                match rest.checked_sub(frame.data_ref().map_or(1, |data| data.len() as u64)) {
                    Some(less) => rest = less,
                    None => return false,
                }
            }
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
}
