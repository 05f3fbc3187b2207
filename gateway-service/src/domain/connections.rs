//! The live connections of all instances, as the database knows them.

/// A connection of a gateway, and who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) id: String,
    /// The instance of this service that serves it.
    pub(crate) node_id: String,
    pub(crate) gateway_id: String,
    pub(crate) organization_id: String,
    pub(crate) token_id: String,
    /// The gateway's instance; empty for those that share what they know.
    pub(crate) instance_id: String,
    /// `websocket`, `grpc` or `sse`.
    pub(crate) transport: String,
    pub(crate) version: String,
    pub(crate) remote_address: String,
    /// Unix milliseconds.
    pub(crate) connected_at: i64,
    /// Unix milliseconds, to within a few seconds.
    pub(crate) heard_at: i64,
    pub(crate) sent_revision: i64,
    pub(crate) applied_revision: i64,
}

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) connection_id: String,
    /// Unix milliseconds.
    pub(crate) heard_at: i64,
    pub(crate) sent_revision: i64,
    pub(crate) applied_revision: i64,
}

/// What became of a connection that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is registered.
    Admitted {
        /// Grows with each connection of the gateway's instance; 0 without an instance id.
        epoch: i64,
        /// The newest revision of the gateway's log.
        head: i64,
        /// It has taken the place of an older one.
        replaced: bool,
    },
    /// Its organization has as many as it may have.
    Full,
    /// There is no such gateway (any more).
    NoGateway,
    /// This instance was declared dead meanwhile: its row is gone.
    NoNode,
}
