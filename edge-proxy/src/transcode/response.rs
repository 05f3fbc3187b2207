//! The answer of an RPC: one message out of its gRPC frame, as JSON or as the bytes it carries.

use std::{borrow::Cow, collections::HashMap};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use proto::{Access, MethodPolicy, codec::Codec, google::api::HttpBody};
use serde_json::value::RawValue;
use service_kit::{Error, error::Result};
use tonic::Status;

use crate::{Body, body::broken, layers::Response, rescue};

/// The largest message that a service may answer.
pub(super) const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What stays as it is in a path segment (RFC 3986 `unreserved`).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What becomes of the response message.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing.
    Empty,
    /// The bytes that it carries.
    Raw,
    /// JSON.
    Whole(Codec),
    /// The bytes that a field of it carries.
    RawField(FieldDescriptor),
    /// One field of it as JSON; `absent` when the message does not hold it.
    Field { codec: Codec, name: String, absent: Cow<'static, str> },
}

impl Plan {
    /// Reads the `response_body` of a binding.
    pub(super) fn of(output: &MessageDescriptor, response_body: &str) -> anyhow::Result<Self> {
        match output.full_name() {
            "google.protobuf.Empty" => return Ok(Self::Empty),
            "google.api.HttpBody" => return Ok(Self::Raw),
            _ => {}
        }
        let name = output.full_name();
        let field = || {
            let missing = || anyhow::anyhow!("{name} has no field {response_body} for the body");
            output.get_field_by_name(response_body).ok_or_else(missing)
        };
        if !response_body.is_empty()
            && let Kind::Message(message) = field()?.kind()
            && message.full_name() == "google.api.HttpBody"
            && !field()?.is_list()
        {
            return Ok(Self::RawField(field()?));
        }
        let codec = Codec::find(name).ok_or_else(|| anyhow::anyhow!("{name} has no JSON codec"))?;
        if response_body.is_empty() {
            return Ok(Self::Whole(codec));
        }
        let field = field()?;
        Ok(Self::Field { codec, name: field.json_name().to_owned(), absent: absent(&field) })
    }

    /// Whether the answer is JSON, whatever the client would like.
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Whole(_) | Self::Field { .. })
    }

    /// Whether the service chooses the form of what it answers.
    pub(super) fn has_forms(&self) -> bool {
        matches!(self, Self::Raw | Self::RawField(_))
    }

    /// The reply that carries a message, with the status that the policy wants.
    pub(super) fn reply(&self, message: Bytes, policy: &MethodPolicy) -> Result<Response> {
        let json = |codec: &Codec| (codec.to_json)(message.clone()).map_err(Error::internal);
        let (text, content_type) = match self {
            Self::Empty => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() =
                    if policy.accepted { StatusCode::ACCEPTED } else { StatusCode::NO_CONTENT };
                return Ok(response);
            }
            Self::Raw => {
                return raw(HttpBody::decode(message).map_err(Error::internal)?);
            }
            Self::RawField(field) => return raw(carried(field, message)?),
            Self::Whole(codec) => (json(codec)?, JSON),
            Self::Field { codec, name, absent } => {
                let whole = json(codec)?;
                let members = members(&whole)?;
                let field = members.get(name.as_str()).map_or(absent.as_ref(), |value| value.get());
                (field.as_bytes().to_vec(), JSON)
            }
        };
        if policy.location.is_empty() {
            let status = if policy.accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
            return Ok(reply(status, text.into(), content_type));
        }
        let created = members(&text)?;
        if may_wait(policy) && created.get("id").is_none_or(|id| id.get() == "\"\"") {
            return Ok(reply(StatusCode::ACCEPTED, text.into(), content_type));
        }
        let location = fill(&policy.location, &created)?;
        let mut response = reply(StatusCode::CREATED, text.into(), content_type);
        response.headers_mut().insert(header::LOCATION, location);
        Ok(response)
    }
}

/// What a field is in JSON that a message does not hold: its default, or null where it can be absent.
pub(super) fn absent(field: &FieldDescriptor) -> Cow<'static, str> {
    let text = match field.kind() {
        _ if field.is_list() => "[]",
        _ if field.is_map() => "{}",
        Kind::Message(_) => "null",
        _ if field.supports_presence() => "null",
        Kind::String | Kind::Bytes => "\"\"",
        Kind::Bool => "false",
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => "\"0\"",
        Kind::Enum(values) => return format!("\"{}\"", values.default_value().name()).into(),
        _ => "0",
    };
    text.into()
}

/// The bytes, under the type that the service gives them.
fn raw(body: HttpBody) -> Result<Response> {
    let content_type = type_of(&body)?;
    Ok(reply(StatusCode::OK, body.data.into(), content_type))
}

/// The type that the service gives its bytes.
pub(super) fn type_of(body: &HttpBody) -> Result<HeaderValue> {
    match body.content_type.as_str() {
        "" => Ok(HeaderValue::from_static("application/octet-stream")),
        text => HeaderValue::try_from(text).map_err(Error::internal),
    }
}

/// The `HttpBody` in a field of a message.
fn carried(field: &FieldDescriptor, message: Bytes) -> Result<HttpBody> {
    let parent = field.parent_message().clone();
    let message = DynamicMessage::decode(parent, message).map_err(Error::internal)?;
    match message.get_field(field).as_ref() {
        Value::Message(body) => HttpBody::decode(body.encode_to_vec().as_slice()).map_err(Error::internal),
        _ => Ok(HttpBody::default()),
    }
}

/// Whether what a method creates may have to wait for something first: then the answer has no id yet, and is
/// the same whatever becomes of it.
pub(crate) fn may_wait(policy: &MethodPolicy) -> bool {
    policy.access == Access::Public
        && !policy.location.is_empty()
        && policy.descriptor.output().get_field_by_name("id").is_some()
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn reply(status: StatusCode, text: Bytes, content_type: HeaderValue) -> Response {
    let length = text.len();
    let mut response = Response::new(Body::new(Full::new(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    // Also where the body ends up empty, as for HEAD.
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

pub(super) type Members<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

/// The members of a JSON object, their values as they stand.
pub(super) fn members(json: &[u8]) -> Result<Members<'_>> {
    serde_json::from_slice(json).map_err(Error::internal)
}

/// Fills `{field}` of a template from the response.
fn fill(template: &str, members: &Members<'_>) -> Result<HeaderValue> {
    let mut filled = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| Error::internal(anyhow::anyhow!("location {template} is not a template")))?;
        let value: String = members
            .get(name)
            .and_then(|value| serde_json::from_str(value.get()).ok())
            .ok_or_else(|| Error::internal(anyhow::anyhow!("no {name} in the answer for {template}")))?;
        filled.push_str(before);
        filled.extend(utf8_percent_encode(&value, SEGMENT));
        rest = after;
    }
    filled.push_str(rest);
    HeaderValue::try_from(filled).map_err(Error::internal)
}

/// A unary answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its one message, or the error that came in its place.
    pub(super) message: Result<Bytes>,
    /// What came with it: headers, and trailers where they were read.
    pub(super) metadata: HeaderMap,
}

/// Reads a unary answer to its end.
pub(super) async fn read(answer: http::Response<Body>) -> Answer {
    let (parts, body) = answer.into_parts();
    let mut metadata = parts.headers;
    let message = match Status::from_header_map(&metadata).map_or(Ok(()), check) {
        Ok(()) => message(body, &mut metadata).await,
        Err(error) => Err(error),
    };
    Answer { message, metadata }
}

async fn message(mut body: Body, metadata: &mut HeaderMap) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|status| rescue::of_status(transport(status)))?.into_data() {
            Ok(data) if first.is_empty() && gathered.is_empty() => first = data,
            Ok(data) => {
                if gathered.is_empty() {
                    gathered.extend_from_slice(&std::mem::take(&mut first));
                }
                if gathered.len() + data.len() > MAX_ANSWER {
                    return Err(Error::internal(anyhow::anyhow!(
                        "an answer is larger than {MAX_ANSWER} bytes"
                    )));
                }
                gathered.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let status = trailers.as_ref().and_then(|trailers: &HeaderMap| Status::from_header_map(trailers));
    metadata.extend(trailers.unwrap_or_default());
    check(status.ok_or_else(|| broken(Status::unavailable("an answer without a status")))?)?;
    let gathered = if gathered.is_empty() { first } else { gathered.freeze() };
    unframe(gathered).ok_or_else(|| Error::internal(anyhow::anyhow!("an answer that is not one message")))
}

/// A stream that broke says so by many codes: to the caller the service is not there, if nothing more is known.
pub(super) fn transport(status: Status) -> Status {
    match status.code() {
        tonic::Code::DeadlineExceeded => status,
        _ if !status.details().is_empty() => status,
        _ => Status::unavailable(status.message()),
    }
}

pub(super) fn check(status: Status) -> Result<()> {
    match status.code() {
        tonic::Code::Ok => Ok(()),
        _ => Err(rescue::of_status(status)),
    }
}

/// The message of one frame that is not compressed (we said that we take no other).
fn unframe(mut frame: Bytes) -> Option<Bytes> {
    if frame.len() < 5 || frame.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(frame.get_u32()).ok()?;
    (frame.len() == length).then_some(frame)
}
