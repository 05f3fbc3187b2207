//! The public keys.

use crate::domain::keys::{KeyRing, PublicKey};
use proto::auth::{Jwk, Jwks};

pub(super) fn jwks(keys: &KeyRing) -> Jwks {
    Jwks { keys: keys.public().iter().map(encode).collect() }
}

fn encode(key: &PublicKey) -> Jwk {
    Jwk {
        kty: "EC".to_owned(),
        crv: "P-256".to_owned(),
        x: key.x.clone(),
        y: key.y.clone(),
        r#use: "sig".to_owned(),
        alg: "ES256".to_owned(),
        kid: key.kid.clone(),
    }
}
