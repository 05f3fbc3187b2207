//! Several calls in one request: `POST /api/v1/batch`.
//!
//! Each call passes what it would pass by itself (`subcall`), and has a status, headers and a body of its own in the
//! answer. Calls that need nothing of each other run at once; one that needs the answer of another waits for it. All
//! of it together is bounded: calls, bytes in, bytes out, time.

mod json;
mod multipart;
mod plan;
mod reference;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{StatusCode, header};
use proto::policy::DEFAULT_MAX_DEADLINE;
use serde_json::Value;
use service_kit::{Error, Kind};
use tokio::{sync::watch, time::Instant};

use crate::{
    Edge, body,
    layers::{Request, Response},
    rescue::Refusal,
    subcall::{Outer, Reply},
};
use plan::Planned;

/// The path.
pub(crate) const PATH: &str = "/api/v1/batch";

/// The most calls.
pub(crate) const MAX_CALLS: usize = 20;
/// The most bytes of a request.
const MAX_BYTES: usize = 1024 * 1024;
/// The most bytes of all answers together.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Answers a batch.
pub(crate) async fn answer(edge: &Edge, request: Request) -> Result<Response, Refusal> {
    let deadline = Instant::now() + DEFAULT_MAX_DEADLINE;
    let (parts, body) = request.into_parts();
    let form = Form::of(&parts.headers)?;
    let outer = Outer::of(&parts, deadline)?;
    let arrived = deadline.min(Instant::now() + Duration::from_millis(edge.config.limits.request_body_ms));
    let body = body::read(body, &parts.headers, MAX_BYTES, arrived).await?;
    let calls = plan::check(match &form {
        Form::Json => json::read(&body)?,
        Form::Multipart(boundary) => multipart::read(&body, boundary)?,
    })?;
    let ids: Vec<String> = calls.iter().map(|call| call.id.clone()).collect();
    let replies = run(edge, &outer, calls).await;
    match form {
        Form::Json => json::write(&ids, &replies),
        Form::Multipart(_) => multipart::write(&ids, &replies),
    }
}

/// How a batch is written; its answer is written alike.
enum Form {
    Json,
    /// `multipart/mixed` with this boundary.
    Multipart(String),
}

impl Form {
    fn of(headers: &http::HeaderMap) -> Result<Self, Refusal> {
        let text =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "multipart/mixed" => Ok(Self::Multipart(multipart::boundary(text)?)),
            _ => Err(Refusal::http(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "a batch is `application/json` or `multipart/mixed`",
            )),
        }
    }
}

/// What became of a call, for those that wait for it.
#[derive(Debug, Clone)]
struct Outcome {
    succeeded: bool,
    /// Its body, where somebody refers to it and it is JSON.
    json: Option<Arc<Value>>,
}

/// Makes the calls, each once those that it depends on are over.
async fn run(edge: &Edge, outer: &Outer, calls: Vec<Planned>) -> Vec<Reply> {
    let outcomes: Vec<watch::Sender<Option<Outcome>>> =
        calls.iter().map(|_| watch::channel(None).0).collect();
    let bytes = AtomicUsize::new(0);
    let (outcomes, bytes) = (&outcomes, &bytes);
    let run = calls.into_iter().enumerate().map(|(at, call)| {
        Box::pin(async move {
            let path = call.path.clone();
            let (needed, is_referred) = (call.needs.clone(), call.is_referred);
            let mut answers = Vec::with_capacity(needed.len());
            for (id, other) in needed {
                let mut outcome = outcomes[other].subscribe();
                // The senders live as long as all of this.
                let outcome = outcome.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
                answers.push((id, outcome));
            }
            let reply = match call.filled(&answers) {
                Ok(call) => outer.call(edge, call).await,
                Err(refusal) => Reply::refused(&path, refusal).await,
            };
            let reply = bounded(reply, bytes, &path).await;
            let json = (is_referred && reply.is_json()).then(|| serde_json::from_slice(&reply.body).ok());
            let succeeded = reply.status.is_success();
            outcomes[at].send_replace(Some(Outcome { succeeded, json: json.flatten().map(Arc::new) }));
            reply
        })
    });
    join_all(run).await
}

/// The reply, if there is room for it.
async fn bounded(reply: Reply, bytes: &AtomicUsize, path: &str) -> Reply {
    let size = reply.body.len();
    if bytes.fetch_add(size, Ordering::Relaxed) + size <= MAX_ANSWER {
        return reply;
    }
    bytes.fetch_sub(size, Ordering::Relaxed);
    let message = format!("the answers of a batch are at most {MAX_ANSWER} bytes: this one had no room");
    Reply::refused(path, Refusal::http(StatusCode::PAYLOAD_TOO_LARGE, "BATCH_TOO_LARGE", message)).await
}

/// A call that cannot be made, because of another.
fn failed_dependency(message: impl Into<String>) -> Refusal {
    Refusal::http(StatusCode::FAILED_DEPENDENCY, "FAILED_DEPENDENCY", message)
}

/// A field of a batch that breaks a rule.
fn field(path: String, message: impl Into<String>) -> Error {
    Error::field(path, message)
}

/// What is no batch at all.
fn malformed(reason: &'static str, message: impl Into<String>) -> Refusal {
    Error::new(Kind::InvalidArgument, reason, message).into()
}

/// The answer of a batch: 200, whatever became of its calls.
fn whole(body: Bytes, content_type: http::HeaderValue) -> Response {
    let length = http::HeaderValue::from(body.len());
    let mut response = Response::new(crate::Body::new(http_body_util::Full::new(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}
