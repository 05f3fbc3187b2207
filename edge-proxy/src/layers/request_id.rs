//! Gives every request an id: ours, whatever the client sent; the answer carries it too.

use std::convert::Infallible;

use http::{HeaderName, HeaderValue};
use service_kit::Ids;
use tower::{ServiceExt as _, service_fn};

use super::{Next, Request};

/// The header.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(crate) fn wrap<S: Next<Infallible>>(inner: S, ids: Ids) -> impl Next<Infallible> {
    service_fn(move |mut request: Request| {
        let inner = inner.clone();
        let id = HeaderValue::try_from(ids.next()).unwrap_or_else(|_| HeaderValue::from_static("-"));
        request.headers_mut().insert(X_REQUEST_ID, id.clone());
        async move {
            let mut response = inner.oneshot(request).await?;
            response.headers_mut().insert(X_REQUEST_ID, id);
            Ok(response)
        }
    })
}
