//! What tells one request from another: SHA-256 of its message.
//!
//! The entries of maps (`google.protobuf.Struct` is one) have no order on the wire, and whoever makes the message again
//! writes them in another. Messages that can hold some are compared by their JSON with sorted names.

use std::collections::HashMap;

use bytes::Bytes;
use proto::{Contract, codec::Codec};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How the messages of each method that takes a key are compared.
#[derive(Debug)]
pub(super) struct Fingerprints(HashMap<&'static str, Codec>);

impl Fingerprints {
    pub(super) fn new() -> Self {
        let unordered =
            Contract::get().methods().filter(|method| method.takes_key && method.asks_with_maps());
        let unordered = unordered.filter_map(|method| {
            Some((method.path.as_str(), Codec::find(method.descriptor.input().full_name())?))
        });
        Self(unordered.collect())
    }

    /// Of the body of a call: one message after the five bytes of its frame.
    pub(super) fn of(&self, method: &str, body: &Bytes) -> Vec<u8> {
        let message = body.slice(body.len().min(5)..);
        let sorted = self.0.get(method).and_then(|codec| {
            // `Value` sorts the names of objects.
            let json: Value = serde_json::from_slice(&(codec.to_json)(message.clone()).ok()?).ok()?;
            serde_json::to_vec(&json).ok()
        });
        // What is no message is refused whoever reads it.
        Sha256::digest(sorted.as_deref().unwrap_or(&message)).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;
    use proto::codec::Codec;

    use super::Fingerprints;

    const SEND: &str = "/tollgate.gateway.v1.GatewayOperationsService/SendEvent";
    const PROJECT: &str = "/tollgate.project.v1.ProjectService/CreateProject";

    fn framed(name: &str, json: &str) -> Bytes {
        let message = (Codec::find(name).unwrap().from_json)(json.as_bytes()).unwrap();
        let mut frame = vec![0, 0, 0, 0, 0];
        frame.extend(message);
        frame.into()
    }

    #[test]
    fn the_order_of_a_map_does_not_count() {
        let fingerprints = Fingerprints::new();
        let send = |json: &str| fingerprints.of(SEND, &framed("tollgate.gateway.v1.SendEventRequest", json));
        let many = r#"{"gatewayId": "g", "type": "custom.x", "payload": {"a": 1, "b": {"c": 2, "d": 3}, "e": 4, "f": 5}}"#;
        let first = send(many);
        // Each decoding has a map of its own, and so an order of its own.
        let orders: std::collections::HashSet<Vec<u8>> =
            (0..20).map(|_| framed("tollgate.gateway.v1.SendEventRequest", many).to_vec()).collect();
        assert!(orders.len() > 1, "maps are written in order: this test, and what it tests, are not needed");
        assert!((0..20).all(|_| send(many) == first));
        assert_ne!(send(&many.replace("\"c\": 2", "\"c\": 7")), first);
        assert_ne!(send(&many.replace("custom.x", "custom.y")), first);
    }

    #[test]
    fn messages_without_maps_are_compared_byte_by_byte() {
        let fingerprints = Fingerprints::new();
        assert!(fingerprints.0.contains_key(SEND) && !fingerprints.0.contains_key(PROJECT));
        let of = |name: &str| {
            let request =
                proto::project::CreateProjectRequest { name: name.to_owned(), ..Default::default() };
            fingerprints.of(PROJECT, &[&[0; 5], request.encode_to_vec().as_slice()].concat().into())
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        // What is no message is no reason to fail here.
        let garbage = |last: u8| fingerprints.of(SEND, &Bytes::from(vec![0, 0, 0, 0, 1, last]));
        assert_eq!(garbage(255), garbage(255));
        assert_ne!(garbage(255), garbage(254));
        assert_eq!(
            fingerprints.of(PROJECT, &Bytes::new()),
            fingerprints.of(PROJECT, &Bytes::from_static(&[0; 5]))
        );
    }
}
