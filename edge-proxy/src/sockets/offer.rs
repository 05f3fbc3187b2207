//! What a client offers as subprotocols: the framing, and its token, because browsers send no headers of their
//! own with an upgrade.

use http::{HeaderMap, HeaderValue, header};
use service_kit::{Error, Kind};

use super::OF_UPGRADES;
use crate::{connect::Format, rescue::Refusal};

const JSON: &str = "connect.v1+json";
const PROTO: &str = "connect.v1+proto";
/// What stands before a token.
const BEARER: &str = "bearer.";

/// What a client offers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) format: Format,
    token: Option<String>,
}

impl Offer {
    /// Reads `Sec-WebSocket-Protocol`; the first framing that there is counts.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
        let offered = || lines.iter().flat_map(|line| line.split(',')).map(str::trim);
        let format = offered().find_map(|name| match name {
            JSON => Some(Format::Json),
            PROTO => Some(Format::Proto),
            _ => None,
        });
        let Some(format) = format else {
            let message = format!("the subprotocol must be `{JSON}` or `{PROTO}`");
            return Err(Error::new(Kind::InvalidArgument, "INVALID_PROTOCOL", message).into());
        };
        let token = offered().find_map(|name| name.strip_prefix(BEARER)).map(str::to_owned);
        Ok(Self { format, token })
    }

    /// The framing, as it is agreed on. The token is never repeated.
    pub(super) fn framing(&self) -> HeaderValue {
        HeaderValue::from_static(match self.format {
            Format::Json => JSON,
            Format::Proto => PROTO,
        })
    }

    /// Puts the token where all others bring it, and takes away what only the upgrade needed.
    pub(super) fn move_token(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        for name in OF_UPGRADES {
            headers.remove(name);
        }
        let Some(token) = &self.token else { return Ok(()) };
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(Error::internal)?;
        value.set_sensitive(true);
        // Beside another one it is one too many, and refused.
        headers.append(header::AUTHORIZATION, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header};

    use super::{Format, Offer};

    fn offered(lists: &[&str]) -> HeaderMap {
        lists.iter().map(|list| (header::SEC_WEBSOCKET_PROTOCOL, list.parse().unwrap())).collect()
    }

    #[test]
    fn the_framing_is_agreed_on_and_the_token_becomes_a_header() {
        let mut headers = offered(&["bearer.a.b-c_d, chat", "connect.v1+proto,connect.v1+json"]);
        let offer = Offer::read(&headers).unwrap();
        assert_eq!((offer.format, offer.framing().to_str().unwrap()), (Format::Proto, "connect.v1+proto"));
        offer.move_token(&mut headers).unwrap();
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[header::AUTHORIZATION], "Bearer a.b-c_d");
        assert!(headers[header::AUTHORIZATION].is_sensitive());
        let offer = Offer::read(&offered(&["connect.v1+json"])).unwrap();
        assert_eq!(offer, Offer { format: Format::Json, token: None });
    }

    #[test]
    fn a_framing_there_must_be() {
        for lists in [&[][..], &[""], &["bearer.x"], &["connect.v2+json, CONNECT.V1+JSON"]] {
            assert!(Offer::read(&offered(lists)).is_err(), "{lists:?}");
        }
    }
}
