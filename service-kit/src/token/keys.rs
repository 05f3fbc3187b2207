//! The public keys that verify, as far as they are known here.

use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::DecodingKey;
use proto::auth::{Jwk, Jwks};

/// The known keys. A key that was dropped stays so, although an answer that was under way may still hold it.
#[derive(Default)]
pub(super) struct Keys(RwLock<Known>);

#[derive(Default)]
struct Known {
    keys: Vec<(String, Arc<DecodingKey>)>,
    dropped: Vec<String>,
}

impl Keys {
    /// The key of this name.
    pub(super) fn get(&self, kid: &str) -> Option<Arc<DecodingKey>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.keys.iter().find(|(name, _)| name == kid).map(|(_, key)| key.clone())
    }

    pub(super) fn holds(&self, kid: &str) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.keys.iter().any(|(name, _)| name == kid)
    }

    /// Takes over a key set that was fetched.
    pub(super) fn replace(&self, jwks: &Jwks) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let keys = jwks.keys.iter().filter(|key| !known.dropped.contains(&key.kid));
        known.keys = keys.filter_map(decoding_key).collect();
    }

    /// Drops the keys that are not good any more; says whether some of the good ones are not known.
    pub(super) fn keep(&self, good: &[String]) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut known.keys).into_iter().partition(|(name, _)| good.contains(name));
        known.keys = kept;
        known.dropped.extend(gone.into_iter().map(|(name, _)| name));
        known.dropped.retain(|name| !good.contains(name));
        good.iter().any(|kid| !known.keys.iter().any(|(name, _)| name == kid))
    }
}

/// `None` for a key that no access token is signed with.
fn decoding_key(jwk: &Jwk) -> Option<(String, Arc<DecodingKey>)> {
    let ours = (jwk.kty.as_str(), jwk.crv.as_str(), jwk.alg.as_str(), jwk.r#use.as_str());
    if ours != ("EC", "P-256", "ES256", "sig") {
        return None;
    }
    let key = DecodingKey::from_ec_components(&jwk.x, &jwk.y).ok()?;
    Some((jwk.kid.clone(), Arc::new(key)))
}
