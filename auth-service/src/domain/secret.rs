//! Secrets that somebody holds and we do not: 32 random bytes as base64url, of which only the SHA-256 is
//! ever stored. Refresh tokens, mailed links, challenges, device tokens and codes are made of them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::opaque::random;
use sha2::{Digest as _, Sha256};

/// What is stored of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenHash(pub(crate) [u8; 32]);

impl TokenHash {
    /// 64 hexadecimal digits.
    pub(crate) fn hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A new token: its text for the owner, its hash for the store.
pub(crate) fn issue() -> (SecretString, TokenHash) {
    let secret = random::<32>();
    (SecretString::from(URL_SAFE_NO_PAD.encode(secret)), TokenHash(Sha256::digest(secret).into()))
}

/// The hash of a presented token; `None` when it has not the form of one.
pub(crate) fn hash(text: &SecretString) -> Option<TokenHash> {
    let text = text.expose_secret();
    if text.len() != 43 {
        return None;
    }
    let secret: [u8; 32] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    Some(TokenHash(Sha256::digest(secret).into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::{ExposeSecret as _, SecretString};

    use super::{hash, issue};

    #[test]
    fn a_token_is_known_by_its_hash() {
        let (token, stored) = issue();
        assert_eq!(hash(&token), Some(stored));
        assert_ne!(hash(&issue().0), Some(stored));
        for form in ["", "x", &format!("{}=", token.expose_secret()), &"+".repeat(43)] {
            assert_eq!(hash(&SecretString::from(form)), None, "{form}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_presented(text in "\\PC{0,60}") {
            let _ = hash(&SecretString::from(text));
        }
    }
}
