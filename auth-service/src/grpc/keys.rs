//! The public keys, for others over gRPC and for this service's own verifier.

use proto::auth::{Jwk, Jwks};
use service_kit::{Result, token::KeySource};
use tonic::async_trait;

use crate::domain::keys::{KeyRing, PublicKey};

pub(super) fn jwks(keys: &KeyRing) -> Jwks {
    Jwks { keys: keys.public().iter().map(encode).collect() }
}

#[async_trait]
impl KeySource for KeyRing {
    async fn jwks(&self) -> Result<Jwks> {
        Ok(jwks(self))
    }
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
