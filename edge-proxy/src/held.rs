//! What the edge remembers of clients, counted: whatever is here must end with them, or have a bound.
//!
//! Caches count what has expired until they look at it again.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Edge;

/// How many entries there are of what.
#[derive(Debug, Serialize)]
pub(crate) struct Held {
    /// Tasks of the whole process.
    tasks: usize,
    /// Addresses that have a connection.
    addresses: usize,
    /// Sockets of gateways.
    gateway_sockets: usize,
    /// Access tokens that verified.
    verified_tokens: u64,
    /// Sessions that were revoked before their tokens expired.
    revoked_sessions: usize,
    /// Opaque tokens that were asked about.
    opaque_tokens: u64,
    /// Answers that are kept, and their bytes.
    kept_answers: u64,
    kept_bytes: u64,
    /// Calls that others may wait for too.
    flights: usize,
    /// Callers of each limit.
    callers: BTreeMap<&'static str, u64>,
}

impl Held {
    /// What this edge remembers now.
    pub(crate) fn by(edge: &Edge) -> Self {
        let (kept_answers, kept_bytes) = edge.cache.held();
        Self {
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            addresses: edge.addresses.count(),
            gateway_sockets: edge.gateways.count(),
            verified_tokens: edge.verifier.verified(),
            revoked_sessions: edge.verifier.revoked(),
            opaque_tokens: edge.exchange.held(),
            kept_answers,
            kept_bytes,
            flights: edge.cache.flights(),
            callers: edge.live.load().limits.callers().collect(),
        }
    }
}
