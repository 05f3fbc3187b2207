//! Compressed messages of native gRPC and gRPC-Web: services take none, so the edge inflates them, and bounds
//! what they become.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use http_body::{Frame, SizeHint};
use proto::MethodPolicy;
use tonic::Status;

use crate::{
    Body,
    body::too_large,
    codings::{self, Coding},
    connect::malformed,
    envelope,
    layers::Response,
    requests::{Fault, Translate, translated},
    rescue::Refusal,
};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The request as services take it, and where it says why it cannot be read. One that is not compressed stays as
/// it is, and nothing looks into it.
pub(super) fn request(
    policy: &MethodPolicy,
    request: http::Request<Body>,
) -> Result<(http::Request<Body>, Option<Fault>), Refusal> {
    let Some(coding) = codings::of_call(request.headers(), &ENCODING, ACCEPT_ENCODING)? else {
        return Ok((request, None));
    };
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(ENCODING);
    let (body, fault) = translated(body, Inflate { coding, limit: policy.max_request_bytes });
    Ok((http::Request::from_parts(parts, body), Some(fault)))
}

/// The answer, which says at its end when the request could not be read.
pub(super) fn answer(answer: Response, fault: Option<Fault>) -> Response {
    match fault {
        Some(fault) => answer.map(|inner| Body::new(Blamed { inner, fault })),
        None => answer,
    }
}

struct Inflate {
    coding: Coding,
    limit: usize,
}

impl Translate for Inflate {
    fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        let taken = envelope::take(read, self.limit).map_err(|_| too_large(self.limit))?;
        let Some((flag, message)) = taken else { return Ok(None) };
        let message = match flag {
            0 => message,
            envelope::COMPRESSED => self
                .coding
                .inflate(&message, self.limit)
                .map_err(|fault| codings::refusal(fault, self.limit))?,
            _ => return Err(malformed("a message has flags that mean nothing")),
        };
        envelope::wrap(0, &message).map(Some).map_err(|_| too_large(self.limit))
    }

    fn end(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        if read.is_empty() { Ok(None) } else { Err(malformed("the body ends within a message")) }
    }
}

/// An answer whose call may have ended because its request could not be read.
struct Blamed {
    inner: Body,
    fault: Fault,
}

impl http_body::Body for Blamed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        let ends = matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        if let Some(refusal) = ends.then(|| this.fault.take()).flatten() {
            let mut trailers = HeaderMap::new();
            if refusal.into_status().add_header(&mut trailers).is_ok() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
