//! What the service decides: types and rules. Knows no gRPC and no SQL.

pub(crate) mod access;
pub(crate) mod acks;
pub(crate) mod archive;
pub(crate) mod artifacts;
pub(crate) mod gateways;
pub(crate) mod log;
pub(crate) mod manifests;
pub(crate) mod tokens;
