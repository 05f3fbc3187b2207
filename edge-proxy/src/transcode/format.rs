//! How a stream of messages is written over HTTP: as Server-Sent Events, or as one JSON text a line.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use prost_reflect::MessageDescriptor;
use proto::codec::Codec;
use service_kit::{Error, error::Result};

use super::response::{absent, members};
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

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.names().0)
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
pub(super) fn agree(parts: &Parts) -> Result<Format, Refusal> {
    if parts.method == Method::HEAD {
        let refusal =
            Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "a stream has no HEAD");
        return Err(refusal.with_header(header::ALLOW, HeaderValue::from_static("GET, OPTIONS")));
    }
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
pub(super) struct Plan {
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
        let codec = Codec::find(name).ok_or_else(|| anyhow::anyhow!("{name} has no JSON codec"))?;
        if !response_body.is_empty() {
            let field = output
                .get_field_by_name(response_body)
                .ok_or_else(|| anyhow::anyhow!("{name} has no field {response_body} for the body"))?;
            let field = Some((field.json_name().to_owned(), absent(&field)));
            return Ok(Self { codec, field, named: false });
        }
        let named = is_one_oneof(output);
        anyhow::ensure!(
            !named || output.get_field_by_json_name(ERROR).is_none(),
            "{name}: an event `{ERROR}` would look like the end of a stream that failed"
        );
        Ok(Self { codec, field: None, named })
    }

    /// Writes in this form; `path` is that of the request, for errors.
    pub(super) fn with(&self, format: Format, path: &str) -> Writer {
        Writer { plan: self.clone(), format, path: path.to_owned() }
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
pub(super) struct Writer {
    plan: Plan,
    pub(super) format: Format,
    path: String,
}

impl Writer {
    /// A message.
    pub(super) fn message(&self, message: Bytes) -> Result<Bytes> {
        // Compact JSON has no line breaks, which both forms need.
        let mut json = (self.plan.codec.to_json)(message).map_err(Error::internal)?;
        if let Some((name, absent)) = &self.plan.field {
            let members = members(&json)?;
            json = members.get(name.as_str()).map_or(absent.as_ref(), |value| value.get()).into();
        }
        if self.format == Format::Lines {
            return Ok([&json[..], b"\n"].concat().into());
        }
        let choice = match self.plan.named {
            true => members(&json)?.into_iter().next(),
            false => None,
        };
        Ok(match choice {
            Some((name, data)) => event(&name, None, data.get().as_bytes()),
            None => [b"data: ", &json[..], b"\n\n"].concat().into(),
        })
    }

    /// What keeps those in between from closing a quiet connection; lines have nothing of the kind.
    pub(super) fn keep_alive(&self) -> Option<Bytes> {
        (self.format == Format::Events).then_some(Bytes::from_static(b": keep-alive\n\n"))
    }

    /// The last piece of a stream that fails: the body that the error would have had.
    pub(super) fn error(&self, error: &Error) -> Bytes {
        let json = rescue::in_stream(&self.path, error);
        match self.format {
            Format::Events => {
                let retry = error.retry_delay().map(|delay| delay.as_millis());
                event(ERROR, retry, &json)
            }
            Format::Lines => [b"{\"error\":", &json[..], b"}\n"].concat().into(),
        }
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
        assert!(agree(&Request::head("/").body(()).unwrap().into_parts().0).is_err());
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
        let writer = plan.with(Format::Lines, "/");
        // Field 3 is the heartbeat.
        assert_eq!(
            &writer.message(vec![0x1a, 0].into()).unwrap()[..],
            b"{\"revision\":\"0\",\"stateHash\":\"\"}\n"
        );
        assert_eq!(&writer.message(vec![].into()).unwrap()[..], b"null\n");
    }
}
