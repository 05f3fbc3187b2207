//! gateway-service over real sockets and mutual TLS, on SQLite and PostgreSQL, between a fake auth-service
//! and a fake project-service.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod acks;
mod artifacts;
mod cluster;
mod events;
mod fake;
mod gateway;
mod harness;
mod imports;
mod instance;
mod instances;
mod link;
mod log;
mod operations;
mod reconcile;
mod registry;
mod restart;
mod resume;
mod retries;
mod routes;
mod snapshot;
mod sse;
mod tokens;
