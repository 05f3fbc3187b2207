//! The body of a request: JSON by the typed codecs, or the bytes as they are (`google.api.HttpBody`).

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use prost::Message as _;
use prost_reflect::{Kind, MessageDescriptor};
use proto::{
    codec::{Codec, JsonError},
    google::api::HttpBody,
};
use serde::de::IgnoredAny;
use service_kit::{Error, Kind as ErrorKind};

use crate::rescue::Refusal;

/// What the body of a route is.
#[derive(Debug)]
pub(super) enum Plan {
    /// There is none.
    None,
    /// The whole request as JSON.
    Whole(Codec),
    /// One field of the request as JSON.
    Field { codec: Codec, name: String, number: u32 },
    /// The request is bytes and their content type.
    RawWhole,
    /// One field of the request as bytes under their content type.
    Raw { number: u32 },
}

impl Plan {
    /// Reads the `body` of a binding.
    pub(super) fn of(input: &MessageDescriptor, body: &str) -> anyhow::Result<Self> {
        let codec = || {
            let name = input.full_name();
            Codec::find(name).ok_or_else(|| anyhow::anyhow!("{name} has no JSON codec"))
        };
        if body.is_empty() {
            return Ok(Self::None);
        }
        if body == "*" && input.full_name() == "google.api.HttpBody" {
            return Ok(Self::RawWhole);
        }
        if body == "*" {
            return Ok(Self::Whole(codec()?));
        }
        let field = input
            .get_field_by_name(body)
            .ok_or_else(|| anyhow::anyhow!("{} has no field {body} for the body", input.full_name()))?;
        let number = field.number();
        Ok(match field.kind() {
            Kind::Message(message) if message.full_name() == "google.api.HttpBody" => Self::Raw { number },
            _ => Self::Field { codec: codec()?, name: field.json_name().to_owned(), number },
        })
    }

    /// Whether the body sets a field, so that the query may not.
    pub(super) fn sets(&self, numbers: &[u32]) -> bool {
        match self {
            Self::None => false,
            Self::Whole(_) | Self::RawWhole => true,
            Self::Field { number, .. } | Self::Raw { number } => numbers.first() == Some(number),
        }
    }

    /// Appends the body's fields.
    pub(super) fn encode(&self, body: &Bytes, headers: &HeaderMap, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match self {
            Self::None if body.is_empty() => Ok(()),
            Self::None => {
                let message = "this method takes no body";
                Err(Error::new(ErrorKind::InvalidArgument, "UNEXPECTED_BODY", message).into())
            }
            Self::Raw { number } => {
                raw(Some(*number), body, headers, out);
                Ok(())
            }
            Self::RawWhole => {
                raw(None, body, headers, out);
                Ok(())
            }
            Self::Whole(_) | Self::Field { .. } if body.is_empty() => Ok(()),
            Self::Whole(codec) => {
                check_content_type(headers)?;
                let bytes = (codec.from_json)(body).map_err(|error| explain(body, error))?;
                out.extend_from_slice(&bytes);
                Ok(())
            }
            Self::Field { codec, name, .. } => {
                check_content_type(headers)?;
                // By itself first: what is pasted into an object below must be one value and nothing more.
                is_json(body)?;
                let wrapped = [b"{\"", name.as_bytes(), b"\":", body, b"}"].concat();
                let bytes = (codec.from_json)(&wrapped).map_err(|error| explain_in(body, error, name))?;
                out.extend_from_slice(&bytes);
                Ok(())
            }
        }
    }
}

/// Appends an `HttpBody`, in a field of this number or as it is.
fn raw(number: Option<u32>, body: &Bytes, headers: &HeaderMap, out: &mut Vec<u8>) {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let head = HttpBody {
        content_type: content_type.unwrap_or("application/octet-stream").to_owned(),
        data: Vec::new(),
    };
    // The data are appended by hand: they may be megabytes, and one copy is enough.
    let mut data = Vec::with_capacity(16);
    prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut data);
    prost::encoding::encode_varint(body.len() as u64, &mut data);
    let head = head.encode_to_vec();
    if let Some(number) = number {
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, out);
        prost::encoding::encode_varint((head.len() + data.len() + body.len()) as u64, out);
    }
    out.reserve(head.len() + data.len() + body.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(&data);
    out.extend_from_slice(body);
}

/// `application/json`, or a type that says it is JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Refusal::http(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "UNSUPPORTED_MEDIA_TYPE",
        "the body must be `application/json`",
    ))
}

fn is_json(body: &[u8]) -> Result<(), Error> {
    serde_json::from_slice::<IgnoredAny>(body).map(|_| ()).map_err(|error| {
        let message = format!("the body is not JSON: {error}");
        Error::new(ErrorKind::InvalidArgument, "MALFORMED_JSON", message)
    })
}

/// A 400 that names the field of a message.
pub(crate) fn explain(body: &[u8], error: JsonError) -> Error {
    explain_in(body, error, "")
}

/// As [`explain`]; `wrapper` is the field that the body stands for.
fn explain_in(body: &[u8], error: JsonError, wrapper: &str) -> Error {
    if let Err(error) = is_json(body) {
        return error;
    }
    // The position is that in the wrapped text, and the path says more.
    let message = error.message.split(" at line ").next().unwrap_or_default();
    let mut path = unwrap(&error.path, wrapper);
    // The codec stops before an unknown or a second field: its name belongs to the path.
    let named = |words| message.strip_prefix(words).and_then(|rest: &str| rest.split('`').next());
    if let Some(name) = named("unknown field `").or_else(|| named("duplicate field `"))
        && path.rsplit('.').next() != Some(name)
    {
        path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    }
    if path.is_empty() {
        "body".clone_into(&mut path);
    }
    Error::field(path, format!("cannot be read: {message}"))
}

/// Paths of an array body keep the field's name: `deployments[0].vhost`; those of an object lose it.
fn unwrap(path: &str, wrapper: &str) -> String {
    if wrapper.is_empty() {
        return path.to_owned();
    }
    match path.strip_prefix(wrapper) {
        Some("") => String::new(),
        Some(rest) => rest.strip_prefix('.').unwrap_or(path).to_owned(),
        None => path.to_owned(),
    }
}
