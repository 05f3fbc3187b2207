//! Tells a client what it may want to know of its own call: what it has left of its limits, and, when it asks with
//! `X-Server-Timing`, where the time went (`Server-Timing`). Headers only, never trailers.

use std::convert::Infallible;

use http::HeaderName;
use tower::{ServiceExt as _, service_fn};

use super::{Next, Request};
use crate::Client;

/// The header that asks for `Server-Timing`.
const ASK: HeaderName = HeaderName::from_static("x-server-timing");

pub(crate) fn wrap<S: Next<Infallible>>(inner: S) -> impl Next<Infallible> {
    service_fn(move |request: Request| {
        let inner = inner.clone();
        let ticket = request.extensions().get::<Client>().map(Client::ticket);
        let timing = request.headers().contains_key(ASK);
        async move {
            let mut response = inner.oneshot(request).await?;
            if let Some(ticket) = ticket {
                ticket.marks().write(response.headers_mut(), timing);
            }
            Ok(response)
        }
    })
}
