//! E-mail addresses: ASCII `local@domain`, compared without regard to case.

use service_kit::field::Checks;

/// The longest address (RFC 5321: a path of 256 with its brackets).
const MAX_LENGTH: usize = 254;
const MAX_LOCAL: usize = 64;
const MAX_LABEL: usize = 63;

/// A well-formed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Email {
    /// As it was given.
    pub(crate) given: String,
    /// In lower case: what accounts are found by.
    pub(crate) canonical: String,
}

impl Email {
    /// Reads an address; notes in `checks` under `email` which rule it breaks.
    pub(crate) fn check(checks: &mut Checks, text: &str) -> Self {
        let rule = if text.is_empty() {
            Some("is required")
        } else if text.len() > MAX_LENGTH {
            Some("must have at most 254 characters")
        } else if !is_address(text) {
            Some("must be an e-mail address such as name@example.com")
        } else {
            None
        };
        checks.that(rule.is_none(), "email", rule.unwrap_or_default());
        Self { given: text.to_owned(), canonical: text.to_ascii_lowercase() }
    }

    /// What stands before the `@`, in lower case.
    pub(crate) fn local_part(&self) -> &str {
        self.canonical.split_once('@').map_or("", |(local, _)| local)
    }
}

fn is_address(text: &str) -> bool {
    match text.split_once('@') {
        Some((local, domain)) => is_local(local) && is_domain(domain),
        None => false,
    }
}

/// A dot-atom (RFC 5322). Quoted local parts are legal, but nobody has one that is not an attack.
fn is_local(local: &str) -> bool {
    let atom = |atom: &str| {
        let in_set = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b);
        !atom.is_empty() && atom.bytes().all(in_set)
    };
    local.len() <= MAX_LOCAL && local.split('.').all(atom)
}

/// At least two labels, the last one not a number: an address literal is no mailbox of a person.
fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    domain.contains('.') && domain.split('.').all(label) && !domain.rsplit('.').next().is_some_and(numeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use service_kit::field::Checks;

    use super::Email;

    fn check(text: &str) -> Option<Email> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, text);
        checks.done().is_ok().then_some(email)
    }

    #[test]
    fn addresses_of_people_are_accepted() {
        for good in ["a@b.co", "Jane.Doe+x@mail.example.com", "o'neil@xn--bcher-kva.example", "x_y@1.example"]
        {
            assert!(check(good).is_some(), "{good}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let long_local = format!("{}@example.com", "a".repeat(65));
        let long_label = format!("a@{}.com", "b".repeat(64));
        for bad in [
            "",
            "a",
            "@",
            "a@",
            "@b.co",
            "a@b",
            "a@@b.co",
            "a@b@c.co",
            ".a@b.co",
            "a.@b.co",
            "a..b@c.co",
            "a b@c.co",
            " a@b.co",
            "a@b.co ",
            "a@b.co\n",
            "a@-b.co",
            "a@b-.co",
            "a@b..co",
            "a@.b.co",
            "a@b.co.",
            "a@127.0.0.1",
            "a@[127.0.0.1]",
            "\"a b\"@c.co",
            "a@b_c.co",
            "ä@b.co",
            "a@bü.co",
            "a\0@b.co",
            "a,b@c.co",
            "<a@b.co>",
            &long_local,
            &long_label,
        ] {
            assert!(check(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_length_limit_is_254() {
        let domain = format!("{0}.{0}.{1}.com", "d".repeat(63), "d".repeat(57));
        let at_limit = format!("{}@{domain}", "a".repeat(64));
        assert_eq!(at_limit.len(), 254);
        assert!(check(&at_limit).is_some() && check(&format!("{at_limit}m")).is_none());
    }

    proptest! {
        #[test]
        fn case_never_matters(text in "[a-zA-Z0-9+]{1,12}(\\.[a-zA-Z]{1,5})?@[a-zA-Z]{1,8}\\.[a-zA-Z]{2,6}") {
            let (upper, lower) = (text.to_ascii_uppercase(), text.to_ascii_lowercase());
            let email = check(&text).unwrap();
            prop_assert_eq!(&email.given, &text);
            prop_assert_eq!(&email.canonical, &check(&upper).unwrap().canonical);
            prop_assert_eq!(email.canonical, lower);
        }

        #[test]
        fn whatever_is_accepted_is_plain(text in "\\PC{0,40}@\\PC{0,40}|[ -~]{0,80}|.*") {
            if let Some(email) = check(&text) {
                prop_assert!(text.len() <= 254 && text.is_ascii());
                prop_assert!(!text.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()));
                prop_assert_eq!(text.matches('@').count(), 1);
                prop_assert!(!email.local_part().is_empty());
            }
        }
    }
}
