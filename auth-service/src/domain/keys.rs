//! The keys that sign access tokens: ES256, named by their RFC 7638 thumbprint, kept in the database
//! encrypted under the key at rest. A private key never leaves this module.

use std::fmt;

use anyhow::Context as _;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use service_kit::{Clock, Error, Result, seal::Sealer, token::Claims};
use sha2::{Digest as _, Sha256};

use crate::store::keys::KeyStore;

/// A signing key as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct SealedKey {
    /// The thumbprint.
    pub(crate) kid: String,
    /// PKCS#8, encrypted for `signing-key:<kid>`.
    pub(crate) sealed: Vec<u8>,
    /// Whether it signs; the others only verify.
    pub(crate) active: bool,
    /// When it was made, in Unix milliseconds.
    pub(crate) created_at: i64,
}

/// The public half of a signing key: coordinates on P-256 as base64url.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// The RFC 7638 thumbprint of the other two.
    pub(crate) kid: String,
    pub(crate) x: String,
    pub(crate) y: String,
}

/// All keys of this service.
pub(crate) struct KeyRing {
    kid: String,
    signing: EncodingKey,
    public: Vec<PublicKey>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("kid", &self.kid)
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl KeyRing {
    /// The keys of the store. Without any, the first one is made; instances that start at once agree on it.
    pub(crate) async fn load(store: &dyn KeyStore, sealer: &Sealer, clock: &Clock) -> anyhow::Result<Self> {
        let mut stored = store.all().await?;
        if !stored.iter().any(|key| key.active) {
            store.add_first(&generate(sealer, clock.now_ms())?).await?;
            stored = store.all().await?;
        }
        let mut public = Vec::with_capacity(stored.len());
        let mut signing = None;
        for key in stored {
            let pkcs8 = sealer.open(&context(&key.kid), &key.sealed).with_context(|| {
                format!("signing key {}: is keys.sealing_key_file the one that it was made with?", key.kid)
            })?;
            public.push(public_half(&pkcs8)?);
            if key.active {
                signing = Some((key.kid, EncodingKey::from_ec_der(&pkcs8)));
            }
        }
        let (kid, signing) = signing.context("there is no active signing key")?;
        tracing::info!(kid, count = public.len(), "signing keys loaded");
        Ok(Self { kid, signing, public })
    }

    /// The keys that verify.
    pub(crate) fn public(&self) -> &[PublicKey] {
        &self.public
    }

    /// Signs an access token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(Error::internal)
    }
}

fn context(kid: &str) -> String {
    format!("signing-key:{kid}")
}

fn generate(sealer: &Sealer, now: i64) -> anyhow::Result<SealedKey> {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("cannot make a signing key"))?;
    let kid = public_half(pkcs8.as_ref())?.kid;
    Ok(SealedKey { sealed: sealer.seal(&context(&kid), pkcs8.as_ref())?, kid, active: true, created_at: now })
}

fn public_half(pkcs8: &[u8]) -> anyhow::Result<PublicKey> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
        .map_err(|error| anyhow::anyhow!("not a P-256 key: {error}"))?;
    // An uncompressed point: 4, then both coordinates.
    let point = pair.public_key().as_ref();
    anyhow::ensure!(point.len() == 65 && point[0] == 4, "not an uncompressed P-256 point");
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    Ok(PublicKey { kid: thumbprint(&x, &y), x, y })
}

/// RFC 7638: SHA-256 over the required members in lexicographic order, without spaces.
fn thumbprint(x: &str, y: &str) -> String {
    let json = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(json))
}

#[cfg(test)]
mod tests {
    use service_kit::seal::Sealer;

    use super::{context, generate, public_half, thumbprint};

    #[test]
    fn thumbprint_of_a_known_key() {
        // The P-256 key of RFC 7517, appendix A.1; its thumbprint was computed with another implementation.
        let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
        let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
        assert_eq!(thumbprint(x, y), "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s");
    }

    #[test]
    fn a_generated_key_opens_with_its_own_name_only() {
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let key = generate(&sealer, 1).unwrap();
        let pkcs8 = sealer.open(&context(&key.kid), &key.sealed).unwrap();
        assert_eq!(public_half(&pkcs8).unwrap().kid, key.kid);
        assert!(sealer.open(&context("other"), &key.sealed).is_err());
        assert!(!key.sealed.windows(8).any(|part| pkcs8.windows(8).any(|plain| plain == part)));
        assert!(public_half(b"garbage").is_err());
    }
}
