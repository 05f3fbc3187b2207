//! What a signing key consists of: a P-256 pair, its sealed form, its public half and its name.

use std::fmt;

use anyhow::Context as _;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use service_kit::{Error, Result, seal::Sealer, token::Claims};
use sha2::{Digest as _, Sha256};

use super::PublicKey;

/// A key pair that is ready for use.
pub(super) struct Pair {
    pub(super) public: PublicKey,
    signing: EncodingKey,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Pair {
    /// Opens a sealed pair.
    pub(super) fn open(sealer: &Sealer, kid: &str, sealed: &[u8]) -> anyhow::Result<Self> {
        let pkcs8 = sealer.open(&context(kid), sealed).with_context(|| {
            format!("signing key {kid}: is keys.sealing_key_file the one that it was made with?")
        })?;
        let public = public_half(&pkcs8)?;
        anyhow::ensure!(public.kid == kid, "signing key {kid} is named {}", public.kid);
        Ok(Self { public, signing: EncodingKey::from_ec_der(&pkcs8) })
    }

    /// Signs an access token.
    #[allow(clippy::disallowed_methods, reason = "this is where access tokens are signed")]
    pub(super) fn sign(&self, claims: &Claims) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some(self.public.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(Error::internal)
    }
}

/// A new pair: its name and its sealed form.
pub(super) fn generate(sealer: &Sealer) -> anyhow::Result<(String, Vec<u8>)> {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("cannot make a signing key"))?;
    let kid = public_half(pkcs8.as_ref())?.kid;
    let sealed = sealer.seal(&context(&kid), pkcs8.as_ref())?;
    Ok((kid, sealed))
}

fn context(kid: &str) -> String {
    format!("signing-key:{kid}")
}

pub(in crate::domain) fn public_half(pkcs8: &[u8]) -> anyhow::Result<PublicKey> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
        .map_err(|error| anyhow::anyhow!("not a P-256 key: {error}"))?;
    // An uncompressed point: 4, then both coordinates.
    let point = pair.public_key().as_ref();
    anyhow::ensure!(point.len() == 65 && point[0] == 4, "not an uncompressed P-256 point");
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    Ok(PublicKey { kid: thumbprint(&x, &y), x, y })
}

/// RFC 7638: SHA-256 over the required members in lexicographic order, without spaces.
pub(in crate::domain) fn thumbprint(x: &str, y: &str) -> String {
    let json = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(json))
}

#[cfg(test)]
mod tests {
    use service_kit::seal::Sealer;

    use super::{Pair, context, generate, public_half, thumbprint};

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
        let (kid, sealed) = generate(&sealer).unwrap();
        let pkcs8 = sealer.open(&context(&kid), &sealed).unwrap();
        assert_eq!(Pair::open(&sealer, &kid, &sealed).unwrap().public.kid, kid);
        assert!(Pair::open(&sealer, "other", &sealed).is_err());
        assert!(!sealed.windows(8).any(|part| pkcs8.windows(8).any(|plain| plain == part)));
        assert!(public_half(b"garbage").is_err());
    }
}
