//! Bodies under a bound: of bytes, of time. Nothing is read without one.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use service_kit::{Error, Kind};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tower::BoxError;

use crate::{Body, cache::Written, codings, incoming::Incoming, requests::Fault, rescue::Refusal};

/// Reads a whole body of at most `limit` bytes, inflated or not, until `deadline`.
pub(crate) async fn read(
    body: Incoming,
    headers: &HeaderMap,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // What announces itself as too large is not waited for.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > limit as u64) {
        return Err(too_large(limit));
    }
    let coding = codings::of_body(headers)?;
    let body =
        tokio::time::timeout_at(deadline, gather(body, limit)).await.unwrap_or_else(|_| Err(late()))?;
    match coding {
        Some(coding) => codings::inflated(coding, body, limit).await,
        None => Ok(body),
    }
}

async fn gather(mut body: Incoming, limit: usize) -> Result<Bytes, Refusal> {
    let mut gathered = BytesMut::new();
    let mut first = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(aborted)?;
        let Ok(data) = frame.into_data() else { continue };
        let before = gathered.len() + first.as_ref().map_or(0, Bytes::len);
        if before + data.len() > limit {
            return Err(too_large(limit));
        }
        // Most bodies are one frame, which is then not copied.
        match first.take() {
            None if gathered.is_empty() => first = Some(data),
            None => gathered.extend_from_slice(&data),
            Some(earlier) => {
                gathered.extend_from_slice(&earlier);
                gathered.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| gathered.freeze()))
}

/// What broke the HTTP of its body off is told so: it is still there. Who left hears nothing anyway.
fn aborted(error: BoxError) -> Refusal {
    use std::io;
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Refusal::http(StatusCode::BAD_REQUEST, "MALFORMED_BODY", "the body breaks the rules of HTTP/1.1")
        }
        _ => Error::new(Kind::Cancelled, "BODY_ABORTED", "the body ended early")
            .caused_by(anyhow::Error::from_boxed(error))
            .into(),
    }
}

/// The body is not there in time.
pub(crate) fn late() -> Refusal {
    Refusal::http(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT", "the body did not arrive in time")
}

/// The body is larger than its method takes.
pub(crate) fn too_large(limit: usize) -> Refusal {
    Refusal::http(
        StatusCode::PAYLOAD_TOO_LARGE,
        "BODY_TOO_LARGE",
        format!("the body is larger than the {limit} bytes that this method takes"),
    )
}

/// A request body that is passed on while it is counted. Too much, and what cannot be read, end the call
/// by the channel.
pub(crate) struct Counted {
    inner: Body,
    rest: usize,
    refused: Option<oneshot::Sender<Refused>>,
    answer: Option<oneshot::Receiver<Alive>>,
}

/// Why a request body is not passed on to its end.
#[derive(Debug)]
pub(crate) enum Refused {
    /// More bytes than the limit.
    TooLarge,
    /// It cannot be read: broken off, or no base64 where gRPC-Web promised some.
    Unreadable,
}

/// Nothing is ever sent: what counts is that the sender is there.
#[derive(Debug)]
pub(crate) enum Alive {}

impl Counted {
    /// At most `limit` bytes; the receiver hears of more.
    pub(crate) fn new(inner: Body, limit: usize) -> (Self, oneshot::Receiver<Refused>) {
        let (sender, receiver) = oneshot::channel();
        (Self { inner, rest: limit, refused: Some(sender), answer: None }, receiver)
    }

    fn refuse(&mut self, why: Refused) {
        if let Some(sender) = self.refused.take() {
            // Nobody listens when the call is over already.
            let _ = sender.send(why);
        }
    }

    /// Ends together with the answer, whose [`Guarded`] keeps the sender. A client that goes on sending
    /// would otherwise keep the stream, and with it the connection, open after its end.
    pub(crate) fn end_with_answer(&mut self) -> oneshot::Sender<Alive> {
        let (sender, receiver) = oneshot::channel();
        self.answer = Some(receiver);
        sender
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.answer.as_mut().is_some_and(|answer| Pin::new(answer).poll(cx).is_ready()) {
            this.answer = None;
            this.inner = Body::empty();
            return Poll::Ready(Some(Err(Status::cancelled("the call is over"))));
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Err(_)) = &frame {
            this.refuse(Refused::Unreadable);
        }
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        match this.rest.checked_sub(bytes) {
            Some(rest) => {
                this.rest = rest;
                Poll::Ready(frame)
            }
            None => {
                this.refuse(Refused::TooLarge);
                Poll::Ready(Some(Err(Status::resource_exhausted("the request is too large"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Behind base64 the inner body's hint is that of the text: it would become a wrong content-length.
        SizeHint::default()
    }
}

/// The beginning of a request.
pub(crate) enum Start {
    /// There was no more.
    Whole(Bytes),
    /// All of it, as it comes; the receiver hears of what is wrong with it.
    More(Body, oneshot::Receiver<Refused>),
}

/// Waits for a request of one message, or for more of it than is to be kept: a service can do nothing with
/// half a message, and what is here whole can be sent twice. At most `limit` bytes.
pub(crate) async fn start(mut body: Body, keep: usize, limit: usize) -> Result<Start, Refused> {
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(|_| Refused::Unreadable)?.into_data() else { break };
        if first.is_empty() && gathered.is_empty() {
            first = data;
        } else {
            gathered.extend_from_slice(&std::mem::take(&mut first));
            gathered.extend_from_slice(&data);
        }
        let bytes = first.len() + gathered.len();
        if bytes > limit {
            return Err(Refused::TooLarge);
        }
        if bytes > keep && !body.is_end_stream() {
            let begun = if gathered.is_empty() { first } else { gathered.freeze() };
            let begun = Body::new(Begun { begun: Some(begun), rest: body });
            let (body, refused) = Counted::new(begun, limit);
            return Ok(Start::More(Body::new(body), refused));
        }
    }
    Ok(Start::Whole(if gathered.is_empty() { first } else { gathered.freeze() }))
}

/// A body whose beginning was read already.
struct Begun {
    begun: Option<Bytes>,
    rest: Body,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.begun.take() {
            Some(begun) => Poll::Ready(Some(Ok(Frame::data(begun)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_none() && self.rest.is_end_stream()
    }
}

/// A gRPC response body that always ends with a status: when time is up, when the edge drains, when the
/// service is gone.
pub(crate) struct Guarded {
    inner: Body,
    deadline: Option<Instant>,
    /// Until then; most answers are there before anybody has to wait for them.
    sleep: Option<Pin<Box<Sleep>>>,
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    alive: Option<oneshot::Sender<Alive>>,
    /// What the call may have changed, told before its caller hears of its end.
    written: Option<Written>,
    /// Why the call may have ended: its request could not be read.
    fault: Option<Fault>,
    ended: bool,
}

impl Guarded {
    pub(crate) fn new(
        inner: Body,
        deadline: Option<Instant>,
        stop: Option<WaitForCancellationFutureOwned>,
    ) -> Self {
        let stop = stop.map(Box::pin);
        Self { inner, deadline, sleep: None, stop, alive: None, written: None, fault: None, ended: false }
    }

    /// Keeps the request's body going for as long as this one does.
    pub(crate) fn keeping(mut self, alive: Option<oneshot::Sender<Alive>>) -> Self {
        self.alive = alive;
        self
    }

    /// Tells of changes when it ends.
    pub(crate) fn noting(mut self, written: Option<Written>) -> Self {
        self.written = written;
        self
    }

    /// Says at the end what was wrong with the request, if something was.
    pub(crate) fn blaming(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// The call is over, in one way or another.
    fn over(&mut self) {
        self.ended = true;
        self.alive = None;
        self.written = None;
    }

    /// What was wrong with the request.
    fn blamed(&mut self) -> Option<Status> {
        self.fault.as_mut().and_then(Fault::take).map(Refusal::into_status)
    }

    fn end(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.over();
        // Dropping the rest of the answer cancels the call.
        self.inner = Body::empty();
        let status = self.blamed().unwrap_or_else(|| error.into());
        Poll::Ready(Some(Ok(trailers_of(status))))
    }
}

fn trailers_of(status: Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    Frame::trailers(trailers)
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    // Cookies are for REST.
                    trailers.remove(header::SET_COOKIE);
                    this.over();
                    frame = this.blamed().map_or(frame, trailers_of);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(status))) => this.end(broken(status)),
            Poll::Ready(None) => {
                this.over();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if let Some(deadline) = this.deadline {
                    let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                    if sleep.as_mut().poll(cx).is_ready() {
                        return this.end(crate::rescue::late());
                    }
                }
                if this.stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
                    let drained = Error::new(Kind::Unavailable, "DRAINING", "this edge is being restarted");
                    return this.end(drained);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The service broke off in the middle of an answer. What is known of the reason comes with details.
pub(crate) fn broken(status: Status) -> Error {
    match status.details() {
        [] => Error::unavailable("the service broke off its answer", status),
        _ => Error::from(status),
    }
}
