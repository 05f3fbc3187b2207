//! auth-service as its peers see it: a real server under mutual TLS, on SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounts;
mod harness;
mod keys;
mod secrets;
mod sessions;
mod throttle;
