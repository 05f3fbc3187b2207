//! Accounts of people: sign-up, and the profile that its owner reads and changes.

use std::sync::Arc;

use secrecy::SecretString;
use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, field::Checks};

use super::{email::Email, hashing::Hasher, password::Password};
use crate::store::accounts::AccountStore;

const MAX_NAME: usize = 100;

/// An account. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) id: String,
    /// As it was given.
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
}

/// An account that is to be made.
#[derive(Debug)]
pub(crate) struct NewAccount {
    pub(crate) user: User,
    pub(crate) email_canonical: String,
    /// A PHC string.
    pub(crate) password_hash: String,
}

/// What sign-up asks for.
#[derive(Debug)]
pub(crate) struct SignUp {
    pub(crate) email: String,
    pub(crate) password: SecretString,
    pub(crate) name: String,
}

/// Everything about accounts.
#[derive(Debug)]
pub(crate) struct Accounts {
    store: Arc<dyn AccountStore>,
    hasher: Arc<Hasher>,
    clock: Clock,
    ids: Ids,
    min_password: usize,
}

impl Accounts {
    pub(crate) fn new(
        store: Arc<dyn AccountStore>,
        hasher: Arc<Hasher>,
        clock: Clock,
        ids: Ids,
        min_password: usize,
    ) -> Self {
        Self { store, hasher, clock, ids, min_password }
    }

    /// Makes an account. INVALID_ARGUMENT names every bad field; ALREADY_EXISTS (`EMAIL_TAKEN`) when the
    /// address, in any case of letters, has one.
    pub(crate) async fn sign_up(&self, asked: SignUp) -> Result<User> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, &asked.email);
        let password =
            Password::check_new(&mut checks, &asked.password, self.min_password, &email, &asked.name);
        let name = check_name(&mut checks, &asked.name);
        checks.done()?;

        // Asked first because a hash is dear; the unique index decides.
        if self.store.is_taken(&email.canonical).await? {
            return Err(email_taken());
        }
        let password_hash = self.hasher.hash(&self.hasher.place()?, &password).await?;
        let now = self.clock.now_ms();
        let user = User { id: self.ids.next(), email: email.given, name, created_at: now, updated_at: now };
        let account = NewAccount { user, email_canonical: email.canonical, password_hash };
        if !self.store.create(&account).await? {
            return Err(email_taken());
        }
        tracing::info!(user_id = account.user.id, "account created");
        Ok(account.user)
    }

    /// The caller's account.
    pub(crate) async fn profile(&self, caller: &AuthContext) -> Result<User> {
        self.store.find(caller.user_id()).await?.ok_or_else(|| Error::not_found("account"))
    }

    /// Changes the caller's name.
    pub(crate) async fn update_profile(&self, caller: &AuthContext, name: &str) -> Result<User> {
        let mut checks = Checks::new();
        let name = check_name(&mut checks, name);
        checks.done()?;
        let renamed = self.store.rename(caller.user_id(), &name, self.clock.now_ms()).await?;
        renamed.ok_or_else(|| Error::not_found("account"))
    }
}

fn email_taken() -> Error {
    Error::new(Kind::AlreadyExists, "EMAIL_TAKEN", "there is an account with this e-mail address")
}

/// A name to show, without the spaces around it.
fn check_name(checks: &mut Checks, text: &str) -> String {
    let name = text.trim();
    // These turn or break the line that a name is shown in.
    let disturbs = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    checks.length("name", name, 1, MAX_NAME);
    checks.printable("name", name, false);
    checks.that(!name.contains(disturbs), "name", "must not contain characters that change its direction");
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use service_kit::field::Checks;

    use super::check_name;

    fn name(text: &str) -> Option<String> {
        let mut checks = Checks::new();
        let name = check_name(&mut checks, text);
        checks.done().is_ok().then_some(name)
    }

    #[test]
    fn names_of_people_pass_and_tricks_do_not() {
        assert_eq!(name("  Zoë O'Neil-王 👩‍🚀 ").unwrap(), "Zoë O'Neil-王 👩‍🚀");
        assert!(name(&"n".repeat(100)).is_some());
        for bad in ["", "   ", "a\nb", "a\0", "\u{1b}[31mred", "evil\u{202e}gpj.exe", &"n".repeat(101)] {
            assert!(name(bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_names_are_one_printable_line(text in ".{0,120}") {
            if let Some(name) = name(&text) {
                prop_assert!((1..=100).contains(&name.chars().count()));
                prop_assert!(!name.chars().any(char::is_control));
                prop_assert_eq!(name.trim(), name.as_str());
            }
        }
    }
}
