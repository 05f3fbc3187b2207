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
mod connections;
mod cookies;
mod errors;
mod everywhere;
mod faults;
mod grpc;
mod hardening;
mod harness;
mod keys;
mod load;
mod observed;
mod opaque;
mod own;
mod rates;
mod reload;
mod resilience;
mod rest;
mod restart;
mod revocation;
mod rogue;
mod secured;
mod sockets;
mod stream;
mod web;
mod wire;
mod ws;
