//! The rules of passwords: length, and not one that an attacker tries first. No composition rules, no
//! trimming, no case folding; Unicode is normalised (NFKC), so that two keyboards type the same password.

use std::{collections::HashSet, sync::LazyLock};

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::field::Checks;
use unicode_normalization::UnicodeNormalization as _;

use super::email::Email;

/// The most code points, before and after normalisation. Longer ones are refused, never cut.
pub(crate) const MAX_LENGTH: usize = 128;

/// Local parts shorter than this are in too many words to forbid them inside a password.
const TELLING: usize = 4;

/// Passwords of at least 8 characters that attackers try first, in lower case, one a line.
static COMMON: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

/// A password in the form that is hashed.
#[derive(Debug, Clone)]
pub(crate) struct Password(SecretString);

impl Password {
    /// Reads the password of a login: any that an account may have had under earlier rules.
    pub(crate) fn check_login(checks: &mut Checks, text: &SecretString) -> Self {
        let text = text.expose_secret();
        checks.that(!text.is_empty(), "password", "is required");
        checks.that(fits(text), "password", "must have at most 128 characters");
        Self::normalise(text)
    }

    /// Reads a new password of the account with this address and name.
    pub(crate) fn check_new(
        checks: &mut Checks,
        text: &SecretString,
        min: usize,
        email: &Email,
        name: &str,
    ) -> Self {
        let password = Self::normalise(text.expose_secret());
        let normal = password.0.expose_secret();
        if !fits(text.expose_secret()) || !fits(normal) {
            checks.that(false, "password", &format!("must have {min} to {MAX_LENGTH} characters"));
            return password;
        }
        checks.length("password", normal, min, MAX_LENGTH);
        let folded = normal.to_lowercase();
        let local = email.local_part();
        let tells = folded == local || (local.len() >= TELLING && folded.contains(local));
        let is_name = folded == name.trim().nfkc().collect::<String>().to_lowercase();
        checks.that(!COMMON.contains(folded.as_str()), "password", "is too common");
        checks.that(!tells, "password", "must not contain the name in the e-mail address");
        checks.that(!is_name, "password", "must not be the name");
        password
    }

    /// The bytes to hash.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }

    fn normalise(text: &str) -> Self {
        // What does not fit is refused anyway; megabytes need no normalisation.
        Self(SecretString::from(text.chars().take(MAX_LENGTH + 1).nfkc().collect::<String>()))
    }
}

fn fits(text: &str) -> bool {
    text.chars().nth(MAX_LENGTH).is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::SecretString;
    use service_kit::field::Checks;

    use super::{COMMON, Email, MAX_LENGTH, Password};

    fn refusal(text: &str, email: &str, name: &str) -> Option<String> {
        let mut checks = Checks::new();
        let email = Email::check(&mut Checks::new(), email);
        Password::check_new(&mut checks, &SecretString::from(text), 8, &email, name);
        checks.done().err().map(|error| error.message().to_owned())
    }

    fn refused(text: &str) -> Option<String> {
        refusal(text, "jane@example.com", "Jane Doe")
    }

    #[test]
    fn length_counts_code_points_after_normalisation() {
        assert_eq!(refused("").unwrap(), "password is required");
        assert!(refused("ｓｈｏｒｔ７７").is_some());
        assert!(refused("пароль-х").is_none());
        assert!(refused(&"é".repeat(128)).is_none());
        assert!(refused(&"é".repeat(129)).is_some());
        // One code point that becomes eighteen.
        assert!(refused(&"\u{fdfa}".repeat(7)).is_none());
        assert!(refused(&"\u{fdfa}".repeat(8)).is_some());
        assert!(refused(&"x".repeat(1_000_000)).is_some());
    }

    #[test]
    fn what_an_attacker_tries_first_is_refused() {
        for bad in ["password", "PassWord", "12345678", "ｐａｓｓｗｏｒｄ", "qwertyuiop", "iloveyou1"]
        {
            assert_eq!(refused(bad).unwrap(), "password is too common", "{bad}");
        }
        assert!(refused("my-JANE-2024").unwrap().contains("e-mail"));
        assert!(refused("jane doe").unwrap().contains("name"));
        assert!(refusal("bob-builds-boats", "bob@example.com", "Robert").is_none());
        assert!(refusal("bob-builds-boats", "bob@example.com", "Bob-Builds-Boats").is_some());
    }

    #[test]
    fn the_list_is_what_it_says() {
        assert!(COMMON.len() >= 300, "{}", COMMON.len());
        for word in COMMON.iter() {
            assert!(word.chars().count() >= 8 && word.to_lowercase() == **word, "{word}");
        }
    }

    #[test]
    fn debug_hides_it() {
        let password = Password::check_login(&mut Checks::new(), &SecretString::from("canary-7"));
        assert!(!format!("{password:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn accepted_passwords_are_within_the_rules(text in "\\PC{0,160}") {
            if refused(&text).is_none() {
                let count = text.chars().count();
                prop_assert!(count <= MAX_LENGTH);
                prop_assert!(!text.to_lowercase().contains("jane"));
                prop_assert!(!COMMON.contains(text.to_lowercase().as_str()));
            }
        }

        #[test]
        fn ascii_is_judged_by_length_alone_when_nothing_else_applies(text in "[0-9A-F]{9}:[0-9A-F]{0,140}") {
            prop_assert_eq!(refused(&text).is_none(), text.len() <= 128);
        }

        #[test]
        fn equal_after_normalisation_is_the_same_password(text in "\\PC{1,60}") {
            use unicode_normalization::UnicodeNormalization as _;
            let decomposed: String = text.nfkd().collect();
            let bytes = |text: &str| {
                Password::check_login(&mut Checks::new(), &SecretString::from(text)).as_bytes().to_vec()
            };
            prop_assume!(decomposed.chars().count() <= MAX_LENGTH);
            prop_assert_eq!(bytes(&text), bytes(&decomposed));
        }
    }
}
