//! Bounds of what comes before a body: the URI and the headers. Bodies are bounded by method. A request that gives the
//! length of its body in two ways ends here too.

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::Request;
use crate::{Client, rescue::Refusal};

/// The longest path with its query, in bytes.
const MAX_URI: usize = 8 * 1024;
/// The most header fields.
pub(crate) const MAX_HEADERS: usize = 100;
/// The most bytes of header names and values.
pub(crate) const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Whether a request is small enough before its body, and says one length of that.
pub(crate) fn check_request(request: &Request) -> Result<(), Refusal> {
    one_length(request)?;
    check(request.uri(), request.headers())
}

fn one_length(request: &Request) -> Result<(), Refusal> {
    let client = request.extensions().get::<Client>();
    if request.headers().contains_key(header::TRANSFER_ENCODING)
        && client.is_some_and(|client| client.connection.was_ambiguous())
    {
        let both = "`Content-Length` and `Transfer-Encoding` in one request";
        return Err(Refusal::http(StatusCode::BAD_REQUEST, "AMBIGUOUS_LENGTH", both)
            .with_header(header::CONNECTION, const { HeaderValue::from_static("close") }));
    }
    Ok(())
}

/// Whether a path and headers are small enough.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_URI) {
        return Err(Refusal::http(
            StatusCode::URI_TOO_LONG,
            "URI_TOO_LONG",
            format!("the path with its query is longer than {MAX_URI} bytes"),
        ));
    }
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
