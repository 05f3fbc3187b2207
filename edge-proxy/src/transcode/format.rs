//! How a stream of messages is written over HTTP: as Server-Sent Events, as one JSON text a line, or as the bytes that
//! the messages carry.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use prost::Message as _;
use prost_reflect::MessageDescriptor;
use proto::{codec::Codec, google::api::HttpBody};
use service_kit::{Error, error::Result};

use super::response::{absent, members, type_of};
use crate::rescue::{self, Refusal};

/// The name of the event that ends a stream which failed, and of its member among lines.
const ERROR: &str = "error";

/// The forms of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Server-Sent Events, as the HTML standard has them.
    Events,
    /// Newline-delimited JSON.
    Lines,
}

impl Format {
    /// The media type, and the range that holds it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Events => ("text/event-stream", "text/*"),
            Self::Lines => ("application/x-ndjson", "application/*"),
        }
    }

    /// How much a client wants it (RFC 9110 §12.5.1): the most specific range decides.
    fn quality(self, accept: &str) -> f32 {
        let (exact, family) = self.names();
        quality(accept, exact, family)
    }
}

fn quality(accept: &str, exact: &str, family: &str) -> f32 {
    let range = |text: &str| {
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let name = parts.next()?;
        let rank = [family, exact].iter().position(|known| name == *known).map(|at| at + 1);
        let rank = rank.or_else(|| (name == "*/*").then_some(0))?;
        let weight = parts.find_map(|part| part.strip_prefix("q=").map(str::to_owned));
        Some((rank, weight.map_or(1.0, |text| text.parse().unwrap_or(0.0))))
    };
    accept.split(',').filter_map(range).max_by_key(|(rank, _)| *rank).map_or(0.0, |(_, weight)| weight)
}

/// Whether a client takes JSON. Who says nothing does.
pub(super) fn takes_json(headers: &HeaderMap) -> bool {
    let accept = accepted(headers);
    accept.trim().is_empty() || quality(&accept, "application/json", "application/*") > 0.0
}

/// The form that a request asks for. Who says nothing gets events.
fn agree(parts: &Parts) -> Result<Format, Refusal> {
    let accept = accepted(&parts.headers);
    if accept.trim().is_empty() {
        return Ok(Format::Events);
    }
    let (events, lines) = (Format::Events.quality(&accept), Format::Lines.quality(&accept));
    if events <= 0.0 && lines <= 0.0 {
        let message = "this is a stream: `text/event-stream` or `application/x-ndjson`";
        return Err(Refusal::http(StatusCode::NOT_ACCEPTABLE, "NOT_ACCEPTABLE", message));
    }
    Ok(if lines > events { Format::Lines } else { Format::Events })
}

fn accepted(headers: &HeaderMap) -> String {
    let lines = headers.get_all(header::ACCEPT).iter();
    lines.map(|value| value.to_str().unwrap_or_default()).collect::<Vec<_>>().join(",")
}

/// How messages of one type are written.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// Each as JSON.
    Json(Json),
    /// The bytes that they carry, one after the other (`google.api.HttpBody`).
    Bytes,
}

/// How a message is written as JSON.
#[derive(Debug, Clone)]
pub(super) struct Json {
    codec: Codec,
    /// The one field that is written, and what it is where it is absent.
    field: Option<(String, Cow<'static, str>)>,
    /// The message is one oneof: an event has the name of the member that is set.
    named: bool,
}

impl Plan {
    /// Reads the output of a method and the `response_body` of its binding.
    pub(super) fn of(output: &MessageDescriptor, response_body: &str) -> anyhow::Result<Self> {
        let name = output.full_name();
        if name == "google.api.HttpBody" {
            anyhow::ensure!(response_body.is_empty(), "{name} is its own body, not {response_body}");
            return Ok(Self::Bytes);
        }
        let codec = Codec::find(name).ok_or_else(|| anyhow::anyhow!("{name} has no JSON codec"))?;
        if !response_body.is_empty() {
            let field = output
                .get_field_by_name(response_body)
                .ok_or_else(|| anyhow::anyhow!("{name} has no field {response_body} for the body"))?;
            let field = Some((field.json_name().to_owned(), absent(&field)));
            return Ok(Self::Json(Json { codec, field, named: false }));
        }
        let named = is_one_oneof(output);
        anyhow::ensure!(
            !named || output.get_field_by_json_name(ERROR).is_none(),
            "{name}: an event `{ERROR}` would look like the end of a stream that failed"
        );
        Ok(Self::Json(Json { codec, field: None, named }))
    }

    /// Writes in the form that a request asks for.
    pub(super) fn agree(&self, parts: &Parts) -> Result<Writer, Refusal> {
        if parts.method == Method::HEAD {
            let refusal =
                Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "a stream has no HEAD");
            return Err(refusal.with_header(header::ALLOW, HeaderValue::from_static("GET, OPTIONS")));
        }
        Ok(match self {
            Self::Json(json) => json.with(agree(parts)?, parts.uri.path()),
            Self::Bytes => Writer::Bytes,
        })
    }

    /// Whether the service chooses the form of what it answers.
    pub(super) fn has_forms(&self) -> bool {
        matches!(self, Self::Bytes)
    }
}

impl Json {
    /// Writes in this form; `path` is that of the request, for errors.
    fn with(&self, format: Format, path: &str) -> Writer {
        Writer::Json { json: self.clone(), format, path: path.to_owned() }
    }

    fn write(&self, message: Bytes, format: Format) -> Result<Bytes> {
        // Compact JSON has no line breaks, which both forms need.
        let mut json = (self.codec.to_json)(message).map_err(Error::internal)?;
        if let Some((name, absent)) = &self.field {
            let members = members(&json)?;
            json = members.get(name.as_str()).map_or(absent.as_ref(), |value| value.get()).into();
        }
        if format == Format::Lines {
            return Ok([&json[..], b"\n"].concat().into());
        }
        let choice = match self.named {
            true => members(&json)?.into_iter().next(),
            false => None,
        };
        Ok(match choice {
            Some((name, data)) => event(&name, None, data.get().as_bytes()),
            None => [b"data: ", &json[..], b"\n\n"].concat().into(),
        })
    }
}

/// Whether a message is nothing but a choice.
pub(crate) fn is_one_oneof(message: &MessageDescriptor) -> bool {
    let fields = message.fields().len();
    // A lone field with presence is a oneof of one to the descriptor.
    fields > 1 && message.oneofs().any(|oneof| oneof.fields().len() == fields)
}

/// Writes the pieces of one stream.
#[derive(Debug)]
pub(super) enum Writer {
    /// JSON in one of the forms; the path is that of the request, for errors.
    Json { json: Json, format: Format, path: String },
    /// The bytes as they are.
    Bytes,
}

impl Writer {
    /// The content type of the stream; that of bytes is in their first message.
    pub(super) fn content_type(&self, first: Option<&Bytes>) -> Result<HeaderValue> {
        match (self, first) {
            (Self::Json { format, .. }, _) => Ok(HeaderValue::from_static(format.names().0)),
            (Self::Bytes, Some(first)) => type_of(&HttpBody::decode(&first[..]).map_err(Error::internal)?),
            (Self::Bytes, None) => type_of(&HttpBody::default()),
        }
    }

    /// A message.
    pub(super) fn message(&self, message: Bytes) -> Result<Bytes> {
        match self {
            Self::Json { json, format, .. } => json.write(message, *format),
            Self::Bytes => Ok(HttpBody::decode(message).map_err(Error::internal)?.data.into()),
        }
    }

    /// What keeps those in between from closing a quiet connection; only events have something of the kind.
    pub(super) fn keep_alive(&self) -> Option<Bytes> {
        let events = matches!(self, Self::Json { format: Format::Events, .. });
        events.then_some(Bytes::from_static(b": keep-alive\n\n"))
    }

    /// The last piece of a stream that fails: the body that the error would have had. Bytes have no room for it.
    pub(super) fn error(&self, error: &Error) -> Option<Bytes> {
        let Self::Json { format, path, .. } = self else { return None };
        let json = rescue::in_stream(path, error);
        Some(match format {
            Format::Events => {
                let retry = error.retry_delay().map(|delay| delay.as_millis());
                event(ERROR, retry, &json)
            }
            Format::Lines => [b"{\"error\":", &json[..], b"}\n"].concat().into(),
        })
    }
}

fn event(name: &str, retry: Option<u128>, data: &[u8]) -> Bytes {
    let retry = retry.map(|ms| format!("retry: {ms}\n")).unwrap_or_default();
    [b"event: ", name.as_bytes(), b"\n", retry.as_bytes(), b"data: ", data, b"\n\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proto::Contract;

    use super::{Format, Plan, agree, is_one_oneof};

    fn asked(accept: &str) -> Option<Format> {
        let request = Request::get("/").header("accept", accept).body(()).unwrap();
        agree(&request.into_parts().0).ok()
    }

    #[test]
    fn the_client_chooses_and_events_are_the_default() {
        for accept in
            ["", "*/*", "text/event-stream", "Text/*", "text/html, */*;q=0.1", "*/*, application/*;q=1"]
        {
            assert_eq!(asked(accept), Some(Format::Events), "{accept}");
        }
        for accept in [
            "application/x-ndjson",
            "application/*",
            "text/event-stream;q=0.1, application/x-ndjson",
            "text/event-stream; q=0, */*",
        ] {
            assert_eq!(asked(accept), Some(Format::Lines), "{accept}");
        }
        for accept in ["application/json", "text/html", "*/*;q=0", "text/event-stream;q=x", "nonsense"] {
            assert_eq!(asked(accept), None, "{accept}");
        }
    }

    #[test]
    fn a_choice_is_told_from_other_messages() {
        let message = |name| Contract::get().pool().get_message_by_name(name).unwrap();
        assert!(is_one_oneof(&message("tollgate.gateway.v1.PlatformFrame")));
        // A field with presence is a oneof too, of another kind.
        assert!(!is_one_oneof(&message("tollgate.project.v1.ListApisRequest")));
        assert!(!is_one_oneof(&message("tollgate.gateway.v1.Heartbeat")));
        assert!(Plan::of(&message("tollgate.gateway.v1.PlatformFrame"), "nothing").is_err());
        let plan = Plan::of(&message("tollgate.gateway.v1.PlatformFrame"), "heartbeat").unwrap();
        let lines = Request::get("/").header("accept", "application/x-ndjson").body(()).unwrap();
        let writer = plan.agree(&lines.into_parts().0).unwrap();
        assert!(plan.agree(&Request::head("/").body(()).unwrap().into_parts().0).is_err());
        // Field 3 is the heartbeat.
        assert_eq!(
            &writer.message(vec![0x1a, 0].into()).unwrap()[..],
            b"{\"revision\":\"0\",\"stateHash\":\"\"}\n"
        );
        assert_eq!(&writer.message(vec![].into()).unwrap()[..], b"null\n");
    }
}
