//! Fields of a request that a path or a query can set: found by name, encoded from text.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

/// Base64 of either alphabet, padded or not, as proto3 JSON takes it.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// A field that text can set, perhaps inside other messages.
#[derive(Debug, Clone)]
pub(super) struct Field {
    /// The messages on the way to it.
    parents: Vec<FieldDescriptor>,
    leaf: FieldDescriptor,
}

impl Field {
    /// The field at a dotted path of proto or JSON names, if text can set it.
    pub(super) fn resolve(message: &MessageDescriptor, path: &str) -> Option<Self> {
        let mut message = message.clone();
        let mut parents = Vec::new();
        let mut names = path.split('.');
        let mut field = field_of(&message, names.next()?)?;
        for name in names {
            message = match field.kind() {
                Kind::Message(inner) if !field.is_list() && !field.is_map() => inner,
                _ => return None,
            };
            parents.push(std::mem::replace(&mut field, field_of(&message, name)?));
        }
        let settable = !field.is_map()
            && match field.kind() {
                Kind::Message(message) => is_text(&message),
                _ => true,
            };
        settable.then_some(Self { parents, leaf: field })
    }

    /// Field numbers from the message down: two names of one field have the same.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.parents.iter().chain([&self.leaf]).map(FieldDescriptor::number).collect()
    }

    /// The path in JSON names.
    pub(super) fn json_path(&self) -> String {
        let names: Vec<&str> =
            self.parents.iter().chain([&self.leaf]).map(FieldDescriptor::json_name).collect();
        names.join(".")
    }

    pub(super) fn is_repeated(&self) -> bool {
        self.leaf.is_list()
    }

    /// Appends the field with this value; says what is wrong with the value otherwise.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
        if self.parents.is_empty() {
            return scalar(&self.leaf, text, out);
        }
        let mut inner = Vec::new();
        scalar(&self.leaf, text, &mut inner)?;
        for parent in self.parents.iter().rev() {
            let mut outer = Vec::with_capacity(inner.len() + 8);
            bytes(parent.number(), &inner, &mut outer);
            inner = outer;
        }
        out.extend_from_slice(&inner);
        Ok(())
    }
}

fn field_of(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))
}

/// Messages whose JSON form is a string or a scalar.
fn is_text(message: &MessageDescriptor) -> bool {
    let name = message.full_name();
    matches!(name, "google.protobuf.Timestamp" | "google.protobuf.Duration" | "google.protobuf.FieldMask")
        || is_wrapper(name)
}

fn is_wrapper(name: &str) -> bool {
    name.starts_with("google.protobuf.") && name.ends_with("Value") && name != "google.protobuf.ListValue"
}

/// Appends a length-delimited field.
pub(super) fn bytes(number: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

fn fixed32(number: u32, value: [u8; 4], out: &mut Vec<u8>) {
    encode_key(number, WireType::ThirtyTwoBit, out);
    out.extend_from_slice(&value);
}

fn fixed64(number: u32, value: [u8; 8], out: &mut Vec<u8>) {
    encode_key(number, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value);
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("must be {what}"))
}

/// Appends one value of a field by its kind. A negative number sign-extends, as protobuf wants it.
#[allow(clippy::cast_sign_loss, reason = "two's complement is the wire format")]
fn scalar(field: &FieldDescriptor, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let number = field.number();
    let (i32s, u32s) = ("a whole number of 32 bits", "a whole number of 32 bits, not negative");
    let (i64s, u64s) = ("a whole number of 64 bits", "a whole number of 64 bits, not negative");
    match field.kind() {
        Kind::String => bytes(number, text.as_bytes(), out),
        Kind::Bytes => bytes(number, &base64(text)?, out),
        Kind::Bool => varint(number, u64::from(parse::<bool>(text, "`true` or `false`")?), out),
        Kind::Int32 => varint(number, i64::from(parse::<i32>(text, i32s)?) as u64, out),
        Kind::Int64 => varint(number, parse::<i64>(text, i64s)? as u64, out),
        Kind::Uint32 => varint(number, u64::from(parse::<u32>(text, u32s)?), out),
        Kind::Uint64 => varint(number, parse::<u64>(text, u64s)?, out),
        Kind::Sint32 => varint(number, zigzag(parse::<i32>(text, i32s)?.into()), out),
        Kind::Sint64 => varint(number, zigzag(parse::<i64>(text, i64s)?), out),
        Kind::Fixed32 => fixed32(number, parse::<u32>(text, u32s)?.to_le_bytes(), out),
        Kind::Sfixed32 => fixed32(number, parse::<i32>(text, i32s)?.to_le_bytes(), out),
        Kind::Fixed64 => fixed64(number, parse::<u64>(text, u64s)?.to_le_bytes(), out),
        Kind::Sfixed64 => fixed64(number, parse::<i64>(text, i64s)?.to_le_bytes(), out),
        Kind::Float => fixed32(number, parse::<f32>(text, "a number")?.to_le_bytes(), out),
        Kind::Double => fixed64(number, parse::<f64>(text, "a number")?.to_le_bytes(), out),
        Kind::Enum(enumeration) => {
            varint(number, i64::from(enum_number(&enumeration, text)?) as u64, out);
        }
        Kind::Message(message) => {
            let mut inner = Vec::new();
            well_known(&message, text, &mut inner)?;
            bytes(number, &inner, out);
        }
    }
    Ok(())
}

#[allow(clippy::cast_sign_loss, reason = "zigzag maps signed to unsigned by their bits")]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|_| "must be base64".to_owned())
}

fn enum_number(enumeration: &EnumDescriptor, text: &str) -> Result<i32, String> {
    let by_number = |text: &str| enumeration.get_value(text.parse().ok()?);
    let value = enumeration.get_value_by_name(text).or_else(|| by_number(text));
    value.map(|value| value.number()).ok_or_else(|| {
        let names: Vec<String> = enumeration.values().map(|value| value.name().to_owned()).collect();
        format!("must be one of {}", names.join(", "))
    })
}

#[allow(clippy::cast_sign_loss, reason = "two's complement is the wire format")]
fn well_known(message: &MessageDescriptor, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    match message.full_name() {
        "google.protobuf.Timestamp" => {
            let time = proto::time::Timestamp::parse_rfc3339(text)
                .ok_or("must be an RFC 3339 time such as 2026-08-22T10:00:00.123Z")?;
            out.extend_from_slice(&prost::Message::encode_to_vec(&time));
        }
        "google.protobuf.Duration" => {
            let (seconds, nanos) = duration(text).ok_or("must be seconds such as 1.5s")?;
            varint(1, seconds as u64, out);
            varint(2, i64::from(nanos) as u64, out);
        }
        "google.protobuf.FieldMask" => {
            for path in text.split(',').filter(|path| !path.is_empty()) {
                bytes(1, snake_case(path).as_bytes(), out);
            }
        }
        _ => {
            let value = message.get_field(1).ok_or("cannot be set by text")?;
            scalar(&value, text, out)?;
        }
    }
    Ok(())
}

/// Seconds and nanoseconds of `-1.5s`, both of one sign.
fn duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (sign, digits) = number.strip_prefix('-').map_or((1, number), |digits| (-1, digits));
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || fraction.len() > 9 || !plain(seconds) || !plain(fraction) {
        return None;
    }
    // The bound of google.protobuf.Duration: 10,000 years.
    let seconds = seconds.parse::<i64>().ok().filter(|seconds| *seconds <= 315_576_000_000)?;
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some((seconds * sign, nanos * i32::try_from(sign).ok()?))
}

/// The JSON form of a field mask has camelCase paths, the message has proto names.
fn snake_case(path: &str) -> String {
    let mut snake = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests;
