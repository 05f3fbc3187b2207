//! Recovery codes: ten, each good once in place of a second factor, hashed like passwords because people
//! must be able to type them.

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, opaque::random};

use super::{Added, Factors, RecoveryCode};
use crate::domain::{
    audit::Action,
    hashing::{Place, Verdict},
    password::Password,
};

/// How many there are in a set.
const CODES: usize = 10;
/// Characters of a code: 50 bits.
const LENGTH: usize = 10;
/// No I, O, 0 and 1: 32 characters that are hard to confuse.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// A set of new codes: what is shown once, and what is stored.
#[derive(Debug)]
pub(super) struct NewCodes {
    shown: Vec<SecretString>,
    pub(super) stored: Vec<RecoveryCode>,
}

impl NewCodes {
    /// What the owner gets to see, when they were stored.
    pub(super) fn shown_if(self, added: Added) -> Vec<SecretString> {
        if added == Added::First { self.shown } else { Vec::new() }
    }
}

impl Factors {
    /// Replaces all recovery codes. FAILED_PRECONDITION (`NO_SECOND_FACTOR`) when there is nothing that they
    /// could stand in for.
    pub(crate) async fn renew_recovery_codes(
        &self,
        caller: &AuthContext,
        client: &ClientInfo,
    ) -> Result<Vec<SecretString>> {
        let store = &self.shared.stores.second_factors;
        let none =
            || Error::new(Kind::FailedPrecondition, "NO_SECOND_FACTOR", "set up a second factor first");
        // Asked first because ten hashes are dear; the store decides.
        let setup = store.setup(caller.user_id()).await?;
        if !setup.totp && setup.passkeys.is_empty() {
            return Err(none());
        }
        let what = "New recovery codes were made for your Tollgate account. The earlier ones are void.";
        let notice = self.notice(caller, Action::RecoveryCodesRenew, what, client).await?;
        let codes = self.new_codes().await?;
        if !store.renew_recovery_codes(caller.user_id(), &codes.stored, &notice).await? {
            return Err(none());
        }
        self.shared.mail_nudge.now();
        tracing::info!(user_id = caller.user_id(), "recovery codes renewed");
        Ok(codes.shown)
    }

    /// No codes yet: they are dear, and only a first factor needs them.
    pub(super) fn no_codes(&self) -> NewCodes {
        NewCodes { shown: Vec::new(), stored: Vec::new() }
    }

    /// A new set, hashed one after the other in one place of the queue.
    pub(super) async fn new_codes(&self) -> Result<NewCodes> {
        let place = self.shared.hasher.place()?;
        let mut codes = self.no_codes();
        for _ in 0..CODES {
            let code = random_code();
            let hash = self.shared.hasher.hash(&place, &Password::of_code(&code)).await?;
            codes.stored.push(RecoveryCode { id: self.shared.ids.next(), hash });
            codes.shown.push(grouped(&code));
        }
        Ok(codes)
    }

    /// The id of the unused code that this is. What has not the form of one costs no hash.
    pub(super) async fn right_code(
        &self,
        place: &Place,
        user_id: &str,
        text: &SecretString,
    ) -> Result<Option<String>> {
        let Some(code) = normalise(text) else { return Ok(None) };
        let code = Password::of_code(&code);
        for stored in self.shared.stores.second_factors.recovery_codes(user_id).await? {
            if self.shared.hasher.verify(place, &code, Some(&stored.hash)).await? != Verdict::Wrong {
                return Ok(Some(stored.id));
            }
        }
        Ok(None)
    }
}

fn random_code() -> SecretString {
    // 32 divides 256: every character is as likely.
    let code: String =
        random::<LENGTH>().iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    code.into()
}

/// The code as it is shown: two groups of five.
fn grouped(code: &SecretString) -> SecretString {
    let (first, second) = code.expose_secret().split_at(LENGTH / 2);
    format!("{first}-{second}").into()
}

/// A code as somebody types it, without hyphens and spaces, in upper case; nothing when it is none.
fn normalise(text: &SecretString) -> Option<SecretString> {
    let mut code = String::with_capacity(LENGTH);
    for c in text.expose_secret().chars().filter(|c| !matches!(c, '-' | ' ')) {
        let c = c.to_ascii_uppercase();
        if code.len() == LENGTH || !c.is_ascii() || !ALPHABET.contains(&(c as u8)) {
            return None;
        }
        code.push(c);
    }
    (code.len() == LENGTH).then(|| code.into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use secrecy::{ExposeSecret as _, SecretString};

    use super::{ALPHABET, LENGTH, grouped, normalise, random_code};

    fn normal(text: &str) -> Option<String> {
        normalise(&SecretString::from(text)).map(|code| code.expose_secret().to_owned())
    }

    #[test]
    fn codes_have_fifty_bits_and_are_typed_as_one_likes() {
        let distinct: HashSet<u8> = ALPHABET.iter().copied().collect();
        assert!(distinct.len().ilog2() as usize * LENGTH >= 50);
        let code = random_code();
        let (code, shown) = (code.expose_secret().to_owned(), grouped(&code).expose_secret().to_owned());
        assert_eq!((code.len(), shown.len()), (10, 11));
        for typed in [&code, &shown, &shown.to_lowercase(), &format!(" {shown} "), &shown.replace('-', " ")] {
            assert_eq!(normal(typed).as_ref(), Some(&code), "{typed}");
        }
        assert_ne!(random_code().expose_secret(), code);
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for text in ["", "-", "ABCDE-FGHJ", "ABCDE-FGHJKL", "ABCDE-FGHI2", "ABCDE-FGH02", "ÄBCDE-FGHJK"] {
            assert_eq!(normal(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_typed(text in "\\PC{0,40}|[A-Za-z0-9 -]{8,14}") {
            if let Some(code) = normal(&text) {
                prop_assert!(code.len() == LENGTH && code.bytes().all(|byte| ALPHABET.contains(&byte)));
            }
        }
    }
}
