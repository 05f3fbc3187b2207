//! What a call came to, as it is answered, kept and answered again.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::{Code, Status};

use super::REPLAYED;

/// The answer of a handler, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    head: http::response::Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) async fn read(response: Response<Body>) -> Result<Self, axum::Error> {
        let (head, body) = response.into_parts();
        let whole = body.collect().await?;
        let trailers = whole.trailers().cloned();
        Ok(Self { head, body: whole.to_bytes(), trailers })
    }

    fn status(&self) -> Status {
        let of = |headers: &HeaderMap| Status::from_header_map(headers);
        let status = of(&self.head.headers).or_else(|| self.trailers.as_ref().and_then(of));
        status.unwrap_or_else(|| Status::unknown("an answer without a status"))
    }

    pub(super) fn into_response(self) -> Response<Body> {
        Response::from_parts(self.head, whole(self.body, self.trailers))
    }
}

/// What is kept of an answer.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Outcome {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    /// The details of a refusal.
    #[prost(bytes = "bytes", tag = "3")]
    details: Bytes,
    /// The framed message of a success.
    #[prost(bytes = "bytes", tag = "4")]
    body: Bytes,
}

impl Outcome {
    pub(super) fn of(answer: &Answer) -> Self {
        let status = answer.status();
        Self {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: Bytes::copy_from_slice(status.details()),
            body: answer.body.clone(),
        }
    }

    pub(super) fn is_success(&self) -> bool {
        self.code == i32::from(Code::Ok)
    }

    /// Whether the same request could come to something else a moment later, so that this is no last word.
    pub(super) fn is_passing(&self) -> bool {
        let code = Code::from(self.code);
        let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::ResourceExhausted];
        let ours = [Code::Internal, Code::Unknown, Code::DataLoss, Code::Cancelled];
        passing.contains(&code) || ours.contains(&code)
    }

    /// The answer once more, marked as such.
    pub(super) fn replay(self) -> Response<Body> {
        let mut response = if self.is_success() {
            let trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
            let mut response = Response::new(whole(self.body, Some(trailers)));
            let content_type = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            response
        } else {
            Status::with_details(Code::from(self.code), self.message, self.details).into_http()
        };
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

fn whole(body: Bytes, trailers: Option<HeaderMap>) -> Body {
    Body::new(Full::new(body).with_trailers(async move { trailers.map(Ok) }))
}
