//! The suite from the outside: real sockets, real clients, real gateways.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "e2e/attacks.rs"]
mod attacks;
#[path = "e2e/demo.rs"]
mod demo;
#[path = "e2e/edge.rs"]
mod edge;
#[path = "e2e/gateway_link.rs"]
mod gateway_link;
#[path = "e2e/identity.rs"]
mod identity;
#[path = "e2e/kept.rs"]
mod kept;
#[path = "e2e/keys.rs"]
mod keys;
#[path = "e2e/lifecycle.rs"]
mod lifecycle;
#[path = "e2e/native.rs"]
mod native;
#[path = "e2e/observed.rs"]
mod observed;
#[path = "e2e/operations.rs"]
mod operations;
#[path = "e2e/otlp.rs"]
mod otlp;
#[path = "e2e/outage.rs"]
mod outage;
#[path = "e2e/process.rs"]
mod process;
#[path = "e2e/project_flow.rs"]
mod project_flow;
#[path = "e2e/reconcile.rs"]
mod reconcile;
#[path = "e2e/restart.rs"]
mod restart;
#[path = "e2e/routes.rs"]
mod routes;
#[path = "e2e/secrets.rs"]
mod secrets;
#[path = "e2e/signup.rs"]
mod signup;
#[path = "e2e/sse.rs"]
mod sse;
mod support;
#[path = "e2e/takeover.rs"]
mod takeover;
