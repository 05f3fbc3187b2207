//! The key that signs heads of the audit log: P-256, in a file of its own, sealed under the key at rest.
//! It signs nothing else. Its public half lies beside the heads, so that a verifier elsewhere can keep it.

use std::{fmt, fs, path::Path};

use anyhow::Context as _;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Serialize};
use service_kit::{seal::Sealer, secret_file};

use crate::domain::keys::{public_half, thumbprint};

/// What the key is sealed for.
const CONTEXT: &str = "audit-key";

/// Signs heads.
pub(crate) struct AuditKey {
    pair: EcdsaKeyPair,
    public: PublicJwk,
}

/// The public half, as a JWK (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublicJwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    r#use: String,
    alg: String,
    /// The RFC 7638 thumbprint.
    pub(crate) kid: String,
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl AuditKey {
    /// The key in `file`; made, readable for its owner only, when it is not there.
    pub(crate) fn load_or_create(file: &Path, sealer: &Sealer) -> anyhow::Result<Self> {
        if !file.exists() {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| anyhow::anyhow!("cannot make a key"))?;
            let text = STANDARD.encode(sealer.seal(CONTEXT, pkcs8.as_ref())?);
            secret_file::create_once(file, &text)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        // Read also after it was made: another process may have been faster.
        Self::load(file, sealer)
    }

    /// The key in `file`.
    pub(crate) fn load(file: &Path, sealer: &Sealer) -> anyhow::Result<Self> {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        let sealed = STANDARD.decode(text.trim()).with_context(|| format!("{name} is not base64"))?;
        let pkcs8 = sealer.open(CONTEXT, &sealed).with_context(|| {
            format!("{name}: is keys.sealing_key_file the one that this key was made with?")
        })?;
        let half = public_half(&pkcs8)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .map_err(|error| anyhow::anyhow!("{name} is not a P-256 key: {error}"))?;
        Ok(Self { pair, public: PublicJwk::new(half.kid, half.x, half.y) })
    }

    /// An ES256 signature as base64url.
    pub(crate) fn sign(&self, text: &str) -> anyhow::Result<String> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), text.as_bytes())
            .map_err(|_| anyhow::anyhow!("cannot sign"))?;
        Ok(URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn public(&self) -> &PublicJwk {
        &self.public
    }
}

impl PublicJwk {
    fn new(kid: String, x: String, y: String) -> Self {
        let [kty, crv, r#use, alg] = ["EC", "P-256", "sig", "ES256"].map(str::to_owned);
        Self { kty, crv, x, y, r#use, alg, kid }
    }

    /// The key in `file`; refused unless it is one for ES256 under its own thumbprint.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        let key: Self = serde_json::from_str(&text).with_context(|| format!("{name} is not a JWK"))?;
        let ours = Self::new(thumbprint(&key.x, &key.y), key.x.clone(), key.y.clone());
        anyhow::ensure!(key == ours && key.point().is_some(), "{name} is not a key that signs heads");
        Ok(key)
    }

    /// Whether `signature` is this key's over `text`.
    pub(crate) fn verifies(&self, text: &str, signature: &str) -> bool {
        let (Some(point), Ok(signature)) = (self.point(), URL_SAFE_NO_PAD.decode(signature)) else {
            return false;
        };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(text.as_bytes(), &signature).is_ok()
    }

    /// The uncompressed point.
    fn point(&self) -> Option<Vec<u8>> {
        let (x, y) = (URL_SAFE_NO_PAD.decode(&self.x).ok()?, URL_SAFE_NO_PAD.decode(&self.y).ok()?);
        (x.len() == 32 && y.len() == 32).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use service_kit::seal::Sealer;

    use super::{AuditKey, PublicJwk};

    #[test]
    fn the_key_is_made_once_and_opens_with_its_sealer_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit-signing.key");
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let key = AuditKey::load_or_create(&file, &sealer).unwrap();
        assert_eq!(AuditKey::load_or_create(&file, &sealer).unwrap().public(), key.public());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let error = AuditKey::load(&file, &Sealer::new(&[8; 32]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("sealing_key_file"), "{error}");
        assert!(!format!("{key:?}").contains("pair"));
    }

    #[test]
    fn what_it_signs_verifies_with_its_public_half_only() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let [key, other] =
            ["a", "b"].map(|name| AuditKey::load_or_create(&folder.path().join(name), &sealer).unwrap());
        let signature = key.sign("text").unwrap();
        let file = folder.path().join("jwk");
        fs::write(&file, serde_json::to_string(key.public()).unwrap()).unwrap();
        let public = PublicJwk::read(&file).unwrap();
        assert!(public.verifies("text", &signature));
        assert!(!public.verifies("test", &signature) && !other.public().verifies("text", &signature));
        assert!(!public.verifies("text", "") && !public.verifies("text", &format!("{signature}A")));

        // A key under the name of another one.
        let forged = PublicJwk { kid: public.kid.clone(), ..other.public().clone() };
        fs::write(&file, serde_json::to_string(&forged).unwrap()).unwrap();
        assert!(PublicJwk::read(&file).is_err());
    }
}
