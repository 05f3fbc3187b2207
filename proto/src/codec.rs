//! Typed translation between proto3 JSON and protobuf bytes, found by a message's name.
//!
//! The edge transcodes with this table: no message is known to it by type, and yet nothing is
//! interpreted at run time.

use std::io;

use bytes::Bytes;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// JSON that does not fit a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// Where, such as `operations[3].request.path`; empty when the text is not JSON at all.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for JsonError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for JsonError {}

/// The two directions of one message type.
#[derive(Debug, Clone, Copy)]
pub struct Codec {
    /// JSON text to protobuf bytes. Unknown fields are an error that names them.
    pub from_json: fn(&[u8]) -> Result<Vec<u8>, JsonError>,
    /// Protobuf bytes to JSON text; fails when the bytes are not of this message.
    pub to_json: fn(Bytes) -> Result<Vec<u8>, JsonError>,
}

impl Codec {
    /// The codec of the message with this full name, if it is the request or response of an RPC.
    pub fn find(name: &str) -> Option<Self> {
        // prost has no type of its own for it.
        if name == "google.protobuf.Empty" {
            return Some(Self::of::<pbjson_types::Empty>());
        }
        include!(concat!(env!("OUT_DIR"), "/codec_table.rs"))
    }

    fn of<T: Message + Default + Serialize + DeserializeOwned>() -> Self {
        Self { from_json: from_json::<T>, to_json: to_json::<T> }
    }
}

fn from_json<T: Message + DeserializeOwned>(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let message: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        JsonError {
            path: if path == "." { String::new() } else { path },
            message: plainly(&error.into_inner().to_string()),
        }
    })?;
    json.end().map_err(|error| JsonError { path: String::new(), message: error.to_string() })?;
    Ok(message.encode_to_vec())
}

/// serde's words for people, without what it found: `invalid type: string "hunter2", expected a map` may
/// show a secret, and messages go into answers and logs.
fn plainly(message: &str) -> String {
    // The generated code reads numbers as "text or number", and says this when a number does not fit.
    if message.starts_with("data did not match any variant of untagged enum") {
        return "expected a number in the field's range".to_owned();
    }
    let cut = || {
        let head =
            ["invalid type: ", "invalid value: "].into_iter().find(|head| message.starts_with(head))?;
        let (found, expected) = message[head.len()..].rsplit_once(", expected ")?;
        let kind = found.split(['"', '`']).next().unwrap_or_default().trim_end();
        Some(format!("{head}{kind}, expected {expected}"))
    };
    // Of an enum the generated code says "expected" itself.
    cut().unwrap_or_else(|| message.to_owned()).replace("expected expected", "expected")
}

fn to_json<T: Message + Default + Serialize>(bytes: Bytes) -> Result<Vec<u8>, JsonError> {
    let message =
        T::decode(bytes).map_err(|error| JsonError { path: String::new(), message: error.to_string() })?;
    let mut text = Vec::with_capacity(128);
    message
        .serialize(&mut Serializer::with_formatter(&mut text, WholeNumbers))
        .map_err(|error| JsonError { path: String::new(), message: error.to_string() })?;
    Ok(text)
}

/// Prints whole numbers as such: those of `google.protobuf.Value` are all floating, and not every reader
/// takes `300000.0` for an integer.
struct WholeNumbers;

impl Formatter for WholeNumbers {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // Up to here every integer is a floating number too.
        if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
            return write!(writer, "{}", value as i64);
        }
        CompactFormatter.write_f64(writer, value)
    }
}

#[cfg(test)]
mod tests {
    use super::Codec;

    #[test]
    fn json_names_of_the_api_model_are_the_seeds() {
        let codec = Codec::find("tollgate.project.v1.CreateApiRequest").unwrap();
        let json = br#"{"api":{"name":"a","backend-services":[{"name":"b","isDefault":true}],
            "api-rate-limiting":{"enabled":true,"rateLimitTimeUnit":"HOUR"},"lifeCycleStatus":"PUBLISHED"}}"#;
        let bytes = (codec.from_json)(json).unwrap();
        let text = String::from_utf8((codec.to_json)(bytes.into()).unwrap()).unwrap();
        for part in [
            "\"backend-services\":[{\"name\":\"b\"",
            "\"rateLimitTimeUnit\":\"HOUR\"",
            "\"lifeCycleStatus\":\"PUBLISHED\"",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn whole_numbers_print_as_integers() {
        let codec = Codec::find("tollgate.auth.v1.PasskeyCeremony").unwrap();
        let json = r#"{"ceremony":"c","options":{"n":[0,-7,300000,1.5,-0.25,9007199254740991,1e+300]}}"#;
        let bytes = (codec.from_json)(json.as_bytes()).unwrap();
        let text = String::from_utf8((codec.to_json)(bytes.into()).unwrap()).unwrap();
        assert_eq!(text, json);
    }

    #[test]
    fn errors_name_the_field() {
        let codec = Codec::find("tollgate.project.v1.CreateApiRequest").unwrap();
        let error = (codec.from_json)(br#"{"api":{"operations":[{"request":{"path":5}}]}}"#).unwrap_err();
        assert_eq!(error.path, "api.operations[0].request.path");
        let error = (codec.from_json)(br#"{"api":{"nmae":"x"}}"#).unwrap_err();
        assert!(error.message.contains("unknown field `nmae`"), "{error}");
        assert_eq!((codec.from_json)(b"{}x").unwrap_err().path, "");
        assert!((codec.from_json)(b"{\"projectId\":\"\xff\"}").is_err());
    }

    #[test]
    fn errors_show_no_value() {
        let codec = Codec::find("tollgate.auth.v1.LoginRequest").unwrap();
        for json in [
            r#""canary, expected ""#,
            r#"{"password":["canary"]}"#,
            r#"{"password":{"canary":"canary"}}"#,
            r#"{"password":"canary","email":4711}"#,
            r#"{"password":4711.5}"#,
            r#"["canary"]"#,
            r#"{"password":"canary"#,
        ] {
            let error = (codec.from_json)(json.as_bytes()).unwrap_err();
            assert!(!error.message.contains("canary") && !error.message.contains("4711"), "{error}");
        }
        let error = (codec.from_json)(br#"{"password":4711}"#).unwrap_err();
        assert!(error.message.starts_with("invalid type: integer, expected a string"), "{error}");
        let codec = Codec::find("tollgate.project.v1.CreateApiRequest").unwrap();
        let error = (codec.from_json)(br#"{"api":{"cors":{"maxAge":99999999999}}}"#).unwrap_err();
        assert_eq!(error.to_string(), "api.cors.maxAge: expected a number in the field's range");
        let error = (codec.from_json)(br#"{"api":{"type":"TELNET"}}"#).unwrap_err();
        assert!(
            error.to_string().starts_with("api.type: ") && !error.message.contains("expected expected"),
            "{error}"
        );
    }
}
