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
        let device: String = self.device.chars().filter(char::is_ascii).collect();
        for (name, text) in
            [(ADDRESS, self.address_text()), (DEVICE, device), (REQUEST, self.request_id.clone())]
        {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
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
