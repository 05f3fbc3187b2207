//! Errors as Connect has them: a JSON object, alone or at the end of a stream.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::Full;
use prost::Message as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use service_kit::Error;
use tonic::{Code, Status};
use tonic_types::pb;

use super::{challenge, retry_after};
use crate::{Body, connect::Format, envelope, layers::Response};

/// What begins the type of each detail, which Connect leaves out.
const TYPES: &str = "type.googleapis.com/";

#[derive(Serialize)]
struct Text<'a> {
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    details: Vec<Detail<'a>>,
}

#[derive(Serialize)]
struct Detail<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    value: String,
    /// For people; programs read `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<Value>,
}

#[derive(Serialize)]
struct End<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
}

/// The name of a code on the wire.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// The HTTP status of a code. It differs from that of REST in one point: a precondition is a 400.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn text<'a>(status: &'a Status, details: &'a pb::Status) -> Text<'a> {
    let details = details.details.iter().map(|any| {
        let kind = any.type_url.strip_prefix(TYPES).unwrap_or(&any.type_url);
        Detail { kind, value: STANDARD_NO_PAD.encode(&any.value), debug: debug(kind, &any.value) }
    });
    Text { code: name(status.code()), message: status.message(), details: details.collect() }
}

/// The details that services of ours send, as JSON.
fn debug(kind: &str, value: &[u8]) -> Option<Value> {
    match kind {
        "google.rpc.ErrorInfo" => {
            let info = pb::ErrorInfo::decode(value).ok()?;
            Some(json!({"reason": info.reason, "domain": info.domain}))
        }
        "google.rpc.BadRequest" => {
            let violation = |violation: &pb::bad_request::FieldViolation| json!({"field": violation.field, "description": violation.description});
            let bad = pb::BadRequest::decode(value).ok()?;
            let violations: Vec<Value> = bad.field_violations.iter().map(violation).collect();
            Some(json!({"fieldViolations": violations}))
        }
        "google.rpc.RetryInfo" => {
            let delay = pb::RetryInfo::decode(value).ok()?.retry_delay?;
            let text = match delay.nanos {
                0 => format!("{}s", delay.seconds),
                nanos => format!("{}.{nanos:09}s", delay.seconds),
            };
            Some(json!({"retryDelay": text}))
        }
        _ => None,
    }
}

/// The answer to a unary call that fails. `http` is for what HTTP has a status of its own for.
pub(crate) fn unary(status: &Status, http: Option<StatusCode>) -> Response {
    let details = pb::Status::decode(status.details()).unwrap_or_default();
    let json = Bytes::from(serde_json::to_vec(&text(status, &details)).unwrap_or_default());
    let mut response = Response::new(Body::default());
    *response.status_mut() = http.unwrap_or_else(|| http_status(status.code()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(json.len()));
    hints(&Error::from(status.clone()), headers);
    response.map(|_| Body::new(Full::new(json)))
}

/// What HTTP says about an error beside its status.
fn hints(error: &Error, headers: &mut HeaderMap) {
    if let Some(challenge) = challenge(error, false) {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Some(retry) = retry_after(error) {
        headers.insert(header::RETRY_AFTER, retry);
    }
}

/// The answer to a stream that fails before it has begun: 200, and nothing but an end.
pub(crate) fn stream(status: &Status, format: Format) -> Response {
    let end = envelope::wrap(envelope::END, &end(Some(status), &HeaderMap::new())).unwrap_or_default();
    let mut response = Response::new(Body::new(Full::new(end)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, format.of_streams());
    hints(&Error::from(status.clone()), headers);
    response
}

/// The JSON that ends a stream: the error if there is one, and the trailers.
pub(crate) fn end(status: Option<&Status>, trailers: &HeaderMap) -> Vec<u8> {
    let status = status.filter(|status| status.code() != Code::Ok);
    let details = status.and_then(|status| pb::Status::decode(status.details()).ok()).unwrap_or_default();
    let mut metadata = Map::new();
    let pairs = |name: &HeaderName| {
        let values = trailers.get_all(name).iter();
        values.map(|value| Value::from(String::from_utf8_lossy(value.as_bytes()))).collect::<Vec<_>>()
    };
    for name in trailers.keys() {
        metadata.insert(name.to_string(), pairs(name).into());
    }
    let end = End { error: status.map(|status| text(status, &details)), metadata };
    serde_json::to_vec(&end).unwrap_or_else(|_| b"{}".to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    use http::{HeaderMap, StatusCode};
    use prost::Message as _;
    use serde_json::{Value, json};
    use service_kit::{Error, Kind};
    use tonic::{Code, Status};
    use tonic_types::pb;

    use super::{end, http_status, name};

    #[test]
    fn codes_have_the_names_and_statuses_of_the_protocol() {
        for (code, expected, status) in [
            (1, "canceled", 499),
            (2, "unknown", 500),
            (3, "invalid_argument", 400),
            (4, "deadline_exceeded", 504),
            (5, "not_found", 404),
            (6, "already_exists", 409),
            (7, "permission_denied", 403),
            (8, "resource_exhausted", 429),
            (9, "failed_precondition", 400),
            (10, "aborted", 409),
            (11, "out_of_range", 400),
            (12, "unimplemented", 501),
            (13, "internal", 500),
            (14, "unavailable", 503),
            (15, "data_loss", 500),
            (16, "unauthenticated", 401),
        ] {
            let code = Code::from_i32(code);
            assert_eq!((name(code), http_status(code)), (expected, StatusCode::from_u16(status).unwrap()));
        }
    }

    #[test]
    fn an_end_has_error_details_and_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.append("x-a", "1".parse().unwrap());
        trailers.append("x-a", "2".parse().unwrap());
        let error = Error::new(Kind::Aborted, "BUSY", "later")
            .naming("a.b", "is in use")
            .retry_after(Duration::from_millis(1_500));
        let json: Value = serde_json::from_slice(&end(Some(&error.into()), &trailers)).unwrap();
        assert_eq!(json["metadata"], json!({"x-a": ["1", "2"]}));
        assert_eq!((&json["error"]["code"], &json["error"]["message"]), (&json!("aborted"), &json!("later")));
        let details = json["error"]["details"].as_array().unwrap();
        let found = |kind| details.iter().find(|detail| detail["type"] == kind).unwrap();
        let info = found("google.rpc.ErrorInfo");
        let bytes = STANDARD_NO_PAD.decode(info["value"].as_str().unwrap()).unwrap();
        assert_eq!(pb::ErrorInfo::decode(&bytes[..]).unwrap().reason, "BUSY");
        assert_eq!(info["debug"]["reason"], "BUSY");
        assert_eq!(found("google.rpc.RetryInfo")["debug"]["retryDelay"], "1.500000000s");
        assert_eq!(found("google.rpc.BadRequest")["debug"]["fieldViolations"][0]["field"], "a.b");
        assert_eq!(end(Some(&Status::ok("")), &HeaderMap::new()), b"{}");
        assert_eq!(end(None, &HeaderMap::new()), b"{}");
    }
}
