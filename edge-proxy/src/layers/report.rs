//! Tells a client what it may want to know of its own call: what it has left of its limits, and, when it asks with
//! `X-Server-Timing`, where the time went (`Server-Timing`). Headers only, never trailers.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use super::Request;
use crate::{Client, listener::Ticket};

/// The header that asks for `Server-Timing`.
const ASK: HeaderName = HeaderName::from_static("x-server-timing");

/// What a client will be told.
pub(crate) struct Report {
    ticket: Option<Arc<Ticket>>,
    timing: bool,
}

impl Report {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            ticket: request.extensions().get::<Client>().map(Client::ticket),
            timing: request.headers().contains_key(ASK),
        }
    }

    /// Adds what is known by now to the headers of the answer.
    pub(crate) fn add(self, headers: &mut HeaderMap) {
        if let Some(ticket) = self.ticket {
            ticket.marks().write(headers, self.timing);
        }
    }
}
