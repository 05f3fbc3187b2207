//! The query of a request: each parameter is a field that neither the path nor the body sets.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use prost_reflect::MessageDescriptor;
use service_kit::{
    Error,
    error::{FieldViolation, Result},
};

use super::{fields::Field, request::Plan};

/// The most parameters of a query.
const MAX_PARAMETERS: usize = 200;

/// Appends every parameter; names all that are wrong.
pub(super) fn encode(
    message: &MessageDescriptor,
    query: &str,
    variables: &[Field],
    body: &Plan,
    out: &mut Vec<u8>,
) -> Result<()> {
    if query.is_empty() {
        return Ok(());
    }
    let mut seen: Vec<Vec<u32>> = Vec::new();
    let mut wrong = Vec::new();
    for (at, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        if at >= MAX_PARAMETERS {
            let message = format!("the query has more than {MAX_PARAMETERS} parameters");
            return Err(Error::new(service_kit::Kind::InvalidArgument, "INVALID_QUERY", message));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Ok(name) = decode(name, true) else {
            wrong.push(violation(&String::from_utf8_lossy(name.as_bytes()), "has a name that is not UTF-8"));
            continue;
        };
        if let Err(fault) = one(message, &name, value, variables, body, &mut seen, out) {
            wrong.push(violation(&name, &fault));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::fields(wrong)) }
}

fn violation(field: &str, message: &str) -> FieldViolation {
    FieldViolation { field: field.to_owned(), message: message.to_owned() }
}

fn one(
    message: &MessageDescriptor,
    name: &str,
    value: &str,
    variables: &[Field],
    body: &Plan,
    seen: &mut Vec<Vec<u32>>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let field = Field::resolve(message, name)
        .filter(|field| !body.sets(&field.numbers()))
        .ok_or("is not a query parameter of this method")?;
    let numbers = field.numbers();
    if variables.iter().any(|variable| variable.numbers() == numbers) {
        return Err("is set by the path".to_owned());
    }
    if !field.is_repeated() && seen.contains(&numbers) {
        return Err("is given twice".to_owned());
    }
    field.encode(&decode(value, true)?, out)?;
    seen.push(numbers);
    Ok(())
}

/// Undoes percent encoding of several segments: an encoded slash stays, because it is not one between them.
pub(super) fn decode_segments(text: &str) -> Result<Cow<'_, str>, &'static str> {
    let Some(at) = text.find("%2F").or_else(|| text.find("%2f")) else { return decode(text, false) };
    // The first of either case.
    let at = text.find("%2f").map_or(at, |other| other.min(at));
    let (before, after) = (decode(&text[..at], false)?, decode_segments(&text[at + 3..])?);
    Ok(Cow::Owned(format!("{before}{}{after}", &text[at..at + 3])))
}

/// Undoes percent encoding; in a query `+` is a space.
pub(super) fn decode(text: &str, plus: bool) -> Result<Cow<'_, str>, &'static str> {
    if plus && text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| "is not UTF-8")?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(text).decode_utf8().map_err(|_| "is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::{decode, decode_segments};

    #[test]
    fn one_segment_decodes_fully_and_several_keep_encoded_slashes() {
        assert_eq!(decode("a%2Fb%20c", false).unwrap(), "a/b c");
        for (text, expected) in
            [("a/b", "a/b"), ("a%2Fb/%20c%2f", "a%2Fb/ c%2f"), ("%2f%2F", "%2f%2F"), ("%C3%A9/x", "é/x")]
        {
            assert_eq!(decode_segments(text).unwrap(), expected);
        }
        assert!(decode_segments("a%2F%FF").is_err());
    }
}
