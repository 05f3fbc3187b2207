//! What both ends of HTTP/2 need beside `h2` itself: bodies that come, bodies that go, peers that are silent.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{sleep, timeout};

use crate::Body;

/// A body as it comes. Dropping it before its end resets its stream.
#[derive(Debug)]
pub(crate) struct Received {
    stream: RecvStream,
    has_data: bool,
    /// How many bytes are still to come, where the head says so; `h2` sees to it that it is true.
    announced: Option<u64>,
}

impl Received {
    pub(crate) fn new(stream: RecvStream, announced: Option<u64>) -> Self {
        Self { stream, has_data: true, announced }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        // RFC 9113 §8.1: with this reason the rest is not wanted, and nothing is wrong.
        let ended = |error: h2::Error| (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error));
        if self.has_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is over.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.announced = self.announced.map(|bytes| bytes.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => self.has_data = false,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => ended(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Passes a body on, as fast as the peer takes it.
pub(crate) async fn pass_on(mut body: Body, mut stream: SendStream<Bytes>) {
    loop {
        let next = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Some),
        });
        let sent = match next.await {
            // Nobody wants the rest.
            None => return,
            Some(None) => return drop(stream.send_data(Bytes::new(), true)),
            Some(Some(Err(_))) => return stream.send_reset(Reason::INTERNAL_ERROR),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => send_all(&mut stream, data, body.is_end_stream()).await,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return drop(stream.send_trailers(trailers));
                }
            },
        };
        if sent.is_none() || body.is_end_stream() {
            return;
        }
    }
}

/// Sends data within the peer's windows; `None` when the stream is over.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, is_last: bool) -> Option<()> {
    if data.is_empty() && is_last {
        stream.send_data(data, true).ok()?;
        return Some(());
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => stream.poll_capacity(cx),
        });
        let room = room.await?.ok()?;
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, is_last && data.is_empty()).ok()?;
    }
    Some(())
}

/// Completes when a peer does not answer a ping in time, or cannot be asked any more.
pub(crate) async fn silence(mut pings: PingPong, every: Duration, patience: Duration) {
    loop {
        sleep(every).await;
        if !matches!(timeout(patience, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
