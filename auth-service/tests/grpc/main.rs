//! auth-service as its peers see it: a real server under mutual TLS, on SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounts;
mod audit;
mod authenticator;
mod cookies;
mod database;
mod devices;
mod fake_projects;
mod harness;
mod identities;
mod instances;
mod keys;
mod known_devices;
mod mail;
mod oidc_server;
mod opaque_tokens;
mod passwords;
mod project;
mod providers;
mod refresh_model;
mod revocations;
mod second_factors;
mod second_factors_passkeys;
mod second_factors_support;
mod secrets;
mod service_accounts;
mod session_list;
mod sessions;
mod sql;
mod throttle;
mod timing;
mod token_life;
mod verification;
