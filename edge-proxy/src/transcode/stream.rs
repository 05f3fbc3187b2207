//! The answer of a method that streams: written as it comes, no faster than the client reads.
//!
//! There is no deadline for the whole. A stream ends when the service ends it, when the client leaves or
//! takes nothing any more, and when the edge drains; each of them ends the call to the service. A stream of bytes that
//! fails is broken off, so that nobody takes it for whole.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;
use service_kit::{Error, Kind, error::Result, opaque, shutdown::Tasks};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;

use super::{format::Writer, messages::Messages};
use crate::{Body, Edge, layers::Response, rescue::Refusal};

/// A quiet stream says after this time that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a slow client has for the last piece when the edge drains.
const FAREWELL: Duration = Duration::from_secs(1);

/// Tells proxies of a well-known make to pass everything on at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[cfg(test)]
mod tests;

/// The reply that streams an answer. What fails before the first message is an ordinary refusal.
pub(super) async fn reply(
    edge: &Edge,
    writer: Writer,
    answer: http::Response<Body>,
) -> Result<Response, Refusal> {
    let patience = Duration::from_secs(edge.live.load().bounds.write_seconds.max(1));
    streamed(&edge.tasks, patience, writer, answer).await
}

async fn streamed(
    tasks: &Tasks,
    patience: Duration,
    writer: Writer,
    answer: http::Response<Body>,
) -> Result<Response, Refusal> {
    let mut messages = Messages::of(answer)?;
    let stop = tasks.stopping();
    // Of bytes nobody can say what they are before the first have come.
    let quiet = if matches!(writer, Writer::Bytes) { Duration::MAX } else { KEEP_ALIVE };
    let first = tokio::select! {
        first = timeout(quiet, messages.next()) => first,
        () = stop.cancelled() => return Err(draining().into()),
    };
    let (content_type, first) = match first {
        Ok(Some(message)) => {
            let message = message?;
            (writer.content_type(Some(&message))?, Some(writer.message(message)?))
        }
        Ok(None) => (writer.content_type(None)?, None),
        // The client shall not wait any longer to hear that the stream stands.
        Err(_) => (writer.content_type(None)?, writer.keep_alive()),
    };
    let (out, pieces) = mpsc::channel(1);
    let pump = Pump { messages, writer, out, patience, stop };
    tasks.spawn_short(pump.run(first).in_current_span());

    let frames = ReceiverStream::new(pieces).map(|piece| piece.map(Frame::data));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// Clients come back when they are told to: not all of them in the same moment.
fn draining() -> Error {
    let wait = 500 + u64::from(u16::from_be_bytes(opaque::random()) % 4_500);
    Error::new(Kind::Unavailable, "DRAINING", "this edge is being restarted")
        .retry_after(Duration::from_millis(wait))
}

/// Carries a stream from the service to the client, one piece at a time.
struct Pump {
    messages: Messages,
    writer: Writer,
    out: mpsc::Sender<Result<Bytes, Status>>,
    /// How long the client may take nothing.
    patience: Duration,
    stop: CancellationToken,
}

impl Pump {
    /// Runs to the end of the stream. What is dropped then cancels the call.
    async fn run(mut self, first: Option<Bytes>) {
        let mut piece = first;
        loop {
            if let Some(piece) = piece
                && !self.send(Ok(piece)).await
            {
                return;
            }
            let message = tokio::select! {
                biased;
                () = self.out.closed() => return,
                () = self.stop.cancelled() => return self.fail(&draining()).await,
                message = self.messages.next() => message,
                () = sleep(KEEP_ALIVE) => {
                    piece = self.writer.keep_alive();
                    continue;
                }
            };
            match message.map(|message| message.and_then(|message| self.writer.message(message))) {
                Some(Ok(message)) => piece = Some(message),
                Some(Err(error)) => {
                    tracing::warn!(reason = error.reason(), %error, "a stream failed");
                    return self.fail(&error).await;
                }
                None => return,
            }
        }
    }

    async fn fail(&mut self, error: &Error) {
        let last = self.writer.error(error);
        self.send(last.ok_or_else(|| Status::aborted("the stream is broken off"))).await;
    }

    /// Hands a piece over as soon as the client has taken the one before. Says whether it still reads.
    async fn send(&mut self, piece: Result<Bytes, Status>) -> bool {
        let hurry = async {
            self.stop.cancelled().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            sent = self.out.send(piece) => sent.is_ok(),
            () = sleep(self.patience) => {
                tracing::info!("a client takes nothing of its stream and is left");
                false
            }
            () = hurry => false,
        }
    }
}
