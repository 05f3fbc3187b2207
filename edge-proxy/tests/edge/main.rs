//! The edge in front of services that do as they are told: slow, failing, breaking off, gone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browser;
mod client;
mod clients;
mod cookies;
mod errors;
mod grpc;
mod hardening;
mod harness;
mod observed;
mod opaque;
mod own;
mod rest;
mod revocation;
mod stream;
mod web;
mod ws;
