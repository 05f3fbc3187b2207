//! What is exported of the audit log: the heads of its chains, each a line of JSON that says where the
//! chain stood, names the hash of the line before it, and is signed.
//!
//! The signature (ES256, base64url) covers the bytes of the line without its last member, that is from
//! `{` to the end of `kid`, with `}` behind it.

use proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::key::{AuditKey, PublicJwk};
use crate::{
    domain::audit::{GENESIS, hex},
    store::audit_log::Head,
};

/// What stands between what is signed and the signature.
const SIGNATURE: &str = ",\"signature\":\"";

/// What a line states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Statement {
    pub(crate) chain: String,
    pub(crate) sequence: i64,
    /// Of the last event, in hexadecimal digits.
    pub(crate) hash: String,
    /// When it was exported: RFC 3339.
    at: String,
    /// SHA-256 of the line before this one, in hexadecimal digits; zeros in the first of all.
    previous: String,
    /// Of the key that signs.
    kid: String,
}

/// The `previous` of the first line.
pub(crate) fn beginning() -> String {
    hex(&GENESIS)
}

/// The `previous` of what comes after a line.
pub(crate) fn hash_of(line: &[u8]) -> String {
    hex(&Sha256::digest(line))
}

/// A signed line, without its end.
pub(crate) fn line(head: &Head, at_ms: i64, previous: String, key: &AuditKey) -> anyhow::Result<String> {
    let statement = Statement {
        chain: head.chain.clone(),
        sequence: head.sequence,
        hash: hex(&head.hash),
        at: rfc3339(at_ms),
        previous,
        kid: key.public().kid.clone(),
    };
    let text = serde_json::to_string(&statement)?;
    let signature = key.sign(&text)?;
    Ok(format!("{}{SIGNATURE}{signature}\"}}", text.trim_end_matches('}')))
}

/// Reads a line that must follow `previous` and be signed by one of `keys`; otherwise says what is wrong
/// with it.
pub(crate) fn read(line: &str, previous: &str, keys: &[PublicJwk]) -> Result<Statement, &'static str> {
    let (text, signature) = line.rsplit_once(SIGNATURE).ok_or("it is no signed head")?;
    let signature = signature.strip_suffix("\"}").ok_or("it is no signed head")?;
    let text = format!("{text}}}");
    let statement: Statement = serde_json::from_str(&text).map_err(|_| "it is no signed head")?;
    let key = keys.iter().find(|key| key.kid == statement.kid).ok_or("it is signed by a foreign key")?;
    if !key.verifies(&text, signature) {
        return Err("its signature is wrong");
    }
    if statement.previous != previous {
        return Err("it does not follow the line before it: lines were removed, added or exchanged");
    }
    Ok(statement)
}

/// A time as lines and the names of files have it.
pub(crate) fn rfc3339(unix_ms: i64) -> String {
    Timestamp::from_unix_ms(unix_ms).to_rfc3339().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use service_kit::seal::Sealer;

    use super::{AuditKey, Head, beginning, hash_of, line, read};

    fn head(chain: &str, sequence: i64) -> Head {
        Head { chain: chain.to_owned(), sequence, hash: vec![0xab; 32], exported: 0 }
    }

    fn key() -> AuditKey {
        let folder = tempfile::tempdir().unwrap();
        AuditKey::load_or_create(&folder.path().join("key"), &Sealer::new(&[7; 32]).unwrap()).unwrap()
    }

    #[test]
    fn a_line_has_the_members_that_are_promised() {
        let key = key();
        let line = line(&head("user:1", 7), 1_766_000_000_000, beginning(), &key).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["chain"], "user:1");
        assert_eq!((&value["sequence"], &value["hash"]), (&7.into(), &"ab".repeat(32).into()));
        assert_eq!(value["at"], "2025-12-17T19:33:20.000Z");
        assert_eq!(value["previous"], "0".repeat(64));
        assert_eq!(value["kid"], key.public().kid.as_str());
        assert_eq!(value["signature"].as_str().unwrap().len(), 86);
        assert_eq!(value.as_object().unwrap().len(), 7);
    }

    #[test]
    fn lines_are_believed_in_their_order_and_by_their_key_only() {
        let (ours, theirs) = (key(), key());
        let keys = [ours.public().clone()];
        let first = line(&head("user:1", 7), 1, beginning(), &ours).unwrap();
        let second = line(&head("user:2", 3), 1, hash_of(first.as_bytes()), &ours).unwrap();
        assert_eq!(read(&first, &beginning(), &keys).unwrap().sequence, 7);
        assert_eq!(read(&second, &hash_of(first.as_bytes()), &keys).unwrap().chain, "user:2");
        assert!(read(&second, &beginning(), &keys).unwrap_err().contains("follow"));
        let forged = line(&head("user:1", 7), 1, beginning(), &theirs).unwrap();
        assert!(read(&forged, &beginning(), &keys).unwrap_err().contains("foreign"));
        let renamed = forged.replace(&theirs.public().kid, &ours.public().kid);
        assert!(read(&renamed, &beginning(), &keys).unwrap_err().contains("signature"));
    }

    proptest! {
        #[test]
        fn no_byte_of_a_line_can_be_changed(at in 0_usize..400, by in 1_u8..=255) {
            let key = key();
            let line = line(&head("user:1", 7), 1, beginning(), &key).unwrap();
            let mut bytes = line.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= by;
            if let Ok(changed) = String::from_utf8(bytes) {
                prop_assert!(read(&changed, &beginning(), &[key.public().clone()]).is_err(), "{changed}");
            }
        }

        #[test]
        fn anything_can_be_read(text in ".{0,200}") {
            prop_assert!(read(&text, &beginning(), &[]).is_err());
        }
    }
}
