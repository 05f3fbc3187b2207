//! The kit as services use it: real sockets, real TLS, both databases.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;
mod databases;
mod idempotency;
mod mesh;
mod tokens;
