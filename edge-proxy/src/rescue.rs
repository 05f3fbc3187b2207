//! The only place where errors become replies.
//!
//! REST answers `application/problem+json` (RFC 9457), the gateways' side `/api/internal/v1` answers
//! `{code, message, description}`, gRPC and gRPC-Web answer a status without a body, Connect answers JSON of
//! its own. What an operator should know goes to the log, never into a reply.

pub(crate) mod connect;

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use service_kit::{Error, Kind, access::STEP_UP_REQUIRED, error::FieldViolation, telemetry::TraceId};

use crate::{Body, layers::Response, layers::trace::Noted, routes::Protocol};

/// Why a request gets no answer of its own: an error, and what only HTTP says about it.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Inner>);

#[derive(Debug)]
struct Inner {
    error: Error,
    status: Option<StatusCode>,
    headers: Vec<(HeaderName, HeaderValue)>,
    route: Option<&'static str>,
    problem: Problem,
}

/// What kind of problem it is, where programs can do something about it without knowing us (RFC 9457 `type`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Problem {
    /// What its status says.
    #[default]
    Plain,
    /// A limit, which is named, has nothing left.
    QuotaExceeded(&'static str),
    /// We take less than usual right now.
    ReducedCapacity,
}

impl Problem {
    /// `type`, as draft-ietf-httpapi-ratelimit-headers registers them. The title stays that of the status.
    fn uri(self) -> &'static str {
        match self {
            Self::Plain => "about:blank",
            Self::QuotaExceeded(_) => "https://iana.org/assignments/http-problem-types#quota-exceeded",
            Self::ReducedCapacity => {
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            }
        }
    }

    fn violated(self) -> Option<[&'static str; 1]> {
        match self {
            Self::QuotaExceeded(limit) => Some([limit]),
            _ => None,
        }
    }
}

/// What a reply to an error needs to know of the request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) protocol: Protocol,
    /// Of REST alone, whose replies name it.
    pub(crate) uri: http::Uri,
}

impl Asked {
    pub(crate) fn of<B>(request: &http::Request<B>) -> Self {
        let protocol = Protocol::of(request);
        let uri = if protocol == Protocol::Rest { request.uri().clone() } else { http::Uri::default() };
        Self { protocol, uri }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // The refusals of services that HTTP has a status of its own for.
        let status = match error.reason() {
            "NOT_ACCEPTABLE" => Some(StatusCode::NOT_ACCEPTABLE),
            "IDEMPOTENCY_KEY_REUSED" => Some(StatusCode::UNPROCESSABLE_ENTITY),
            _ => None,
        };
        Self(Box::new(Inner { error, status, headers: Vec::new(), route: None, problem: Problem::Plain }))
    }
}

impl Refusal {
    /// A refusal that HTTP has a status of its own for.
    pub(crate) fn http(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::FORBIDDEN => Kind::PermissionDenied,
            StatusCode::FAILED_DEPENDENCY => Kind::FailedPrecondition,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => Kind::Unimplemented,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Kind::DeadlineExceeded,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                Kind::ResourceExhausted
            }
            _ => Kind::InvalidArgument,
        };
        let mut refusal = Self::from(Error::new(kind, reason, message));
        refusal.0.status = Some(status);
        refusal
    }

    /// Says what kind of problem it is.
    pub(crate) fn of_type(mut self, problem: Problem) -> Self {
        self.0.problem = problem;
        self
    }

    /// What kind of error it is.
    pub(crate) fn kind(&self) -> Kind {
        self.0.error.kind()
    }

    /// The error alone, for an answer that has begun already.
    pub(crate) fn into_status(self) -> tonic::Status {
        self.0.error.into()
    }

    /// Adds a header to the reply.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Notes the route for log and metrics.
    pub(crate) fn at(mut self, route: &'static str) -> Self {
        self.0.route = Some(route);
        self
    }
}

/// The reply to an error.
pub(crate) fn reply(asked: &Asked, refusal: Refusal) -> Response {
    let Inner { error, status, headers, route, problem } = *refusal.0;
    let noted = Noted { route, code: Some(error.kind().code()) };
    let mut response = match asked.protocol {
        Protocol::Grpc | Protocol::GrpcWeb => grpc(asked.protocol, error),
        Protocol::Rest => rest(asked.uri.path(), error, status, problem),
        Protocol::Connect => {
            // The code decides, but for what clients know by the status alone.
            let http = status.filter(|status| {
                let upgrade = *status == StatusCode::UPGRADE_REQUIRED;
                let by_http = [StatusCode::METHOD_NOT_ALLOWED, StatusCode::UNSUPPORTED_MEDIA_TYPE];
                upgrade || by_http.contains(status)
            });
            connect::unary(&error.into(), http)
        }
        Protocol::ConnectStream(format) => match status {
            Some(StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNSUPPORTED_MEDIA_TYPE) => {
                connect::unary(&error.into(), status)
            }
            _ => connect::stream(&error.into(), format),
        },
    };
    for (name, value) in headers {
        response.headers_mut().append(name, value);
    }
    response.extensions_mut().insert(noted);
    response
}

/// A gRPC status without a body; the details are kept.
fn grpc(protocol: Protocol, error: Error) -> Response {
    let retry = retry_after(&error);
    let mut response: Response = tonic::Status::from(error).into_http();
    if protocol == Protocol::GrpcWeb {
        let content_type = HeaderValue::from_static("application/grpc-web+proto");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    if let Some(retry) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, retry);
    }
    response
}

/// RFC 9457, with the members that programs need.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    detail: Cow<'a, str>,
    instance: &'a str,
    code: &'static str,
    reason: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: Vec<Violation<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<TraceId>,
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    violated: Option<[&'static str; 1]>,
}

#[derive(Serialize)]
struct Violation<'a> {
    field: Cow<'a, str>,
    message: Cow<'a, str>,
}

/// What the seeds' gateway controllers read.
#[derive(Serialize)]
struct Internal<'a> {
    code: u16,
    message: &'a str,
    description: Cow<'a, str>,
}

/// What [`reply`] would say of an error, for a REST answer that has begun already.
pub(crate) fn in_stream(path: &str, error: &Error) -> Bytes {
    text(path, error, error.kind().http_status(), Problem::Plain).0
}

fn is_internal(path: &str) -> bool {
    path.starts_with("/api/internal/v1")
}

/// The JSON of an error, and its type.
fn text(path: &str, error: &Error, status: StatusCode, of_type: Problem) -> (Bytes, &'static str) {
    let (text, content_type) = if is_internal(path) {
        let body =
            Internal { code: status.as_u16(), message: title(status), description: bounded(error.message()) };
        (serde_json::to_vec(&body), "application/json")
    } else {
        (serde_json::to_vec(&problem(path, error, status, of_type)), "application/problem+json")
    };
    (Bytes::from(text.unwrap_or_default()), content_type)
}

fn rest(path: &str, error: Error, status: Option<StatusCode>, of_type: Problem) -> Response {
    if matches!(error.kind(), Kind::Internal | Kind::Unavailable) {
        // Display holds the cause, which no reply does.
        tracing::error!(reason = error.reason(), %error, "cannot answer");
    }
    let status = status.unwrap_or_else(|| error.kind().http_status());
    let (text, content_type) = text(path, &error, status, of_type);
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    if let Some(challenge) = challenge(&error, is_internal(path)) {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Some(retry) = retry_after(&error) {
        headers.insert(header::RETRY_AFTER, retry);
    }
    *response.status_mut() = status;
    response.map(|_| Body::new(Full::new(text)))
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Client Closed Request")
}

fn problem<'a>(path: &'a str, error: &'a Error, status: StatusCode, of_type: Problem) -> Details<'a> {
    let violation =
        |v: &'a FieldViolation| Violation { field: bounded(&v.field), message: bounded(&v.message) };
    Details {
        kind: of_type.uri(),
        title: title(status),
        status: status.as_u16(),
        detail: bounded(error.message()),
        instance: path,
        code: error.kind().name(),
        reason: error.reason(),
        errors: error.violations().iter().map(violation).collect(),
        trace_id: service_kit::telemetry::trace_id(),
        violated: of_type.violated(),
    }
}

/// Names of fields are the caller's own words: a long one is not echoed whole, and not four times.
fn bounded(text: &str) -> Cow<'_, str> {
    const MOST: usize = 500;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// RFC 6750 §3: a bare challenge when no token came, the error's name when one came and was not good.
/// RFC 9470 §3: what cures a proof that is not recent.
fn challenge(error: &Error, internal: bool) -> Option<&'static str> {
    match (error.kind(), error.reason()) {
        (Kind::Unauthenticated, _) if internal => Some("ApiKey realm=\"tollgate\""),
        (Kind::Unauthenticated, "TOKEN_EXPIRED") => {
            Some("Bearer realm=\"tollgate\", error=\"invalid_token\", error_description=\"expired\"")
        }
        (Kind::Unauthenticated, STEP_UP_REQUIRED) => Some(STEP_UP),
        (Kind::Unauthenticated, "INVALID_TOKEN" | "TOKEN_REVOKED") => {
            Some("Bearer realm=\"tollgate\", error=\"invalid_token\"")
        }
        (Kind::Unauthenticated, _) => Some("Bearer realm=\"tollgate\""),
        (Kind::PermissionDenied, "INSUFFICIENT_SCOPE") => {
            Some("Bearer realm=\"tollgate\", error=\"insufficient_scope\"")
        }
        _ => None,
    }
}

/// `max_age` is [`service_kit::access::RECENT`].
const STEP_UP: &str =
    "Bearer realm=\"tollgate\", error=\"insufficient_user_authentication\", max_age=\"600\"";

/// Whole seconds, rounded up; what is not available now is worth another try in a second.
fn retry_after(error: &Error) -> Option<HeaderValue> {
    let seconds = match (error.retry_delay(), error.kind()) {
        (Some(delay), _) => delay.as_secs() + u64::from(delay.subsec_nanos() > 0),
        (None, Kind::Unavailable) => 1,
        (None, _) => return None,
    };
    Some(HeaderValue::from(seconds))
}

/// What a service answered instead of a message. Its own errors pass; what has no details comes from
/// the transport: late is late, anything else is not there.
pub(crate) fn of_status(status: tonic::Status) -> Error {
    use tonic_types::StatusExt as _;
    match status.code() {
        tonic::Code::DeadlineExceeded if status.get_details_error_info().is_none() => late(),
        tonic::Code::Unimplemented if status.get_details_error_info().is_none() => {
            Error::new(Kind::Unimplemented, "UNKNOWN_METHOD", "the service does not know this method")
        }
        _ => Error::from(status),
    }
}

/// The call took longer than it may.
pub(crate) fn late() -> Error {
    Error::new(Kind::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call took longer than it may")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_step_up_says_what_counts_as_recent() {
        assert!(super::STEP_UP.ends_with(&format!("max_age=\"{}\"", service_kit::access::RECENT)));
    }
}
