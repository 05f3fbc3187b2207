//! Gives every request an id: ours, whatever the client sent; the answer carries it too.

use http::{HeaderName, HeaderValue};
use service_kit::Ids;

use super::{Request, Response};

/// The header.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives a request its id.
pub(crate) fn give(ids: &Ids, request: &mut Request) -> HeaderValue {
    let mut id = HeaderValue::try_from(ids.next()).unwrap_or_else(|_| HeaderValue::from_static("-"));
    // No secret, but seen once: HPACK must not drop what comes again for it.
    id.set_sensitive(true);
    request.headers_mut().insert(X_REQUEST_ID, id.clone());
    id
}

/// Says in the answer which it was.
pub(crate) fn tell(id: HeaderValue, response: &mut Response) {
    response.headers_mut().insert(X_REQUEST_ID, id);
}
