//! The gateway link: connections, signs of life, delivery from the log.
//!
//! It carries frames and knows no transport: a skin gives it a stream of frames and takes one. It knows no
//! type of event either. The log is the truth; whatever is kept here may be lost.

mod admission;
mod answering;
mod answers;
mod cluster;
mod connection;
mod delivery;
mod direct;
mod heartbeat;
mod hub;
mod outbound;
mod redelivery;
mod reports;
mod resume;
mod unanswered;
mod upkeep;

pub(crate) use hub::{Hub, Parts};
pub(crate) use reports::Reports;
