//! Encryption at rest: AES-256-GCM under a key that lives in a file beside the data, or in the
//! configuration. Each sealed value is bound to what it belongs to, so that it cannot be moved.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};

const NONCE: usize = 12;

/// Seals and opens values. Clones share the key.
#[derive(Debug, Clone)]
pub struct Sealer(Arc<RandomizedNonceKey>);

impl Sealer {
    /// A sealer with this key of 32 bytes.
    pub fn new(key: &[u8]) -> anyhow::Result<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key)
            .map_err(|_| anyhow::anyhow!("the key at rest must have 32 bytes"))?;
        Ok(Self(Arc::new(key)))
    }

    /// A sealer with the key in `file` (base64); made, readable for its owner only, when it is not there.
    pub fn load_or_create(file: &Path) -> anyhow::Result<Self> {
        if !file.exists() {
            let key = STANDARD.encode(crate::opaque::random::<32>());
            crate::secret_file::create_once(file, &key)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let key = STANDARD
            .decode(text.trim())
            .with_context(|| format!("{} does not hold a base64 key", file.display()))?;
        Self::new(&key)
    }

    /// Encrypts `plain` for the owner named by `context`.
    pub fn seal(&self, context: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut sealed)
            .map_err(|_| anyhow::anyhow!("cannot encrypt"))?;
        let mut out = nonce.as_ref().to_vec();
        out.append(&mut sealed);
        Ok(out)
    }

    /// Decrypts what [`Self::seal`] made for the same `context`.
    pub fn open(&self, context: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        anyhow::ensure!(sealed.len() > NONCE, "not a sealed value");
        let (nonce, body) = sealed.split_at(NONCE);
        let nonce =
            Nonce::try_assume_unique_for_key(nonce).map_err(|_| anyhow::anyhow!("not a sealed value"))?;
        let mut body = body.to_vec();
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| anyhow::anyhow!("sealed with another key, or for something else"))?;
        Ok(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::Sealer;

    #[test]
    fn values_open_only_where_they_belong() {
        let folder = std::env::temp_dir().join(format!("tollgate-seal-{}", std::process::id()));
        let file = folder.join("at-rest.key");
        let sealer = Sealer::load_or_create(&file).unwrap();
        let sealed = sealer.seal("key:1", b"secret").unwrap();
        assert_eq!(Sealer::load_or_create(&file).unwrap().open("key:1", &sealed).unwrap(), b"secret");
        assert!(sealer.open("key:2", &sealed).is_err());
        assert!(Sealer::new(&[7; 32]).unwrap().open("key:1", &sealed).is_err());
        assert!(sealer.open("key:1", &[]).is_err() && Sealer::new(&[1]).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
