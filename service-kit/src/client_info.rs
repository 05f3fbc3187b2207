//! What the edge tells services about the client of a call: for sessions, limits and the audit log.
//!
//! Only the edge is believed, by its certificate, and it drops such headers of its own callers.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Every header of this module starts so; the edge lets none in.
pub const PREFIX: &str = "tollgate-client-";

/// The way by which a gateway came to the edge, when it is not the one that the edge passes on: `websocket`.
pub const TRANSPORT: HeaderName = HeaderName::from_static("tollgate-client-transport");

const ADDRESS: HeaderName = HeaderName::from_static("tollgate-client-address");
const DEVICE: HeaderName = HeaderName::from_static("tollgate-client-device");
const REQUEST: HeaderName = HeaderName::from_static("tollgate-client-request");

/// The forms that the client of a call takes (its `Accept`), where the method has several.
pub const ACCEPT: HeaderName = HeaderName::from_static("tollgate-client-accept");

/// The longest device text, in characters.
const MAX_DEVICE: usize = 256;

/// The client of a call, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientInfo {
    /// Its address.
    pub address: Option<IpAddr>,
    /// What it called itself (`User-Agent`): printable, at most 256 characters; often empty.
    pub device: String,
    /// The id of its request at the edge.
    pub request_id: String,
}

impl ClientInfo {
    /// The client of a gRPC call.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// The address as text; empty when it is not known.
    pub fn address_text(&self) -> String {
        self.address.map(|address| address.to_canonical().to_string()).unwrap_or_default()
    }

    /// Writes the headers of a call to a service.
    pub fn write(&self, headers: &mut HeaderMap) {
        let value = |text: &str| HeaderValue::from_str(text).ok();
        if let Some(address) = self.address {
            headers.insert(ADDRESS, address_text(address));
        }
        // What is not ASCII is no text to a header, and yet a value.
        let device = HeaderValue::from_bytes(self.device.as_bytes()).ok();
        describe(headers, device, value(&self.request_id));
    }

    /// Reads the headers of a call of the edge.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let text =
            |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let printable = |text: &str, most| text.chars().filter(|c| !c.is_control()).take(most).collect();
        Self {
            address: text(&ADDRESS).parse().ok(),
            device: printable(text(&DEVICE), MAX_DEVICE),
            request_id: printable(text(&REQUEST), 64),
        }
    }
}

/// An address as the header has it.
pub fn address_text(address: IpAddr) -> HeaderValue {
    let text = address.to_canonical().to_string();
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Writes the headers of a call to a service: from the client's `User-Agent` as it came, and without a copy where
/// that is text of a sensible length, as nearly always.
pub fn write(
    headers: &mut HeaderMap,
    address: HeaderValue,
    device: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
) {
    headers.insert(ADDRESS, address);
    describe(headers, device, request_id);
}

fn describe(headers: &mut HeaderMap, device: Option<HeaderValue>, request_id: Option<HeaderValue>) {
    let is_plain = |value: &HeaderValue| value.len() <= MAX_DEVICE && value.to_str().is_ok();
    let device = match device {
        Some(device) if is_plain(&device) => Some(device),
        Some(device) => plain(&device),
        None => Some(HeaderValue::from_static("")),
    };
    for (name, value) in [(DEVICE, device), (REQUEST, request_id)] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// The ASCII in it, as far as it is not too long.
fn plain(device: &HeaderValue) -> Option<HeaderValue> {
    let text = String::from_utf8_lossy(device.as_bytes());
    let ascii: String = text.chars().take(MAX_DEVICE).filter(|c| c.is_ascii() && !c.is_control()).collect();
    HeaderValue::try_from(ascii).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{ClientInfo, PREFIX};

    #[test]
    fn what_is_written_is_read() {
        let client = ClientInfo {
            address: "2001:db8::7".parse().ok(),
            device: "curl/8 (x)".to_owned(),
            request_id: "01a1".to_owned(),
        };
        let mut headers = HeaderMap::new();
        client.write(&mut headers);
        assert!(headers.keys().all(|name| name.as_str().starts_with(PREFIX)) && headers.len() == 3);
        assert_eq!(ClientInfo::read(&headers), client);
    }

    #[test]
    fn strange_devices_do_no_harm() {
        let client =
            ClientInfo { device: format!("a\r\nb\u{7f}é{}", "x".repeat(1_000)), ..ClientInfo::default() };
        let mut headers = HeaderMap::new();
        client.write(&mut headers);
        let read = ClientInfo::read(&headers);
        assert!(read.device.chars().count() <= 256 && !read.device.contains(char::is_control), "{read:?}");
        assert_eq!(ClientInfo::read(&HeaderMap::new()), ClientInfo::default());
    }
}
