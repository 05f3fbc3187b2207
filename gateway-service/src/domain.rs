//! What the service decides: types and rules. Knows no gRPC and no SQL.

pub(crate) mod access;
pub(crate) mod acks;
pub(crate) mod archive;
pub(crate) mod artifacts;
pub(crate) mod connections;
pub(crate) mod failures;
pub(crate) mod figures;
pub(crate) mod gateways;
pub(crate) mod imports;
pub(crate) mod instances;
pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod manifests;
pub(crate) mod operations;
pub(crate) mod reconcile;
pub(crate) mod reports;
pub(crate) mod retention;
pub(crate) mod retries;
pub(crate) mod states;
pub(crate) mod tokens;
pub(crate) mod web;
