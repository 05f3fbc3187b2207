//! A unary call as GET: the message is in the query.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use percent_encoding::percent_decode;
use service_kit::{Error, Kind};

use super::Format;
use crate::{
    codings::{self, Coding},
    rescue::Refusal,
};

/// Base64 of the URL-safe alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a query says of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) format: Format,
    pub(super) coding: Option<Coding>,
    pub(super) message: Bytes,
}

/// Reads a query. Parameters come in any order; those of others are not ours to judge.
pub(super) fn read(query: &str) -> Result<Query, Refusal> {
    let (mut message, mut format, mut coding, mut base64) = (None, None, None, false);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // `+` is a space here, as in every query.
        let value = value.replace('+', " ");
        let bytes = percent_decode(value.as_bytes());
        let text = || bytes.clone().decode_utf8_lossy();
        match name {
            "message" => message = Some(Bytes::from(bytes.collect::<Vec<u8>>())),
            "encoding" => {
                format = Some(Format::of(&text()).ok_or_else(|| super::wrong_type(false))?);
            }
            "base64" => base64 = text() == "1",
            "compression" => coding = of_name(&text())?,
            "connect" if text() != "v1" => return Err(wrong("`connect` must be `v1`")),
            _ => {}
        }
    }
    let format = format.ok_or_else(|| wrong("`encoding` is missing: `json` or `proto`"))?;
    let message = message.ok_or_else(|| wrong("`message` is missing"))?;
    let message = match base64 {
        true => BASE64.decode(message).map_err(|_| wrong("`message` is no base64"))?.into(),
        false => message,
    };
    Ok(Query { format, coding, message })
}

fn of_name(name: &str) -> Result<Option<Coding>, Refusal> {
    if matches!(name, "" | "identity") {
        return Ok(None);
    }
    let unknown = || {
        let found: String = name.chars().take(64).collect();
        Error::new(Kind::Unimplemented, codings::UNSUPPORTED, codings::unknown(&found))
    };
    Ok(Some(Coding::of(name).ok_or_else(unknown)?))
}

fn wrong(message: &'static str) -> Refusal {
    Error::new(Kind::InvalidArgument, "INVALID_QUERY", message).into()
}

#[cfg(test)]
mod tests {
    use super::{Coding, Format, Query, read};

    #[test]
    fn parameters_come_in_any_order_and_unknown_ones_pass() {
        let expected = Query { format: Format::Json, coding: None, message: "{\"a\": 1}".into() };
        for query in [
            "message=%7B%22a%22%3A+1%7D&encoding=json&connect=v1",
            "x=y&connect=v1&encoding=json&&base64=1&message=eyJhIjogMX0",
            "base64=1&message=eyJhIjogMX0%3D&encoding=json&compression=identity",
        ] {
            assert_eq!(read(query).unwrap(), expected, "{query}");
        }
        let read = read("encoding=proto&compression=gzip&message=%00%FF").unwrap();
        assert_eq!((read.coding, &read.message[..]), (Some(Coding::Gzip), &[0, 255][..]));
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused() {
        for query in [
            "",
            "message=",
            "encoding=json",
            "encoding=xml&message=",
            "encoding=json&message=!&base64=1",
            "encoding=json&message=&connect=v2",
            "encoding=json&message=&compression=snappy",
        ] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}
