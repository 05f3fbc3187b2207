//! The service's gRPC methods: decode, call the domain, encode. No rule and no SQL is here.

pub(crate) mod apis;
pub(crate) mod deployments;
pub(crate) mod gateways;
mod imports;
pub(crate) mod organizations;
pub(crate) mod projects;
pub(crate) mod revisions;

use proto::time::Timestamp;

fn time(unix_ms: i64) -> Option<Timestamp> {
    Some(Timestamp::from_unix_ms(unix_ms))
}

/// How many entries a page holds.
fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}
