//! Streams: envelopes in both directions, and the status in the last one; HTTP says 200 whatever happens.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, Version, header, request::Parts};
use http_body::Frame;
use proto::MethodPolicy;
use service_kit::{Error, Kind};
use tonic::Status;

use super::{Answers, Codecs, Format, Piece, call, malformed, metadata};
use crate::{
    Body, Edge,
    body::too_large,
    codings::{self, Coding},
    envelope, grpc,
    layers::{
        Response,
        trace::{Ending, Noted},
    },
    requests::{Fault, Translate, translated},
    rescue::{self, Refusal},
};

const CONTENT_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("connect-accept-encoding");

/// Smaller messages gain nothing.
const MIN_DEFLATED: usize = 1_024;

/// A call as POST.
pub(super) async fn post(
    edge: &Edge,
    policy: &'static MethodPolicy,
    format: Format,
    parts: Parts,
    body: Body,
) -> Result<Response, Refusal> {
    let method = &policy.descriptor;
    if method.is_client_streaming() && method.is_server_streaming() && parts.version < Version::HTTP_2 {
        return Err(Refusal::http(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "HTTP2_REQUIRED",
            "streams in both directions need HTTP/2, or a WebSocket",
        ));
    }
    let codecs = Codecs::of(policy, format)?;
    let coding = codings::of_call(&parts.headers, &CONTENT_ENCODING, ACCEPT_ENCODING)?;
    let deflates = accepted(&parts.headers).and_then(Coding::first_of);
    let single = !method.is_client_streaming();
    let reads = Envelopes { coding, codecs, limit: policy.max_request_bytes, single, count: 0 };
    let (body, mut fault) = translated(body, reads);
    let answer = grpc::serve(edge, call(policy, parts, body)?).await;
    let (headers, answers) = Answers::of(fault.or(answer)?);

    let ending = Ending::default();
    let body = Sealed { answers, fault, codecs, deflates, ending: ending.clone(), over: false };
    let mut response = Response::new(Body::new(body));
    metadata::of_answer(&headers).for_each(|(name, value)| {
        response.headers_mut().append(name, value);
    });
    response.headers_mut().insert(header::CONTENT_TYPE, format.of_streams());
    if let Some(coding) = deflates {
        response.headers_mut().insert(CONTENT_ENCODING, coding.name());
    }
    response.extensions_mut().insert(Noted { route: Some(&policy.path), code: None });
    response.extensions_mut().insert(ending);
    Ok(response)
}

fn accepted(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCEPT_ENCODING)?.to_str().ok()
}

/// Reads a body of envelopes.
struct Envelopes {
    coding: Option<Coding>,
    codecs: Codecs,
    limit: usize,
    /// The method takes one message only.
    single: bool,
    count: usize,
}

impl Translate for Envelopes {
    fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        let taken = envelope::take(read, self.limit).map_err(|_| too_large(self.limit))?;
        let Some((flag, message)) = taken else { return Ok(None) };
        let message = match (flag, self.coding) {
            (0, _) => message,
            (envelope::COMPRESSED, Some(coding)) => {
                coding.inflate(&message, self.limit).map_err(|fault| codings::refusal(fault, self.limit))?
            }
            (envelope::COMPRESSED, None) => {
                return Err(malformed("a message is compressed, and no header says how"));
            }
            _ => return Err(malformed("a message has flags that mean nothing in a request")),
        };
        self.count += 1;
        if self.single && self.count > 1 {
            return Err(cardinality());
        }
        let frame = envelope::wrap(0, &self.codecs.read(message)?);
        frame.map(Some).map_err(|_| too_large(self.limit))
    }

    fn end(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        if !read.is_empty() {
            return Err(malformed("the body ends within a message"));
        }
        if self.single && self.count == 0 { Err(cardinality()) } else { Ok(None) }
    }
}

/// gRPC has UNIMPLEMENTED for it, and Connect follows.
fn cardinality() -> Refusal {
    Error::new(Kind::Unimplemented, "MALFORMED_MESSAGE", "this method takes exactly one message").into()
}

/// Writes the messages of an answer into envelopes, no faster than the client reads.
struct Sealed {
    answers: Answers,
    fault: Fault,
    codecs: Codecs,
    deflates: Option<Coding>,
    ending: Ending,
    over: bool,
}

impl Sealed {
    fn message(&self, message: Bytes) -> Result<Bytes, Error> {
        let message = self.codecs.write(message)?;
        let (flag, message) = match self.deflates.filter(|_| message.len() >= MIN_DEFLATED) {
            Some(coding) => (envelope::COMPRESSED, coding.deflate(&message).map_err(Error::internal)?.into()),
            None => (0, message),
        };
        envelope::wrap(flag, &message).map_err(|_| Error::internal(anyhow::anyhow!("a message is too large")))
    }

    fn end(&mut self, status: &Status, trailers: &HeaderMap) -> Bytes {
        self.over = true;
        self.ending.is(status.code());
        envelope::wrap(envelope::END, &rescue::connect::end(Some(status), trailers)).unwrap_or_default()
    }
}

impl http_body::Body for Sealed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let bytes = match ready!(this.answers.poll_next(cx)) {
            Piece::Message(message) => match this.message(message) {
                Ok(bytes) => bytes,
                Err(error) => this.end(&error.into(), &HeaderMap::new()),
            },
            // A request that cannot be read breaks the call; why, only its reader knows.
            Piece::End(status, trailers) => match this.fault.take() {
                Some(refusal) => this.end(&refusal.into_status(), &HeaderMap::new()),
                None => this.end(&status, &trailers),
            },
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
