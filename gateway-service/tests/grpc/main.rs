//! gateway-service over real sockets and mutual TLS, on SQLite and PostgreSQL, between a fake auth-service
//! and a fake project-service.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod acks;
mod artifacts;
mod fake;
mod gateway;
mod harness;
mod link;
mod log;
mod registry;
mod restart;
mod tokens;
