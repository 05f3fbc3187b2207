//! The edge in front of services that do as they are told: slow, failing, breaking off, gone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batch;
mod browser;
mod cache;
mod client;
mod clients;
mod codings;
mod composite;
mod connect;
mod connect_kept;
mod connections;
mod cookies;
mod errors;
mod faults;
mod grpc;
mod hardening;
mod harness;
mod load;
mod observed;
mod opaque;
mod own;
mod rates;
mod refusals;
mod reload;
mod resilience;
mod rest;
mod restart;
mod revocation;
mod rogue;
mod sockets;
mod stream;
mod web;
mod ws;
