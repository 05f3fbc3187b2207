//! What every Tollgate service starts from: configuration, errors, servers and channels under mutual
//! TLS, token verification, databases, outbox, bus, telemetry, shutdown.
//!
//! It knows no word of any domain: no user, project or gateway appears here.

pub mod access;
pub mod admin;
pub mod bus;
pub mod client;
pub mod client_info;
pub mod clock;
pub mod config;
pub mod db;
pub mod error;
pub mod field;
pub mod id;
pub mod idempotency;
pub mod opaque;
pub mod outbox;
pub mod page;
pub mod seal;
pub mod secret_file;
pub mod server;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
pub mod token;

pub use access::{AuthContext, Peer};
pub use client_info::ClientInfo;
pub use clock::Clock;
pub use error::{Error, Kind, Result};
pub use id::Ids;
