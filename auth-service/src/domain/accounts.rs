//! Accounts of people: sign-up, and the profile that its owner reads and changes.

use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, field::Checks};

use super::{
    Shared,
    audit::{Action, Chain, Event, Journal, Shard},
    email::Email,
    hashing::{Place, Verdict},
    mail::Outgoing,
    password::Password,
    secret,
};
use crate::store::Stores;

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
    pub(crate) email_verified: bool,
}

/// An account that is to be made.
#[derive(Debug)]
pub(crate) struct NewAccount {
    pub(crate) user: User,
    pub(crate) email_canonical: String,
    /// A PHC string.
    pub(crate) password_hash: String,
}

/// A sign-up where addresses must be verified: the store finds out which of the letters is due, and says
/// nothing about it.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) account: NewAccount,
    /// The version of the password that the address has and that was given again, if it was.
    pub(crate) repeats: Option<i64>,
    /// For an address that nobody has proven: a link to prove it.
    pub(crate) verify: Outgoing,
    /// For an address that has an account.
    pub(crate) already_there: Outgoing,
    /// For an address that somebody gave with another password: a link to choose one.
    pub(crate) contested: Outgoing,
    pub(crate) event: Event,
}

/// What sign-up asks for.
#[derive(Debug)]
pub(crate) struct SignUp {
    pub(crate) email: String,
    pub(crate) password: SecretString,
    pub(crate) name: String,
}

/// What sign-up answers.
#[derive(Debug)]
pub(crate) enum SignedUp {
    /// The account.
    Account(User),
    /// The address has mail: whether there is an account now, or was before, only its owner learns.
    Unverified {
        /// As it was given.
        email: String,
        name: String,
    },
}

/// How the owner of an address is reached.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    pub(crate) user_id: String,
    /// As it was given at sign-up.
    pub(crate) email: String,
    pub(crate) verified: bool,
    pub(crate) disabled: bool,
}

/// Everything about accounts.
#[derive(Debug)]
pub(crate) struct Accounts {
    shared: Shared,
}

impl Accounts {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone() }
    }

    /// Makes an account. INVALID_ARGUMENT names every bad field. ALREADY_EXISTS (`EMAIL_TAKEN`) when the
    /// address, in any case of letters, has one; where addresses must be verified the answer is the
    /// same either way.
    pub(crate) async fn sign_up(&self, asked: SignUp, client: &ClientInfo) -> Result<SignedUp> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, &asked.email);
        let rules = &self.shared.password_rules;
        let password =
            Password::check_new(&mut checks, "password", &asked.password, rules, &email, &asked.name);
        let name = check_name(&mut checks, &asked.name);
        checks.done()?;
        if self.shared.config.account.verify_email {
            self.enrol(email, name, &password, client).await
        } else {
            self.create(email, name, &password, client).await.map(SignedUp::Account)
        }
    }

    async fn create(
        &self,
        email: Email,
        name: String,
        password: &Password,
        client: &ClientInfo,
    ) -> Result<User> {
        // Asked first because a hash is dear; the unique index decides.
        if self.shared.stores.accounts.contact(&email.canonical).await?.is_some() {
            return Err(email_taken());
        }
        let verify = Outgoing::verify(&self.shared, Some(&email.given))?;
        let account = self.new_account(&self.shared.hasher.place()?, email, name, password).await?;
        let id = &account.user.id;
        let event = self.shared.journal.event(Chain::User(id.clone()), Action::SignUp, client).by(id);
        if !self.shared.stores.accounts.create(&account, &verify, &event).await? {
            return Err(email_taken());
        }
        self.shared.mail_nudge.now();
        tracing::info!(user_id = account.user.id, "account created");
        Ok(account.user)
    }

    /// Makes an account that counts once its address is verified. Whether the address has one already is
    /// seen neither in the answer nor in the work. Until the address is verified nobody knows whose sign-up
    /// is the owner's: after two with different passwords none counts, and the owner chooses one by mail.
    async fn enrol(
        &self,
        email: Email,
        name: String,
        password: &Password,
        client: &ClientInfo,
    ) -> Result<SignedUp> {
        let known = self.shared.stores.accounts.contact(&email.canonical).await?;
        // To the address as its owner gave it, and never to a disabled account.
        let to = match &known {
            Some(known) => Some(known.email.as_str()).filter(|_| !known.disabled),
            None => Some(email.given.as_str()),
        };
        let verify = Outgoing::verify(&self.shared, to)?;
        let already_there = Outgoing::already_there(&self.shared, to)?;
        let contested = Outgoing::contested(&self.shared, to)?;
        let answer = SignedUp::Unverified { email: email.given.clone(), name: name.clone() };
        let place = self.shared.hasher.place()?;
        let before = self.shared.stores.accounts.credential(&email.canonical).await?;
        let stored = before.as_ref().map(|before| before.password_hash.as_str());
        let repeats = match self.shared.hasher.verify(&place, password, stored).await? {
            Verdict::Wrong => None,
            Verdict::Right | Verdict::RightButOutdated => before.map(|before| before.version),
        };
        let account = self.new_account(&place, email, name, password).await?;
        let event = self.shared.journal.event(Chain::System, Action::SignUp, client);
        let enrolment = Enrolment { account, repeats, verify, already_there, contested, event };
        self.shared.stores.accounts.enrol(&enrolment).await?;
        self.shared.mail_nudge.now();
        Ok(answer)
    }

    async fn new_account(
        &self,
        place: &Place,
        email: Email,
        name: String,
        password: &Password,
    ) -> Result<NewAccount> {
        let password_hash = self.shared.hasher.hash(place, password).await?;
        let now = self.shared.clock.now_ms();
        let user = User {
            id: self.shared.ids.next(),
            email: email.given,
            name,
            created_at: now,
            updated_at: now,
            email_verified: false,
        };
        Ok(NewAccount { user, email_canonical: email.canonical, password_hash })
    }

    /// Mails the link that verifies an address again. The answer and the work are the same for every
    /// address; an address gets so many letters an hour and no more.
    pub(crate) async fn request_verification(&self, email: &str, client: &ClientInfo) -> Result<()> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, email);
        checks.done()?;
        let known = self.shared.stores.accounts.contact(&email.canonical).await?;
        let known = known.filter(|known| !known.verified && !known.disabled);
        let outgoing = Outgoing::verify(&self.shared, known.as_ref().map(|known| known.email.as_str()))?;
        send(&self.shared, known.as_ref(), &outgoing, Action::EmailVerifyRequest, client).await
    }

    /// Verifies an address with the token of a mailed link. INVALID_ARGUMENT on `token` when it is not good,
    /// whatever the reason.
    pub(crate) async fn verify_email(&self, token: &SecretString, client: &ClientInfo) -> Result<()> {
        let hash = secret::hash(token).ok_or_else(bad_token)?;
        let event = self.shared.journal.event(Chain::System, Action::EmailVerify, client);
        match self.shared.stores.accounts.verify(hash, event).await? {
            Some(user_id) => {
                tracing::info!(user_id, "e-mail address verified");
                Ok(())
            }
            None => Err(bad_token()),
        }
    }

    /// The caller's account.
    pub(crate) async fn profile(&self, caller: &AuthContext) -> Result<User> {
        self.shared.stores.accounts.find(caller.user_id()).await?.ok_or_else(|| Error::not_found("account"))
    }

    /// Changes the caller's name.
    pub(crate) async fn update_profile(
        &self,
        caller: &AuthContext,
        name: &str,
        client: &ClientInfo,
    ) -> Result<User> {
        let mut checks = Checks::new();
        let name = check_name(&mut checks, name);
        checks.done()?;
        let event = self.shared.journal.of_caller(caller, Action::ProfileUpdate, client);
        let renamed = self.shared.stores.accounts.rename(caller.user_id(), &name, &event).await?;
        renamed.ok_or_else(|| Error::not_found("account"))
    }
}

/// Disables an account, or enables it again: what an operator does. Disabled, it cannot log in, its sessions
/// end, its personal tokens are revoked for good, and its links to reset the password are dead. False when it
/// was so already; NOT_FOUND when the address has no account.
pub(crate) async fn set_disabled(
    stores: &Stores,
    journal: &Journal,
    email: &str,
    disabled: bool,
) -> Result<bool> {
    let mut checks = Checks::new();
    let email = Email::check(&mut checks, email);
    checks.done()?;
    let action = if disabled { Action::AccountDisable } else { Action::AccountEnable };
    let event = journal.event(Chain::System, action, &ClientInfo::default()).because("command line");
    let changed = stores.accounts.set_disabled(&email.canonical, disabled, event).await?;
    changed.ok_or_else(|| Error::not_found("account"))
}

/// Posts a letter that anybody can ask for, to the owner of an account or, with the same work, to nobody.
pub(super) async fn send(
    shared: &Shared,
    known: Option<&Contact>,
    outgoing: &Outgoing,
    action: Action,
    client: &ClientInfo,
) -> Result<()> {
    let (user_id, event) = match known {
        Some(Contact { user_id, .. }) => {
            let chain = Chain::User(user_id.clone());
            (Some(user_id.as_str()), shared.journal.event(chain, action, client).on(user_id))
        }
        None => {
            // The same address does not fall into the same chain: nobody needs to tell them apart.
            let chain = Chain::Nobody(Shard::of(&outgoing.mark.hash.0));
            (None, shared.journal.event(chain, action, client).failed("no such account"))
        }
    };
    let refused = event.clone().failed("too many letters");
    if shared.stores.mail.send(user_id, outgoing, &event, &refused).await? {
        shared.mail_nudge.now();
    }
    Ok(())
}

/// The one answer to a token of a link that is not good: unknown, used, expired, of another kind.
pub(super) fn bad_token() -> Error {
    Error::field("token", "is not valid or has expired")
}

fn email_taken() -> Error {
    Error::new(Kind::AlreadyExists, "EMAIL_TAKEN", "there is an account with this e-mail address")
}

/// A name to show, without the spaces around it.
pub(crate) fn check_name(checks: &mut Checks, text: &str) -> String {
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
