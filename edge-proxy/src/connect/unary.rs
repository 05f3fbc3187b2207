//! Unary calls: the body is the message, trailers are headers, an error is a status of HTTP. Those as GET begin in `get`.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use http_body_util::Full;
use proto::MethodPolicy;
use service_kit::Error;
use tonic::{Code, Status};

use super::{Answers, Codecs, Format, Piece, call, malformed, metadata};
use crate::{
    Body, Edge,
    body::too_large,
    codings::{self, Coding},
    envelope, grpc,
    layers::{Response, compression::Secret, trace::Noted},
    requests::{Fault, Translate, translated},
    rescue::{self, Refusal},
};

/// A call as POST.
pub(super) async fn post(
    edge: &Edge,
    policy: &'static MethodPolicy,
    format: Format,
    parts: Parts,
    body: Body,
) -> Result<Response, Refusal> {
    let coding = codings::of_call(&parts.headers, &header::CONTENT_ENCODING, header::ACCEPT_ENCODING)?;
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let bytes = announced.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or_default();
    let codecs = Codecs::of(policy, format)?;
    let (body, mut fault) =
        translated(body, Whole { coding, bytes, codecs, limit: policy.max_request_bytes });
    let answer = grpc::serve(edge, call(policy, parts, body)?).await;
    let answer = fault.or(answer)?;
    reply(policy, format, codecs, answer, Some(&mut fault)).await
}

/// The answer of a call, whose request may turn out to have been no message.
pub(super) async fn reply(
    policy: &'static MethodPolicy,
    format: Format,
    codecs: Codecs,
    answer: Response,
    fault: Option<&mut Fault>,
) -> Result<Response, Refusal> {
    let (headers, answers) = Answers::of(answer);
    let (message, status, trailers) = read(answers, fault).await?;
    let code = status.code();
    let mut response = match message {
        Some(message) if code == Code::Ok => whole(codecs.write(message)?, format),
        None if code == Code::Ok => {
            return Err(Error::internal(anyhow::anyhow!("an answer without a message")).into());
        }
        _ => rescue::connect::unary(&status, None),
    };
    add(response.headers_mut(), metadata::of_answer(&headers));
    add(response.headers_mut(), metadata::prefixed(&trailers));
    Secret::mark(policy, &mut response);
    response.extensions_mut().insert(Noted { route: Some(&policy.path), code: Some(code) });
    Ok(response)
}

/// Metadata may have several values of one name.
fn add(headers: &mut HeaderMap, more: impl Iterator<Item = (HeaderName, HeaderValue)>) {
    more.for_each(|(name, value)| {
        headers.append(name, value);
    });
}

fn whole(message: Bytes, format: Format) -> Response {
    let length = message.len();
    let mut response = Response::new(Body::new(Full::new(message)));
    response.headers_mut().insert(header::CONTENT_TYPE, format.of_messages());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// The one message, and how it ended.
async fn read(
    mut answers: Answers,
    fault: Option<&mut Fault>,
) -> Result<(Option<Bytes>, Box<Status>, HeaderMap), Refusal> {
    let mut message = None;
    loop {
        match answers.next().await {
            Piece::Message(next) if message.is_none() => message = Some(next),
            Piece::Message(_) => {
                return Err(Error::internal(anyhow::anyhow!("an answer of two messages")).into());
            }
            Piece::End(status, trailers) => {
                return match fault.and_then(Fault::take) {
                    Some(refusal) => Err(refusal),
                    None => Ok((message, status, trailers)),
                };
            }
        }
    }
}

/// Reads a body that is one message.
struct Whole {
    coding: Option<Coding>,
    /// What the body announces to be, in bytes.
    bytes: u64,
    codecs: Codecs,
    limit: usize,
}

impl Translate for Whole {
    fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        // What announces itself as too large is not waited for.
        if read.len().max(usize::try_from(self.bytes).unwrap_or(usize::MAX)) > self.limit {
            return Err(too_large(self.limit));
        }
        Ok(None)
    }

    fn end(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        let mut message = read.split().freeze();
        if let Some(coding) = self.coding {
            let plain = coding.inflate(&message, self.limit);
            message = plain.map_err(|fault| codings::refusal(fault, self.limit))?;
        }
        let frame = envelope::wrap(0, &self.codecs.read(message)?);
        frame.map(Some).map_err(|_| malformed("the message is too large"))
    }
}
