//! Bodies under a bound: of bytes, of time. Nothing is read without one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use service_kit::{Error, Kind};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use crate::{Body, rescue::Refusal};

/// Reads a whole body of at most `limit` bytes until `deadline`.
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
    let late =
        || Refusal::http(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT", "the body did not arrive in time");
    tokio::time::timeout_at(deadline, gather(body, limit)).await.unwrap_or_else(|_| Err(late()))
}

async fn gather(mut body: Incoming, limit: usize) -> Result<Bytes, Refusal> {
    let mut gathered = BytesMut::new();
    let mut first = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::from(
                Error::new(Kind::Cancelled, "BODY_ABORTED", "the body ended early").caused_by(error),
            )
        })?;
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

/// The body is larger than its method takes.
pub(crate) fn too_large(limit: usize) -> Refusal {
    Refusal::http(
        StatusCode::PAYLOAD_TOO_LARGE,
        "BODY_TOO_LARGE",
        format!("the body is larger than the {limit} bytes that this method takes"),
    )
}

/// A request body that is passed on while it is counted. Too much ends the call by the channel.
pub(crate) struct Counted {
    inner: Body,
    rest: usize,
    too_much: Option<oneshot::Sender<()>>,
}

impl Counted {
    /// At most `limit` bytes; the receiver hears of more.
    pub(crate) fn new(inner: Body, limit: usize) -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self { inner, rest: limit, too_much: Some(sender) }, receiver)
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
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        match this.rest.checked_sub(bytes) {
            Some(rest) => {
                this.rest = rest;
                Poll::Ready(frame)
            }
            None => {
                if let Some(sender) = this.too_much.take() {
                    // Nobody listens when the call is over already.
                    let _ = sender.send(());
                }
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

/// A gRPC response body that always ends with a status: when time is up, when the edge drains, when the
/// service is gone.
pub(crate) struct Guarded {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
}

impl Guarded {
    pub(crate) fn new(
        inner: Body,
        deadline: Option<Instant>,
        stop: Option<WaitForCancellationFutureOwned>,
    ) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Self { inner, deadline, stop: stop.map(Box::pin), ended: false }
    }

    fn end(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        // Dropping the rest of the answer cancels the call.
        self.inner = Body::empty();
        let mut trailers = HeaderMap::new();
        if Status::from(error).add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", HeaderValue::from_static("13"));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
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
            Poll::Ready(Some(Ok(frame))) => {
                this.ended = frame.is_trailers();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(status))) => this.end(broken(status)),
            Poll::Ready(None) => {
                this.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                if this.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
                    return this.end(crate::rescue::late());
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

/// The connection to the service broke in the middle of an answer.
pub(crate) fn broken(status: Status) -> Error {
    Error::unavailable("the service broke off its answer", status)
}
