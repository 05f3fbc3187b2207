//! Opaque tokens: `tg<kind>_<id22>_<secret43><crc6>`, base62, checked by CRC-32 before any database is
//! asked. Stored as id, salt and SHA-256 of salt and secret; shown once.

use rand::{TryRng as _, rngs::SysRng};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID: usize = 22;
const SECRET: usize = 43;
const CRC: usize = 6;

/// A token as it was presented: its checksum holds, its secret is not yet checked.
#[derive(Clone)]
pub struct Presented {
    /// The id, by which the stored half is found.
    pub id: [u8; 16],
    secret: [u8; 32],
}

/// What is stored of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The id in the token's text form (22 characters).
    pub lookup: String,
    /// 16 random bytes.
    pub salt: Vec<u8>,
    /// SHA-256 of salt and secret.
    pub hash: Vec<u8>,
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presented").field("lookup", &self.lookup()).finish_non_exhaustive()
    }
}

/// Random bytes of the operating system.
///
/// # Panics
/// When the operating system has no randomness: nothing can be done safely then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Makes a token of `kind` (`gw`, `pat`, `svc`): its text for the owner, its hash for the store.
pub fn issue(kind: &str) -> (SecretString, Stored) {
    let (id, secret, salt) = (random::<16>(), random::<32>(), random::<16>());
    let stored = Stored { lookup: base62(&id, ID), salt: salt.to_vec(), hash: hash(&salt, &secret) };
    (SecretString::from(format(kind, &id, &secret)), stored)
}

/// Reads a token of `kind`. `None` when its form or its checksum is wrong.
pub fn parse(kind: &str, text: &str) -> Option<Presented> {
    let rest = text.strip_prefix("tg")?.strip_prefix(kind)?.strip_prefix('_')?;
    if rest.len() != ID + 1 + SECRET + CRC || !rest.is_ascii() || rest.as_bytes()[ID] != b'_' {
        return None;
    }
    let (body, crc) = text.split_at(text.len() - CRC);
    if checksum(body) != crc {
        return None;
    }
    Some(Presented { id: unbase62(&rest[..ID])?, secret: unbase62(&rest[ID + 1..ID + 1 + SECRET])? })
}

impl Presented {
    /// The id as the store keeps it.
    pub fn lookup(&self) -> String {
        base62(&self.id, ID)
    }

    /// Whether the secret is the stored one, in constant time.
    pub fn matches(&self, salt: &[u8], hash_: &[u8]) -> bool {
        hash(salt, &self.secret).ct_eq(hash_).into()
    }

    /// Does the work of [`Self::matches`] without a stored token, so that a miss takes as long as a hit.
    pub fn matches_nothing(&self) -> bool {
        let _ = self.matches(&[0; 16], &[0; 32]);
        false
    }
}

fn format(kind: &str, id: &[u8; 16], secret: &[u8; 32]) -> String {
    let body = format!("tg{kind}_{}_{}", base62(id, ID), base62(secret, SECRET));
    let crc = checksum(&body);
    body + &crc
}

fn hash(salt: &[u8], secret: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update(salt).chain_update(secret).finalize().to_vec()
}

fn checksum(body: &str) -> String {
    base62(&crc32fast::hash(body.as_bytes()).to_be_bytes(), CRC)
}

/// Big-endian bytes as base62, left-padded with `0` to `width`.
fn base62(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(0);
            rest = value % 62;
        }
        *digit = ALPHABET[rest as usize];
    }
    digits.into_iter().map(char::from).collect()
}

/// The reverse; `None` for a foreign character or a number that does not fit.
fn unbase62<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut number = [0_u8; N];
    for digit in text.bytes() {
        let mut carry = u32::try_from(ALPHABET.iter().position(|c| *c == digit)?).ok()?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 62 + carry;
            *byte = u8::try_from(value & 0xff).unwrap_or(0);
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::{checksum, format, hash, issue, parse};
    use crate::testing::properties::opaque_token;

    /// Text with a checksum that holds, whatever stands before it.
    fn checked(body: String) -> String {
        let crc = checksum(&body);
        body + &crc
    }

    proptest! {
        #[test]
        fn anything_can_be_presented(text in "\\PC{0,90}") {
            opaque_token(&text);
            opaque_token(&checked(text));
        }

        #[test]
        fn what_has_the_form_has_one_text(text in "tg(gw|pat|svc)_[0-9A-Za-z]{22}_[0-9A-Za-z]{43}") {
            opaque_token(&checked(text));
        }

        #[test]
        fn issued_tokens_are_read_back(kind in "gw|pat|svc", id: [u8; 16], secret: [u8; 32], salt: [u8; 16]) {
            let token = format(&kind, &id, &secret);
            opaque_token(&token);
            let presented = parse(&kind, &token).unwrap();
            prop_assert_eq!(presented.id, id);
            prop_assert!(presented.matches(&salt, &hash(&salt, &secret)));
        }
    }

    #[test]
    fn known_answers() {
        let id: [u8; 16] = std::array::from_fn(|i| i as u8);
        let secret: [u8; 32] = std::array::from_fn(|i| i as u8);
        let token = format("gw", &id, &secret);
        // All of it computed with another implementation.
        assert_eq!(token, "tggw_000SYW7RiJxkEgOGusQGwp_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf06eYCU");
        let zeros = "tggw_0000000000000000000000_00000000000000000000000000000000000000000001WYxmu";
        assert_eq!(format("gw", &[0; 16], &[0; 32]), zeros);
        assert_eq!(parse("gw", &token).unwrap().id, id);
        let hex: String = hash(&id, &secret).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "95e66ce408bcb45134e08d159c51e1f4f3432cba4204228e3473e5648bb4408e");
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let (token, stored) = issue("gw");
        let token = token.expose_secret();
        let presented = parse("gw", token).unwrap();
        assert_eq!(presented.lookup(), stored.lookup);
        assert!(presented.matches(&stored.salt, &stored.hash));
        assert!(!parse("gw", issue("gw").0.expose_secret()).unwrap().matches(&stored.salt, &stored.hash));
        for at in 0..token.len() {
            let mut changed = token.to_owned().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            assert!(parse("gw", std::str::from_utf8(&changed).unwrap()).is_none(), "at {at}");
        }
        assert!(
            parse("pat", token).is_none() && parse("gw", "").is_none() && parse("gw", &token[1..]).is_none()
        );
    }
}
