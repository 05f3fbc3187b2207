//! The functional requirements of the gateway event notification system (FR-001 to FR-024), each with a test named
//! after it, over WebSocket, native gRPC and Server-Sent Events, on SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "fr/broadcast.rs"]
mod broadcast;
#[path = "fr/connection.rs"]
mod connection;
#[path = "fr/operations.rs"]
mod operations;
#[path = "fr/security.rs"]
mod security;
mod support;
#[path = "fr/types.rs"]
mod types;
#[path = "fr/world.rs"]
mod world;
