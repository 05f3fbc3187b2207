//! Whether a caller may make a call, before anything of it is read: the policy of the method decides.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::{Access, Contract, MethodPolicy};
use service_kit::{AuthContext, Error, Kind};

use crate::{
    Client, Edge, exchange,
    rate::{Caller, Standing},
    rescue::Refusal,
};

/// The header of gateways' tokens.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// The credentials that callers show, of which a method's service gets to see at most one.
pub(crate) const CREDENTIALS: [HeaderName; 2] = [header::AUTHORIZATION, API_KEY];

/// The credential that a method's service gets to see.
pub(crate) type Credential = Option<(HeaderName, HeaderValue)>;

/// Checks limits and credentials; returns the credential that travels on in place of what came, and whose it is.
pub(crate) async fn admit(
    edge: &Edge,
    policy: &MethodPolicy,
    client: &Client,
    headers: &HeaderMap,
) -> Result<(Credential, Option<AuthContext>), Refusal> {
    let live = edge.live.load();
    let (limits, class) = (&live.limits, live.switches.class(policy)?);
    let standing = limits.arrive(class, client.address).await?;
    let mut caller = None;
    let (credential, own) = match policy.access {
        Access::Public => (None, None),
        Access::User => {
            // Boxed: it is large, and most callers have an access token.
            let exchanged = match opaque(headers) {
                Some(text) => Box::pin(exchanged(edge, client, headers, text)).await?,
                None => None,
            };
            let headers = exchanged.as_ref().unwrap_or(headers);
            caller = service_kit::access::authenticate(policy, headers, &edge.verifier).await?;
            let own = match &caller {
                Some(caller) => limits.admit(class, &Caller::User(caller)).await?,
                None => None,
            };
            let credential = headers.get(header::AUTHORIZATION).cloned();
            (credential.map(|value| (header::AUTHORIZATION, value)), own)
        }
        Access::Gateway => {
            let key = api_key(headers)?;
            (Some((API_KEY, key.clone())), limits.admit(class, &Caller::Gateway(key)).await?)
        }
        Access::Unspecified | Access::Service => return Err(unknown_method().into()),
    };
    let counted = match (&caller, &credential) {
        (Some(caller), _) => Some(Caller::User(caller)),
        (None, Some((_, key))) if policy.access == Access::Gateway => Some(Caller::Gateway(key)),
        _ => None,
    };
    limits.note(client, class, counted.as_ref(), Standing::tighter(standing, own));
    client.marks().admitted();
    Ok((credential, caller))
}

/// The headers of a call by an opaque token, with an access token in its place.
async fn exchanged(
    edge: &Edge,
    client: &Client,
    headers: &HeaderMap,
    text: &str,
) -> Result<Option<HeaderMap>, Refusal> {
    let info = client.info(headers);
    let access = edge.exchange.access_token(text, &info, &edge.live.load().limits.credentials).await?;
    let Some(access) = access else { return Ok(None) };
    let mut value = HeaderValue::try_from(format!("Bearer {access}")).map_err(Error::internal)?;
    value.set_sensitive(true);
    Ok(Some(HeaderMap::from_iter([(header::AUTHORIZATION, value)])))
}

/// The opaque token that follows `Bearer` where that stands once; of anything else `authenticate` says what it is.
fn opaque(headers: &HeaderMap) -> Option<&str> {
    const BEARER: &[u8] = b"bearer ";
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(BEARER.len())?;
    // An access token is long: it is not read only to see that it is none.
    if !scheme.eq_ignore_ascii_case(BEARER) || !exchange::is_opaque(token.trim_ascii_start()) {
        return None;
    }
    Some(value.to_str().ok()?.get(BEARER.len()..)?.trim())
}

/// The policy of a method that callers from outside may know of.
pub(crate) fn known(path: &str) -> Option<&'static MethodPolicy> {
    let policy = Contract::get().method(path)?;
    (!matches!(policy.access, Access::Unspecified | Access::Service)).then_some(policy)
}

/// There is no such method, or none for callers from outside: both answer alike.
pub(crate) fn unknown_method() -> Error {
    Error::new(Kind::Unimplemented, "UNKNOWN_METHOD", "no such method")
}

/// A token must be there; gateway-service says whether it is good.
fn api_key(headers: &HeaderMap) -> Result<&HeaderValue, Error> {
    let mut keys = headers.get_all(API_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if !key.is_empty() => Ok(key),
        (Some(_), Some(_)) => Err(Error::unauthenticated("more than one `api-key` header")),
        _ => Err(Error::unauthenticated("a gateway's token is required in `api-key`")),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::opaque;

    fn found(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        opaque(&headers).map(str::to_owned)
    }

    #[test]
    fn opaque_tokens_are_told_from_all_else() {
        for value in ["Bearer tgpat_x", "bearer tgpat_x", "BEARER   tgpat_x  "] {
            assert_eq!(found(&[value]).as_deref(), Some("tgpat_x"), "{value}");
        }
        assert_eq!(found(&["Bearer tgsvc_"]).as_deref(), Some("tgsvc_"));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer eyJ.eyJ.x",
            "Bearer tgpat",
            "Bearer tggw_x",
            "Basic tgpat_x",
            "tgpat_x",
        ] {
            assert_eq!(found(&[value]), None, "{value}");
        }
        assert_eq!(found(&[]), None);
        assert_eq!(found(&["Bearer tgpat_x", "Bearer tgpat_x"]), None);
        assert_eq!(found(&["Bearer tgpat_é"]), None);
    }
}
