//! Change and reset of passwords: both end what the old password had opened.

use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo, Error, Result, field::Checks};

use super::{
    Shared,
    accounts::{bad_token, send},
    audit::{Action, Chain, Event},
    email::Email,
    hashing::Verdict,
    logins::no_password,
    mail::{Envelope, Letter, Outgoing, public_url},
    password::Password,
    secret,
    sessions::invalid_credentials,
    throttle::{Admission, Key, Rules},
};

/// Whose password it is.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) user_id: String,
    /// As it was given at sign-up.
    pub(crate) email: String,
    pub(crate) name: String,
    /// A PHC string; none where a provider logs the owner in.
    pub(crate) password_hash: Option<String>,
}

/// A new password, and what goes with it.
#[derive(Debug)]
pub(crate) struct NewPassword {
    pub(crate) user_id: String,
    /// A PHC string.
    pub(crate) hash: String,
    /// Whose failures are forgiven.
    pub(crate) forgiven: Vec<Key>,
    /// Tells the owner.
    pub(crate) envelope: Envelope,
    pub(crate) event: Event,
}

/// Everything about the passwords of accounts.
#[derive(Debug)]
pub(crate) struct Passwords {
    shared: Shared,
    throttle: Rules,
}

impl Passwords {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone(), throttle: Rules::new(&shared.config.throttle) }
    }

    /// Changes the caller's password and ends every other session. UNAUTHENTICATED (`INVALID_CREDENTIALS`)
    /// when the current one is wrong or was tried too often. Failures count as those of a login do, for the
    /// session: guesses of strangers keep no owner from a new password. FAILED_PRECONDITION (`NO_PASSWORD`)
    /// when there is none.
    pub(crate) async fn change(
        &self,
        caller: &AuthContext,
        current: &SecretString,
        new: &SecretString,
        client: &ClientInfo,
    ) -> Result<()> {
        let owner = self.shared.stores.passwords.owner(caller.user_id()).await?;
        let owner = owner.ok_or_else(|| Error::not_found("account"))?;
        let Some(stored) = &owner.password_hash else { return Err(no_password()) };
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, &owner.email);
        let rules = &self.shared.password_rules;
        let current = Password::check_given(&mut checks, "currentPassword", current);
        let new = Password::check_new(&mut checks, "newPassword", new, rules, &email, &owner.name);
        checks.that(new.as_bytes() != current.as_bytes(), "newPassword", "must differ from the current one");
        checks.done()?;

        let event = self.shared.journal.of_caller(caller, Action::PasswordChange, client);
        let key = Key::of_session(caller.session_id());
        let place = self.shared.hasher.place()?;
        let (throttles, now) = (&self.shared.stores.throttles, self.shared.clock.now_ms());
        if let Admission::Locked(_) = throttles.admit(&key, &self.throttle, now).await? {
            throttles.note(&event.failed("too many attempts")).await?;
            return Err(invalid_credentials());
        }
        if self.shared.hasher.verify(&place, &current, Some(stored)).await? == Verdict::Wrong {
            throttles.note(&event.failed("wrong password")).await?;
            return Err(invalid_credentials());
        }
        let hash = self.shared.hasher.hash(&place, &new).await?;
        let change = self.new_password(&owner, hash, vec![key, Key::of(&email)], event)?;
        if !self.shared.stores.passwords.change(stored, &change, caller.session_id()).await? {
            return Err(invalid_credentials());
        }
        self.shared.mail_nudge.now();
        tracing::info!(user_id = owner.user_id, "password changed");
        Ok(())
    }

    /// Mails a link to choose a new password. The answer and the work are the same for every address; an
    /// address gets so many letters an hour and no more.
    pub(crate) async fn request_reset(&self, email: &str, client: &ClientInfo) -> Result<()> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, email);
        checks.done()?;
        let known = self.shared.stores.accounts.contact(&email.canonical).await?;
        let known = known.filter(|known| !known.disabled);
        let outgoing = Outgoing::reset(&self.shared, known.as_ref().map(|known| known.email.as_str()))?;
        send(&self.shared, known.as_ref(), &outgoing, Action::PasswordResetRequest, client).await
    }

    /// Sets a new password with the token of a mailed link, which also proves the address, and ends every
    /// session. INVALID_ARGUMENT on `token` when it is not good, whatever the reason; a password that
    /// breaks a rule does not use it up.
    pub(crate) async fn reset(
        &self,
        token: &SecretString,
        new: &SecretString,
        client: &ClientInfo,
    ) -> Result<()> {
        let token = secret::hash(token).ok_or_else(bad_token)?;
        let store = &self.shared.stores.passwords;
        let owner = store.owner_of_link(token, self.shared.clock.now_ms()).await?.ok_or_else(bad_token)?;
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, &owner.email);
        let rules = &self.shared.password_rules;
        let new = Password::check_new(&mut checks, "newPassword", new, rules, &email, &owner.name);
        checks.done()?;

        let hash = self.shared.hasher.hash(&self.shared.hasher.place()?, &new).await?;
        let chain = Chain::User(owner.user_id.clone());
        let event = self.shared.journal.event(chain, Action::PasswordReset, client).by(&owner.user_id);
        let reset = self.new_password(&owner, hash, vec![Key::of(&email)], event)?;
        if !store.reset(token, &reset).await? {
            return Err(bad_token());
        }
        self.shared.mail_nudge.now();
        tracing::info!(user_id = owner.user_id, "password reset");
        Ok(())
    }

    fn new_password(
        &self,
        owner: &Owner,
        hash: String,
        forgiven: Vec<Key>,
        event: Event,
    ) -> Result<NewPassword> {
        let letter = Letter::password_changed(&owner.email, public_url(&self.shared));
        let envelope = self.shared.mailroom.envelope(&letter)?;
        Ok(NewPassword { user_id: owner.user_id.clone(), hash, forgiven, envelope, event })
    }
}
