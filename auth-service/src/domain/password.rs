//! The rules of passwords: length, and not one that an attacker tries first. No composition rules, no
//! trimming, no case folding; Unicode is normalised (NFKC), so that two keyboards type the same password.

use std::{collections::HashSet, path::Path, sync::LazyLock};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::field::Checks;
use sha2::{Digest as _, Sha256};
use unicode_normalization::UnicodeNormalization as _;
use url::Url;

use super::email::Email;
use crate::config::Config;

/// The most code points, before and after normalisation. Longer ones are refused, never cut.
pub(crate) const MAX_LENGTH: usize = 128;

/// Words shorter than this are in too many others to forbid them inside a password.
const TELLING: usize = 4;

/// Without the words that an attacker knows, this many code points must be left.
const REST: usize = 6;

const PRODUCT: &str = "tollgate";

/// Passwords of at least 8 characters that attackers try first, in lower case, one a line.
///
/// NOTICE: the file is made of the list of common passwords of Django (django/contrib/auth, version 5.2), by
/// Royce Williams and others, under the BSD 3-Clause licence, Copyright (c) Django Software Foundation and
/// individual contributors, and of words of our own.
static COMMON: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

/// What new passwords are judged by.
#[derive(Debug)]
pub(crate) struct Rules {
    min: usize,
    /// What this service is called: in lower case, longest first.
    names: Vec<String>,
    /// The operator's list, as the first 8 bytes of SHA-256, sorted: eight bytes for each password.
    blocked: Vec<u64>,
}

impl Rules {
    /// The rules of the settings. Fails when the list of passwords to refuse cannot be read.
    pub(crate) fn load(config: &Config) -> anyhow::Result<Self> {
        let file = &config.password.blocklist_file;
        let blocked = if file.as_os_str().is_empty() { Vec::new() } else { read(file)? };
        Ok(Self { min: config.password.min_length, names: names_of(&config.token.issuer), blocked })
    }

    fn is_common(&self, folded: &str) -> bool {
        COMMON.contains(folded) || self.blocked.binary_search(&digest(folded)).is_ok()
    }

    /// Whether little is left of a password without the words that anybody knows.
    fn is_telling(&self, folded: &str, name: &str) -> bool {
        let name = fold(name.trim());
        let joined: String = name.split_whitespace().collect();
        let known = self.names.iter().chain([&name, &joined]).filter(|word| word.chars().count() >= TELLING);
        let rest = known.fold(folded.to_owned(), |rest, word| rest.replace(word.as_str(), ""));
        folded == name || (rest != folded && rest.chars().count() < REST)
    }
}

/// The product, and the issuer's host with those of its labels that tell.
fn names_of(issuer: &str) -> Vec<String> {
    let host = Url::parse(issuer).ok().and_then(|url| url.host_str().map(fold)).unwrap_or_default();
    let labels = host.rsplit('.').skip(1).map(str::to_owned);
    let mut names: Vec<String> = labels.chain([host.clone(), PRODUCT.to_owned()]).collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.dedup();
    names
}

fn read(file: &Path) -> anyhow::Result<Vec<u64>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("password.blocklist_file: cannot read {}", file.display()))?;
    let mut blocked: Vec<u64> =
        text.lines().filter(|line| !line.is_empty()).map(|line| digest(&fold(line))).collect();
    blocked.sort_unstable();
    blocked.dedup();
    Ok(blocked)
}

fn fold(text: &str) -> String {
    text.nfkc().collect::<String>().to_lowercase()
}

fn digest(folded: &str) -> u64 {
    Sha256::digest(folded)[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A password in the form that is hashed.
#[derive(Debug, Clone)]
pub(crate) struct Password(SecretString);

impl Password {
    /// Reads the password of a login: any that an account may have had under earlier rules.
    pub(crate) fn check_login(checks: &mut Checks, text: &SecretString) -> Self {
        Self::check_given(checks, "password", text)
    }

    /// The same, of another field.
    pub(crate) fn check_given(checks: &mut Checks, field: &str, text: &SecretString) -> Self {
        let text = text.expose_secret();
        checks.that(!text.is_empty(), field, "is required");
        checks.that(fits(text), field, "must have at most 128 characters");
        Self::normalise(text)
    }

    /// Reads a new password of the account with this address and name.
    pub(crate) fn check_new(
        checks: &mut Checks,
        field: &str,
        text: &SecretString,
        rules: &Rules,
        email: &Email,
        name: &str,
    ) -> Self {
        let password = Self::normalise(text.expose_secret());
        let normal = password.0.expose_secret();
        if !fits(text.expose_secret()) || !fits(normal) {
            checks.that(false, field, &format!("must have {} to {MAX_LENGTH} characters", rules.min));
            return password;
        }
        checks.length(field, normal, rules.min, MAX_LENGTH);
        let folded = normal.to_lowercase();
        let local = email.local_part();
        let holds_local = folded == local || (local.len() >= TELLING && folded.contains(local));
        let is_telling = rules.is_telling(&folded, name);
        checks.that(!rules.is_common(&folded), field, "is too common");
        checks.that(!holds_local, field, "must not contain the name in the e-mail address");
        checks.that(!is_telling, field, "must not be made of the name, or of what this service is called");
        password
    }

    /// A recovery code in the form that is hashed: as a password is.
    pub(crate) fn of_code(code: &SecretString) -> Self {
        Self(code.clone())
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

    use super::{COMMON, Email, MAX_LENGTH, Password, Rules, names_of, read};

    fn rules() -> Rules {
        Rules { min: 8, names: names_of("https://auth.acme-cloud.example:8443/x"), blocked: Vec::new() }
    }

    fn refusal_by(rules: &Rules, text: &str, email: &str, name: &str) -> Option<String> {
        let mut checks = Checks::new();
        let email = Email::check(&mut Checks::new(), email);
        Password::check_new(&mut checks, "password", &SecretString::from(text), rules, &email, name);
        checks.done().err().map(|error| error.message().to_owned())
    }

    fn refusal(text: &str, email: &str, name: &str) -> Option<String> {
        refusal_by(&rules(), text, email, name)
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
    fn what_everybody_here_would_think_of_is_refused() {
        for bad in [
            "Tollgate2024!",
            "tollgate-TOLLGATE",
            "ＴＯＬＬＧＡＴＥ77",
            "acme-cloud:1",
            "auth.acme-cloud.example!",
            "JoDoe-1-",
            "jo doe!!1",
            "tollgate jo doe",
        ] {
            let refused = refusal(bad, "bob@example.com", "Jo Doe");
            assert!(refused.is_some_and(|rule| rule.contains("this service")), "{bad}");
        }
        for good in ["tollgate of the river", "joseph-doe-jr", "acme-cloud rains", "x1!kkqz+"] {
            assert!(refusal(good, "bob@example.com", "Jo Doe").is_none(), "{good}");
        }
        // The minimum is a setting.
        let strict = Rules { min: 15, ..rules() };
        assert!(refusal_by(&strict, "x1!kkqz+x1!kkq", "bob@example.com", "Jo").is_some());
        assert!(refusal_by(&strict, "x1!kkqz+x1!kkqz", "bob@example.com", "Jo").is_none());
    }

    #[test]
    fn the_operators_list_counts_in_any_form() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("blocked.txt");
        std::fs::write(&file, "Our-Canteen-7\r\n\nwinterreise 1827\n").unwrap();
        let rules = Rules { blocked: read(&file).unwrap(), ..rules() };
        for bad in ["our-canteen-7", "OUR-CANTEEN-7", "Winterreise 1827", "ｗinterreise 1827"] {
            let refused = refusal_by(&rules, bad, "bob@example.com", "Bob");
            assert_eq!(refused.as_deref(), Some("password is too common"), "{bad}");
        }
        assert!(refusal_by(&rules, "our-canteen-8", "bob@example.com", "Bob").is_none());
        let error = read(&folder.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("password.blocklist_file"), "{error}");
    }

    #[test]
    fn the_list_is_what_it_says() {
        assert!(COMMON.len() >= 3_000, "{}", COMMON.len());
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
