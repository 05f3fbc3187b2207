//! Bounds of what comes before a body: the URI and the headers. Bodies are bounded by method.

use http::StatusCode;
use tower::{ServiceExt as _, service_fn};

use super::{Next, Request};
use crate::rescue::Refusal;

/// The longest path with its query, in bytes.
const MAX_URI: usize = 8 * 1024;
/// The most header fields.
pub(crate) const MAX_HEADERS: usize = 100;
/// The most bytes of header names and values.
pub(crate) const MAX_HEADER_BYTES: usize = 16 * 1024;

pub(crate) fn wrap<S: Next<Refusal>>(inner: S) -> impl Next<Refusal> {
    service_fn(move |request: Request| {
        let inner = inner.clone();
        async move {
            check(&request)?;
            inner.oneshot(request).await
        }
    })
}

fn check(request: &Request) -> Result<(), Refusal> {
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > MAX_URI) {
        return Err(Refusal::http(
            StatusCode::URI_TOO_LONG,
            "URI_TOO_LONG",
            format!("the path with its query is longer than {MAX_URI} bytes"),
        ));
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(Refusal::http(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "HEADERS_TOO_LARGE",
            format!("the headers are more than {MAX_HEADERS} or longer than {MAX_HEADER_BYTES} bytes"),
        ));
    }
    Ok(())
}
