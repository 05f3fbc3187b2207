//! Typed translation between proto3 JSON and protobuf bytes, found by a message's name.
//!
//! The edge transcodes with this table: no message is known to it by type, and yet nothing is
//! interpreted at run time.

use bytes::Bytes;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};

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
            message: error.into_inner().to_string(),
        }
    })?;
    json.end().map_err(|error| JsonError { path: String::new(), message: error.to_string() })?;
    Ok(message.encode_to_vec())
}

fn to_json<T: Message + Default + Serialize>(bytes: Bytes) -> Result<Vec<u8>, JsonError> {
    let message =
        T::decode(bytes).map_err(|error| JsonError { path: String::new(), message: error.to_string() })?;
    serde_json::to_vec(&message)
        .map_err(|error| JsonError { path: String::new(), message: error.to_string() })
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
    fn errors_name_the_field() {
        let codec = Codec::find("tollgate.project.v1.CreateApiRequest").unwrap();
        let error = (codec.from_json)(br#"{"api":{"operations":[{"request":{"path":5}}]}}"#).unwrap_err();
        assert_eq!(error.path, "api.operations[0].request.path");
        let error = (codec.from_json)(br#"{"api":{"nmae":"x"}}"#).unwrap_err();
        assert!(error.message.contains("unknown field `nmae`"), "{error}");
        assert_eq!((codec.from_json)(b"{}x").unwrap_err().path, "");
        assert!((codec.from_json)(b"{\"projectId\":\"\xff\"}").is_err());
    }
}
