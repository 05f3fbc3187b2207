//! The two forms of messages, and how each method's are translated.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use http::HeaderValue;
use proto::{Contract, MethodPolicy, codec::Codec};
use service_kit::{Error, Kind};

use crate::{rescue::Refusal, transcode};

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// proto3 JSON.
    Json,
    /// protobuf.
    Proto,
}

impl Format {
    /// The format of a name in a query or of a subprotocol.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "proto" => Some(Self::Proto),
            _ => None,
        }
    }

    /// Its name there.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Proto => "proto",
        }
    }

    /// The format of a content type, and whether messages are in envelopes.
    pub(crate) fn of_type(content_type: &str) -> Option<(Self, bool)> {
        let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        // JSON is UTF-8; no other parameter means anything.
        let parameters = parameters.trim();
        if !parameters.is_empty() && !parameters.eq_ignore_ascii_case("charset=utf-8") {
            return None;
        }
        let name = essence.trim().to_ascii_lowercase();
        let name = name.strip_prefix("application/")?;
        match name.strip_prefix("connect+") {
            Some(name) => Self::of(name).map(|format| (format, true)),
            None => Self::of(name).map(|format| (format, false)),
        }
    }

    /// The content type of one message.
    pub(crate) fn of_messages(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Proto => "application/proto",
        })
    }

    /// The content type of a stream.
    pub(crate) fn of_streams(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/connect+json",
            Self::Proto => "application/connect+proto",
        })
    }
}

/// How the messages of one method are read and written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codecs {
    format: Format,
    input: Codec,
    output: Codec,
}

impl Codecs {
    /// Those of a method.
    pub(crate) fn of(policy: &MethodPolicy, format: Format) -> Result<Self, Error> {
        static ALL: LazyLock<HashMap<&str, (Codec, Codec)>> = LazyLock::new(all);
        let missing = || Error::internal(anyhow::anyhow!("{} has no JSON codec", policy.path));
        let (input, output) = *ALL.get(policy.path.as_str()).ok_or_else(missing)?;
        Ok(Self { format, input, output })
    }

    /// A message of the client as protobuf.
    pub(crate) fn read(&self, message: Bytes) -> Result<Bytes, Refusal> {
        match self.format {
            Format::Proto => Ok(message),
            Format::Json => match (self.input.from_json)(&message) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(transcode::explain(&message, error).into()),
            },
        }
    }

    /// A message of the service in the client's form.
    pub(crate) fn write(&self, message: Bytes) -> Result<Bytes, Error> {
        match self.format {
            Format::Proto => Ok(message),
            Format::Json => (self.output.to_json)(message).map(Bytes::from).map_err(Error::internal),
        }
    }
}

fn all() -> HashMap<&'static str, (Codec, Codec)> {
    let codecs = |policy: &'static MethodPolicy| {
        let input = Codec::find(policy.descriptor.input().full_name())?;
        let output = Codec::find(policy.descriptor.output().full_name())?;
        Some((policy.path.as_str(), (input, output)))
    };
    Contract::get().methods().filter_map(codecs).collect()
}

/// A call whose frame cannot be read.
pub(crate) fn malformed(message: &'static str) -> Refusal {
    Error::new(Kind::InvalidArgument, "MALFORMED_BODY", message).into()
}

#[cfg(test)]
mod tests {
    use proto::Contract;

    use super::{Codecs, Format};

    #[test]
    fn every_method_has_codecs() {
        for policy in Contract::get().methods() {
            assert!(Codecs::of(policy, Format::Json).is_ok(), "{}", policy.path);
        }
    }

    #[test]
    fn content_types_are_those_of_the_protocol() {
        for (text, expected) in [
            ("application/json", Some((Format::Json, false))),
            ("application/json; charset=utf-8", Some((Format::Json, false))),
            ("Application/JSON;charset=UTF-8", Some((Format::Json, false))),
            ("application/proto", Some((Format::Proto, false))),
            ("application/connect+json", Some((Format::Json, true))),
            ("application/connect+proto", Some((Format::Proto, true))),
            ("application/json; charset=latin1", None),
            ("application/connect+xml", None),
            ("application/x-protobuf", None),
            ("text/json", None),
            ("", None),
        ] {
            assert_eq!(Format::of_type(text), expected, "{text}");
        }
    }
}
