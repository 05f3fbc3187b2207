//! The key itself. Its text is kept nowhere: the table has a hash of it, and the answer is sealed under a key that only
//! the text gives again.

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use http::{HeaderMap, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use super::HEADER;
use crate::{
    Kind,
    error::{Error, Result},
    seal::Sealer,
};

/// The longest key.
const MOST: usize = 255;

/// What HKDF is told, so that nothing else derives the same keys.
const SALT: &[u8] = b"tollgate: the answer to a call with an idempotency key";

/// A key as a client chose it: 1 to 255 printable characters of ASCII.
#[derive(Debug)]
pub(super) struct Key(SecretString);

impl Key {
    /// The key of a call, if it has one.
    ///
    /// # Errors
    /// When there are several, or one that cannot be read.
    pub(super) fn read(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut values = headers.get_all(&HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed("must be there once"));
        }
        let rule = "must be 1 to 255 printable characters of ASCII, such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\"; \
             without the quotes there is no space in it, and none of `\"`, `\\`, `,` and `;`";
        let key = parse(value).ok_or_else(|| malformed(rule))?;
        Ok(Some(Self(key.into())))
    }

    /// What is stored of it. Bound to whose it is: equal keys of two callers do not look alike.
    pub(super) fn hash(&self, principal: &str) -> Vec<u8> {
        let hash = Sha256::new_with_prefix(principal).chain_update([0]);
        hash.chain_update(self.0.expose_secret()).finalize().to_vec()
    }

    /// What seals the answer to a call with it.
    pub(super) fn sealer(&self, principal: &str, method: &str) -> Result<Sealer> {
        let root = Salt::new(HKDF_SHA256, SALT).extract(self.0.expose_secret().as_bytes());
        let mut key = [0; 32];
        let info = [principal.as_bytes(), &[0], method.as_bytes()];
        let derived = root.expand(&info, HKDF_SHA256).and_then(|derived| derived.fill(&mut key));
        derived.map_err(|_| Error::internal(anyhow::anyhow!("cannot derive a key")))?;
        Sealer::new(&key).map_err(Error::internal)
    }
}

fn malformed(rule: &str) -> Error {
    let message = format!("`Idempotency-Key` {rule}");
    Error::new(Kind::InvalidArgument, "INVALID_IDEMPOTENCY_KEY", message).naming("Idempotency-Key", rule)
}

/// A string of RFC 8941 without parameters, or its text alone, as most clients send it. What a list would be made of
/// is not taken for such a text: somebody may have joined two keys.
fn parse(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            text.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\,;".contains(&b)).then(|| text.to_owned())?
        }
    };
    (1..=MOST).contains(&key.len()).then_some(key)
}

/// What is before the closing quote, which must be the end.
fn unquote(quoted: &str) -> Option<String> {
    let mut key = String::with_capacity(quoted.len());
    let mut letters = quoted.chars();
    loop {
        match letters.next()? {
            '"' => return letters.next().is_none().then_some(key),
            '\\' => key.push(letters.next().filter(|escaped| ['"', '\\'].contains(escaped))?),
            letter if letter == ' ' || letter.is_ascii_graphic() => key.push(letter),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::{HEADER, Key, parse};
    use crate::Kind;

    fn key(text: &str) -> Key {
        Key(text.to_owned().into())
    }

    #[test]
    fn a_key_is_a_string_with_or_without_quotes() {
        let read = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok().as_ref().and_then(parse);
        for (text, expected) in [
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            ("\"8e03978e\"", "8e03978e"),
            ("\"a b, c; \\\"d\\\\\"", "a b, c; \"d\\"),
            (" \t a+/=_.~:x \t", "a+/=_.~:x"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for bad in [
            "",
            " ",
            "\"\"",
            "\"",
            "\"a",
            "\"a\"b",
            "\"a\";p=1",
            "\"a\\b\"",
            "a b",
            "a,b",
            "a;b",
            "a\"",
            "ü",
            "\"ü\"",
            "\"a\tb\"",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let (most, more) = ("k".repeat(255), "k".repeat(256));
        assert_eq!(read(&most).as_ref(), Some(&most));
        assert_eq!(read(&format!("\"{most}\"")), Some(most));
        assert_eq!((read(&more), read(&format!("\"{more}\""))), (None, None));
    }

    #[test]
    fn several_keys_are_none() {
        let mut headers = HeaderMap::new();
        assert!(Key::read(&headers).unwrap().is_none());
        headers.append(&HEADER, HeaderValue::from_static("a"));
        assert_eq!(Key::read(&headers).unwrap().unwrap().0.expose_secret(), "a");
        headers.append(&HEADER, HeaderValue::from_static("a"));
        let error = Key::read(&headers).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::InvalidArgument, "INVALID_IDEMPOTENCY_KEY"));
        assert_eq!(error.violations()[0].field, "Idempotency-Key");
    }

    #[test]
    fn only_the_same_key_of_the_same_caller_for_the_same_method_opens() {
        let sealed = key("k").sealer("u", "/m").unwrap().seal("c", b"secret").unwrap();
        let open =
            |key: &Key, principal, method| key.sealer(principal, method).unwrap().open("c", &sealed).ok();
        assert_eq!(open(&key("k"), "u", "/m").as_deref(), Some(&b"secret"[..]));
        for (key, principal, method) in [(key("K"), "u", "/m"), (key("k"), "v", "/m"), (key("k"), "u", "/n")]
        {
            assert_eq!(open(&key, principal, method), None);
        }
        assert_ne!(key("k").hash("u"), key("k").hash("v"));
        assert_eq!(key("k").hash("u"), key("k").hash("u"));
        assert!(!format!("{:?}", key("hunter2")).contains("hunter2"));
    }

    proptest! {
        /// Every printable text can be a key, in quotes.
        #[test]
        fn quoting_loses_nothing(text in "[ -~]{1,255}") {
            let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(parse(&HeaderValue::try_from(quoted).unwrap()), Some(text));
        }

        /// Whatever comes, it is read or refused.
        #[test]
        fn nothing_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                prop_assert!(parse(&value).is_none_or(|key| (1..=255).contains(&key.len())));
            }
        }
    }
}
