//! gRPC as it is: messages pass through unread, in both directions, as they come.

pub(crate) mod health;
mod inflate;

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use proto::{Contract, MethodPolicy};
use service_kit::{AuthContext, Error, Kind};
use tokio::time::Instant;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::{
    Body, Client, Edge,
    access::{self, Credential},
    body::{self, Counted, Guarded, Refused, Start, too_large},
    client,
    layers::{Request, Response},
    load,
    requests::Fault,
    rescue::{self, Refusal},
    upstream::{
        self,
        budget::Budget,
        call::{Call, Payload},
    },
};

/// Who was admitted to a call, and by which credential.
pub(crate) type Admitted = (Credential, Option<AuthContext>);

/// Takes a native call in: HTTP/2 only.
pub(crate) fn native(request: Request) -> Result<http::Request<Body>, Refusal> {
    if request.version() != Version::HTTP_2 {
        return Err(Refusal::http(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "HTTP2_REQUIRED",
            "gRPC needs HTTP/2; over HTTP/1.1 there is gRPC-Web",
        ));
    }
    Ok(request.map(Body::new))
}

/// Answers a call.
pub(crate) async fn serve(edge: &Edge, request: http::Request<Body>) -> Result<Response, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "gRPC is POST"));
    }
    check_content_type(request.headers())?;
    let path = request.uri().path();
    if is_local(path) {
        return Ok(Box::pin(local(edge, request)).await);
    }
    let policy = Contract::get().method(path).ok_or_else(access::unknown_method)?;
    Client::of(request.extensions())?.marks().goes_by(&policy.path);
    // Messages that services can read.
    let inflated = inflate::request(policy, request).map_err(|refusal| refusal.at(&policy.path))?;
    let (request, mut fault) = inflated;
    let answer = pass(edge, policy, request, None, &mut fault).await;
    let answer = match &mut fault {
        Some(fault) => fault.or(answer),
        None => answer,
    };
    answer.map_err(|refusal| refusal.at(&policy.path))
}

/// Answers a call of one message of somebody who was admitted already.
pub(crate) async fn serve_admitted(
    edge: &Edge,
    policy: &'static MethodPolicy,
    request: http::Request<Body>,
    admitted: Admitted,
) -> Result<Response, Refusal> {
    pass(edge, policy, request, Some(admitted), &mut None).await
}

/// Health and reflection are the edge's own.
fn is_local(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

/// What the edge answers itself ends with the edge too: reflection is a stream, and so is `Watch`, which ends itself.
async fn local(edge: &Edge, request: http::Request<Body>) -> Response {
    let mut alive = None;
    let is_reflection = !request.uri().path().starts_with("/grpc.health.");
    let request = request.map(|body| {
        let (mut body, _) = Counted::new(body, usize::MAX);
        alive = Some(body.end_with_answer());
        Body::new(body)
    });
    let response = edge.local.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
    let stop = is_reflection.then(|| edge.tasks.stopping().cancelled_owned());
    response.map(|body| Body::new(Guarded::new(body, None, stop).keeping(alive)))
}

/// Messages are protobuf here.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().map(str::trim) {
        Some("application/grpc" | "application/grpc+proto") => Ok(()),
        _ => Err(Refusal::http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "messages are `application/grpc+proto`",
        )),
    }
}

/// The call itself. The answer takes the `fault` of the request along, to say at its end what that was.
async fn pass(
    edge: &Edge,
    policy: &'static MethodPolicy,
    request: http::Request<Body>,
    admitted: Option<Admitted>,
    fault: &mut Option<Fault>,
) -> Result<Response, Refusal> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let client = Client::of(&parts.extensions)?;
    let (credential, caller) = match admitted {
        Some(admitted) => admitted,
        None => access::admit(edge, policy, client, &parts.headers).await?,
    };
    let written = edge.cache.changes().written(policy, caller.as_ref(), []);
    let _room = edge.room(policy)?;
    let (client, ticket) = (client.clone(), client.ticket());
    let marks = ticket.marks();
    let upstream = edge.upstreams.of(policy).ok_or_else(access::unknown_method)?;

    let budget = Budget::grpc(started, policy, &parts.headers)?;
    let mut headers = parts.headers;
    let described = client::described(&headers);
    retain_metadata(&mut headers, credential);
    client.introduce(described, &mut headers);

    let streaming = policy.client_streaming;
    let mut refused = None;
    let mut alive = None;
    let payload = if streaming {
        let (mut body, why) = Counted::new(body, usize::MAX);
        (refused, alive) = (Some(why), Some(body.end_with_answer()));
        Payload::Stream(Body::new(body))
    } else {
        let keep = edge.config.upstreams.resilience.retry_body_bytes;
        let start = body::start(body, keep, policy.max_request_bytes.saturating_add(5));
        let patience = Duration::from_millis(edge.live.load().bounds.request_body_ms);
        match arrived(budget.deadline, started + patience, start)
            .await?
            .map_err(|why| refusal(why, policy))?
        {
            Start::Whole(bytes) => Payload::Whole(bytes),
            Start::More(body, why) => {
                refused = Some(why);
                Payload::Stream(body)
            }
        }
    };
    let (service, class) = (upstream.service(), edge.live.load().switches.class(policy)?);
    let load = load::Call { service, policy, class, deadline: budget.deadline, marks };
    let call = Call { method: upstream::call::Method::of(policy), headers, payload, budget };
    let call = edge.load.around(&load, upstream.call(call));
    let response = match refused {
        None => call.await?,
        Some(refused) => tokio::select! {
            biased;
            Ok(why) = refused => return Err(refusal(why, policy)),
            answer = call => answer?,
        },
    };
    let streams = streaming || policy.server_streaming;
    let stop = streams.then(|| edge.tasks.stopping().cancelled_owned());
    let (mut head, body) = response.into_parts();
    // Cookies are for REST.
    head.headers.remove(header::SET_COOKIE);
    let guarded =
        Guarded::new(body, budget.deadline, stop).keeping(alive).noting(written).blaming(fault.take());
    Ok(Response::from_parts(head, Body::new(guarded)))
}

/// The service has not seen the whole message, and its silence is no fault of its own.
fn unreadable() -> Error {
    Error::new(Kind::InvalidArgument, "MALFORMED_BODY", "the body of the request cannot be read")
}

fn refusal(why: Refused, policy: &MethodPolicy) -> Refusal {
    match why {
        Refused::TooLarge => too_large(policy.max_request_bytes),
        Refused::Unreadable => unreadable().into(),
    }
}

/// What has to arrive until the deadline of the call, if it has one, and until nobody waits for bodies any more.
async fn arrived<T>(
    deadline: Option<Instant>,
    patience: Instant,
    body: impl Future<Output = T>,
) -> Result<T, Refusal> {
    match deadline {
        Some(deadline) if deadline < patience => {
            tokio::time::timeout_at(deadline, body).await.map_err(|_| rescue::late().into())
        }
        _ => tokio::time::timeout_at(patience, body).await.map_err(|_| body::late()),
    }
}

/// A `grpc-timeout`: at most eight digits.
pub(crate) fn timeout_value(limit: Duration) -> HeaderValue {
    let (count, unit) = match u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) {
        0 => (u64::from(limit.subsec_micros()).max(1), "u"),
        ms @ 1..=99_999_999 => (ms, "m"),
        ms => ((ms / 1_000).min(99_999_999), "S"),
    };
    HeaderValue::try_from([itoa::Buffer::new().format(count), unit].concat())
        .unwrap_or_else(|_| HeaderValue::from_static("1S"))
}

/// How a call ended, as its headers or trailers say.
pub(crate) fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Leaves the client's own metadata and the one credential that the method is about.
fn retain_metadata(headers: &mut HeaderMap, credential: Credential) {
    // With what the call says beside: growing by and by costs more than all of it.
    headers.reserve(12);
    // RFC 9110 §7.6.1: what `Connection` names belongs to the connection too.
    let named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok());
    // As a rule few or none: to look at what is there costs less than to look for what may be.
    // What is set below needs no removal.
    let own = credential.as_ref().map(|(name, _)| name);
    let is_gone = |name: &&HeaderName| {
        is_no_metadata(name.as_str()) || access::CREDENTIALS.contains(name) && own != Some(*name)
    };
    let gone: Vec<HeaderName> = headers.keys().filter(is_gone).cloned().chain(named).collect();
    for name in gone {
        headers.remove(name);
    }
    if let Some((name, value)) = credential {
        headers.insert(name, value);
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
}

/// Whether a header belongs to one connection, or to browsers.
fn is_no_metadata(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "transfer-encoding"
            | "upgrade"
            | "host"
            | "trailer"
            | "content-length"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "cookie"
            | "origin"
            | "referer"
            | "expect"
            | "accept-encoding"
            | "keep-alive"
            | "proxy-connection"
            // Goes by another name.
            | "x-request-id"
    )
}
