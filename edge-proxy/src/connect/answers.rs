//! The messages of a gRPC answer as they come, and the status at its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use tonic::Status;

use crate::{
    Body,
    envelope::{self, take},
};

/// The largest message that a service may answer.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// What comes out of an answer.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A message.
    Message(Bytes),
    /// The status, and the service's own trailers; nothing follows.
    End(Box<Status>, HeaderMap),
}

/// An answer on its way. Dropping it cancels the call.
#[derive(Debug)]
pub(crate) struct Answers {
    body: Body,
    read: BytesMut,
    /// An answer may be nothing but a status.
    status: Option<HeaderMap>,
}

impl Answers {
    /// Splits an answer into its headers and what follows.
    pub(crate) fn of(answer: http::Response<Body>) -> (HeaderMap, Self) {
        let (parts, body) = answer.into_parts();
        let alone = parts.headers.contains_key(Status::GRPC_STATUS);
        let (headers, status) =
            if alone { (HeaderMap::new(), Some(parts.headers)) } else { (parts.headers, None) };
        (headers, Self { body, read: BytesMut::new(), status })
    }

    /// The next piece. Must not be asked again after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        if let Some(headers) = self.status.take() {
            return Poll::Ready(self.end(&headers));
        }
        loop {
            match take(&mut self.read, MAX_MESSAGE) {
                Ok(Some((0, message))) => return Poll::Ready(Piece::Message(message)),
                Ok(None) => {}
                Ok(Some(_)) => {
                    return Poll::Ready(self.broken("a message is compressed: nobody asked for it"));
                }
                Err(envelope::TooLarge) => return Poll::Ready(self.broken("a message is too large")),
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.read.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(self.end(&trailers));
                    }
                },
                Some(Err(status)) => return Poll::Ready(self.over(status, HeaderMap::new())),
                None => return Poll::Ready(self.broken("an answer without a status")),
            }
        }
    }

    /// As [`Self::poll_next`]; may be dropped and called again.
    pub(crate) async fn next(&mut self) -> Piece {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn end(&mut self, trailers: &HeaderMap) -> Piece {
        match Status::from_header_map(trailers) {
            Some(status) => self.over(status, super::metadata::of_trailers(trailers)),
            None => self.broken("trailers without a status"),
        }
    }

    fn broken(&mut self, what: &'static str) -> Piece {
        let error = service_kit::Error::internal(anyhow::anyhow!(what));
        self.over(error.into(), HeaderMap::new())
    }

    fn over(&mut self, status: Status, trailers: HeaderMap) -> Piece {
        self.body = Body::empty();
        Piece::End(Box::new(status), trailers)
    }
}
