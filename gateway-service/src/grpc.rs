//! The service's gRPC face, and its calls to project-service: proto to domain and back. No rules, no SQL.

mod accept;
pub(crate) mod delivery;
pub(crate) mod gateways;
pub(crate) mod internal;
pub(crate) mod link;
pub(crate) mod operations;
pub(crate) mod project;

use std::collections::VecDeque;

use proto::time::Timestamp;
use service_kit::Result;
use tonic::metadata::MetadataMap;

use crate::domain::tokens::{Bearer, Tokens};

/// The gateway that makes a call, by its `api-key`. The kit does not check GATEWAY methods: each begins here.
async fn authenticate_gateway(tokens: &Tokens, metadata: &MetadataMap) -> Result<Bearer> {
    let keys: VecDeque<&str> =
        metadata.get_all("api-key").iter().map(|value| value.to_str().unwrap_or_default()).collect();
    tokens.authenticate(keys).await
}

/// A time of the store on the wire.
fn time(unix_ms: i64) -> Option<Timestamp> {
    Some(Timestamp::from_unix_ms(unix_ms))
}

/// The number of entries of a list.
fn count(entries: usize) -> u32 {
    u32::try_from(entries).unwrap_or(u32::MAX)
}
