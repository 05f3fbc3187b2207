//! Whether a caller may make a call, before anything of it is read: the policy of the method decides.

use http::{HeaderMap, HeaderName, header};
use proto::{Access, MethodPolicy, policy::RateClass};
use service_kit::{Error, Kind, Result};

use crate::{Client, Edge};

/// The header of gateways' tokens.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Checks limits and credentials.
pub(crate) async fn admit(
    edge: &Edge,
    policy: &MethodPolicy,
    client: Option<&Client>,
    headers: &HeaderMap,
) -> Result<()> {
    if policy.rate_class == RateClass::Credential {
        let client = client.ok_or_else(|| Error::internal(anyhow::anyhow!("a request without a peer")))?;
        edge.credentials.check(client.addr.ip())?;
    }
    match policy.access {
        Access::Public => Ok(()),
        Access::User => {
            service_kit::access::authenticate(policy, headers, &edge.verifier).await?;
            Ok(())
        }
        Access::Gateway => has_api_key(headers),
        Access::Unspecified | Access::Service => Err(unknown_method()),
    }
}

/// There is no such method, or none for callers from outside: both answer alike.
pub(crate) fn unknown_method() -> Error {
    Error::new(Kind::Unimplemented, "UNKNOWN_METHOD", "no such method")
}

/// A token must be there; gateway-service says whether it is good.
fn has_api_key(headers: &HeaderMap) -> Result<()> {
    let mut keys = headers.get_all(API_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if !key.is_empty() => Ok(()),
        (Some(_), Some(_)) => Err(Error::unauthenticated("more than one `api-key` header")),
        _ => Err(Error::unauthenticated("a gateway's token is required in `api-key`")),
    }
}

/// The credential that a method's service gets to see, and no other.
pub(crate) fn credential(policy: &MethodPolicy) -> Option<HeaderName> {
    match policy.access {
        Access::User => Some(header::AUTHORIZATION),
        Access::Gateway => Some(API_KEY),
        Access::Public | Access::Service | Access::Unspecified => None,
    }
}
