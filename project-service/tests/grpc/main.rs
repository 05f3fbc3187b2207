//! The service as its callers see it: a real server, real clients under mutual TLS, on SQLite and on
//! PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics like the test")]

mod access;
mod api_model;
mod apis;
mod deployments;
mod fake_gateways;
mod gateway_imports;
mod harness;
mod import;
mod organizations;
mod private_keys;
mod projects;
mod revisions;
