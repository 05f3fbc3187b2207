//! Compressed messages of native gRPC and gRPC-Web: services take none, so the edge inflates them, and bounds
//! what they become.

use bytes::{Bytes, BytesMut};
use http::HeaderName;
use proto::MethodPolicy;

use crate::{
    Body,
    body::too_large,
    codings::{self, Coding},
    connect::malformed,
    envelope,
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
