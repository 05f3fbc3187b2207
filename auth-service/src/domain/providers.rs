//! Sign-in with OpenID Connect providers, and the accounts at providers that belong to an account here.
//!
//! A login begins in one browser and ends in the same one: besides the `state` that the provider sends
//! back, the browser keeps a `binding` that no other has. An account at a provider is taken for one here
//! only by its subject, or by an address that both sides have verified.

mod http;
mod relying_party;

use std::{collections::BTreeMap, sync::Arc};

use anyhow::anyhow;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, field::Checks, page::Page};

use super::{
    Shared,
    accounts::check_name,
    audit::{Action, Chain, Event},
    email::Email,
    mail::{Letter, public_url},
    pending,
    second_factors::{Factors, Notice, Purpose},
    secret::{self, TokenHash},
    sessions::{FULL_SCOPE, Opening, Outcome, Sessions, WEB_CLIENT, invalid_credentials},
    throttle::Key,
};
use http::may_ask;
use relying_party::{Person, RelyingParty, Ties};

/// Seconds to come back from a provider.
const LIFETIME: u32 = 600;
/// The longest authorization code that is looked at.
const MAX_CODE: usize = 4_096;

/// A login under way.
#[derive(Debug)]
pub(crate) struct Started {
    /// Where to send the browser.
    pub(crate) authorization_url: String,
    /// What the provider sends back.
    pub(crate) state: SecretString,
    /// What the browser keeps.
    pub(crate) binding: SecretString,
    /// Seconds to finish it.
    pub(crate) expires_in: u32,
}

/// What came back from a provider, and what the browser kept.
#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) provider: String,
    pub(crate) state: SecretString,
    pub(crate) code: SecretString,
    pub(crate) binding: SecretString,
}

/// An account at a provider. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) user_id: String,
    pub(crate) provider: String,
    pub(crate) subject: String,
    /// The address at the provider; empty when it has none that is one.
    pub(crate) email: String,
    pub(crate) created_at: i64,
}

/// An account that comes with its identity. Times are Unix milliseconds.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) email: Email,
    pub(crate) name: String,
    pub(crate) identity: Identity,
}

/// An account here, as a login at a provider finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user_id: String,
    pub(crate) disabled: bool,
    /// Whether the account's own address was verified.
    pub(crate) verified: bool,
}

/// By what right an identity is added to an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// The owner asked for it in this session, which must still be live.
    Session(String),
    /// The account's address, verified, is the one that the provider has verified.
    Email,
}

/// What became of an identity that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addition {
    /// It belongs to the account now.
    Added,
    /// It belongs to an account already.
    Taken,
    /// The right to add it is gone.
    Lapsed,
}

/// What became of a way into an account that was to be removed: an identity, or a passkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone.
    Removed,
    /// The account has no such way.
    Unknown,
    /// Without it nobody could get into the account.
    LastWay,
}

/// What waits between start and finish; sealed.
#[derive(serde::Serialize, serde::Deserialize)]
struct Dance {
    provider: String,
    ties: Ties,
    /// SHA-256 of the binding.
    binding: [u8; 32],
    /// The session that asks to add the identity; nothing for a login.
    session_id: Option<String>,
}

/// Somebody who adds an identity to his account.
#[derive(Debug)]
struct Linker {
    user_id: String,
    session_id: String,
}

/// Everything about providers.
#[derive(Debug)]
pub(crate) struct Providers {
    shared: Shared,
    sessions: Arc<Sessions>,
    factors: Arc<Factors>,
    parties: BTreeMap<String, RelyingParty>,
}

impl Providers {
    pub(crate) fn new(shared: &Shared, sessions: Arc<Sessions>, factors: Arc<Factors>) -> Self {
        let party =
            |(id, config): (&String, _)| (id.clone(), RelyingParty::new(id, config, shared.clock.clone()));
        let parties = shared.config.providers.iter().map(party).collect();
        Self { shared: shared.clone(), sessions, factors, parties }
    }

    /// The ids and the names of all providers.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parties.iter().map(|(id, party)| (id.as_str(), party.name()))
    }

    /// Begins a login. NOT_FOUND when there is no such provider; UNAVAILABLE when it does not answer.
    pub(crate) async fn start_login(&self, provider: &str) -> Result<Started> {
        self.start(provider, None).await
    }

    /// Begins to add an identity to the caller's account. Fails as [`Self::start_login`].
    pub(crate) async fn start_link(&self, caller: &AuthContext, provider: &str) -> Result<Started> {
        self.start(provider, Some(caller)).await
    }

    /// Ends what was begun: a login, after the addition of an identity or the creation of an account where
    /// that is due. UNAUTHENTICATED (`PROVIDER_REFUSED`) when anything about it is wrong.
    pub(crate) async fn finish(&self, asked: Finish, client: &ClientInfo) -> Result<Outcome> {
        let mut checks = Checks::new();
        for (field, value) in [("state", &asked.state), ("code", &asked.code), ("binding", &asked.binding)] {
            checks.length(field, value.expose_secret(), 1, MAX_CODE);
        }
        checks.done()?;
        let finished = self.finished(&asked, client).await;
        let outcome = match &finished {
            Ok(_) => "success",
            Err(error) if error.kind() == Kind::Unauthenticated => "failure",
            Err(_) => return finished,
        };
        metrics::counter!("tollgate_logins_total", "outcome" => outcome).increment(1);
        finished
    }

    /// A page of the caller's identities, oldest first, and how many there are in all.
    pub(crate) async fn identities(&self, caller: &AuthContext, page: Page) -> Result<(Vec<Identity>, i64)> {
        self.shared.stores.providers.list(caller.user_id(), page).await
    }

    /// Removes an identity of the caller. NOT_FOUND when there is none; FAILED_PRECONDITION
    /// (`LAST_LOGIN_METHOD`) when it is the only way into the account.
    pub(crate) async fn remove(&self, caller: &AuthContext, id: &str, client: &ClientInfo) -> Result<()> {
        let event = self.shared.journal.of_caller(caller, Action::IdentityRemove, client).on(id);
        let what = "An account at a provider was removed from those that log in to your Tollgate account.";
        let notice = self.notice(caller.user_id(), what, event).await?;
        let notice = notice.ok_or_else(|| Error::not_found("identity"))?;
        let offered = offered(&self.shared);
        match self.shared.stores.providers.remove(caller.user_id(), id, &offered, &notice).await? {
            Removal::Removed => {
                self.shared.mail_nudge.now();
                Ok(())
            }
            Removal::Unknown => Err(Error::not_found("identity")),
            Removal::LastWay => Err(last_login_method()),
        }
    }

    async fn start(&self, provider: &str, linker: Option<&AuthContext>) -> Result<Started> {
        let party = self.party(provider)?;
        let text = || secret::issue().0.expose_secret().to_owned();
        let ties = Ties { nonce: text(), verifier: text() };
        let ((state, hash), (binding, binding_hash)) = (secret::issue(), secret::issue());
        let authorization_url = party.authorization_url(&state, &ties).await?;
        let session_id = linker.map(|caller| caller.session_id().to_owned());
        let dance = Dance { provider: provider.to_owned(), ties, binding: binding_hash.0, session_id };
        let plain = serde_json::to_vec(&dance).map_err(Error::internal)?;
        let payload = self.shared.sealer.seal(&context(hash), &plain).map_err(Error::internal)?;
        let now = self.shared.clock.now_ms();
        let pending = pending::Pending {
            hash,
            kind: pending::Kind::ProviderLogin,
            user_id: linker.map(|caller| caller.user_id().to_owned()),
            payload,
            created_at: now,
            expires_at: now + i64::from(LIFETIME) * 1_000,
        };
        self.shared.stores.pending.put(&pending).await?;
        Ok(Started { authorization_url, state, binding, expires_in: LIFETIME })
    }

    async fn finished(&self, asked: &Finish, client: &ClientInfo) -> Result<Outcome> {
        let party = self.party(&asked.provider)?;
        let (dance, linker) = self.taken(party, asked).await?;
        let person = party.person(asked.code.expose_secret().to_owned(), dance.ties).await?;
        let user_id = self.account(&asked.provider, &person, linker.as_ref(), client).await?;
        self.logged_in(&user_id, &asked.provider, client).await
    }

    /// What was begun under a state. It is used up, whatever else is wrong.
    async fn taken(&self, party: &RelyingParty, asked: &Finish) -> Result<(Dance, Option<Linker>)> {
        let hash = secret::hash(&asked.state).ok_or_else(|| party.refused("state"))?;
        let (kind, now) = (pending::Kind::ProviderLogin, self.shared.clock.now_ms());
        let found = self.shared.stores.pending.take(hash, kind, now).await?;
        let found = found.ok_or_else(|| party.refused("state"))?;
        let plain = self.shared.sealer.open(&context(hash), &found.payload).map_err(Error::internal)?;
        let mut dance: Dance = serde_json::from_slice(&plain).map_err(Error::internal)?;
        if dance.provider != asked.provider {
            return Err(party.refused("begun at another provider"));
        }
        let binding = secret::hash(&asked.binding).ok_or_else(|| party.refused("binding"))?;
        verify_slices_are_equal(&binding.0, &dance.binding).map_err(|_| party.refused("binding"))?;
        let linker = found.user_id.zip(dance.session_id.take());
        Ok((dance, linker.map(|(user_id, session_id)| Linker { user_id, session_id })))
    }

    /// The account here of somebody at a provider; the identity is added, or the account made, where it
    /// is missing.
    async fn account(
        &self,
        provider: &str,
        person: &Person,
        linker: Option<&Linker>,
        client: &ClientInfo,
    ) -> Result<String> {
        // Of logins side by side one adds what is missing, and the others find it in the next round.
        for _ in 0..3 {
            if let Some(owner) = self.shared.stores.providers.owner(provider, &person.subject).await? {
                return match linker {
                    Some(linker) if linker.user_id != owner.user_id => Err(identity_taken()),
                    _ if owner.disabled => Err(invalid_credentials()),
                    _ => Ok(owner.user_id),
                };
            }
            let added = match linker {
                Some(linker) => {
                    let right = Right::Session(linker.session_id.clone());
                    self.add(provider, person, &linker.user_id, &right, client).await?
                }
                None => self.add_by_email(provider, person, client).await?,
            };
            if let Some(user_id) = added {
                return Ok(user_id);
            }
        }
        Err(Error::internal(anyhow!("an identity of {provider} comes and goes")))
    }

    /// Adds somebody who has no identity yet by the address. Nothing when somebody else was faster.
    async fn add_by_email(
        &self,
        provider: &str,
        person: &Person,
        client: &ClientInfo,
    ) -> Result<Option<String>> {
        // Without the provider's word for the address nothing is told about an account that has it.
        let email = person.email_verified.then(|| address(person)).flatten().ok_or_else(|| {
            Error::new(
                Kind::FailedPrecondition,
                "EMAIL_NOT_VERIFIED",
                "the provider has no verified e-mail address of you; verify it there, or log in another way",
            )
        })?;
        match self.shared.stores.providers.account(&email.canonical).await? {
            Some(account) if account.disabled => Err(invalid_credentials()),
            Some(account) if account.verified => {
                self.add(provider, person, &account.user_id, &Right::Email, client).await
            }
            Some(_) => Err(Error::new(
                Kind::FailedPrecondition,
                "ACCOUNT_EXISTS",
                "there is an account with this e-mail address; log in to it and add the provider there",
            )),
            None => self.create(provider, person, email, client).await,
        }
    }

    async fn add(
        &self,
        provider: &str,
        person: &Person,
        user_id: &str,
        right: &Right,
        client: &ClientInfo,
    ) -> Result<Option<String>> {
        let identity = self.identity(provider, person, user_id);
        let event = self.event(&identity, Action::IdentityAdd, client).on(&identity.id);
        let what = "An account at a provider can log in to your Tollgate account from now on.";
        let notice = self.notice(user_id, what, event).await?.ok_or_else(invalid_credentials)?;
        match self.shared.stores.providers.add(&identity, right, &notice).await? {
            Addition::Added => {
                self.shared.mail_nudge.now();
                Ok(Some(identity.user_id))
            }
            Addition::Taken => Ok(None),
            Addition::Lapsed => Err(invalid_credentials()),
        }
    }

    /// Makes an account without a password.
    async fn create(
        &self,
        provider: &str,
        person: &Person,
        email: Email,
        client: &ClientInfo,
    ) -> Result<Option<String>> {
        let mut checks = Checks::new();
        let mut name = check_name(&mut checks, &person.name);
        if checks.done().is_err() {
            email.local_part().clone_into(&mut name);
        }
        let identity = self.identity(provider, person, &self.shared.ids.next());
        let events = [
            self.event(&identity, Action::SignUp, client),
            self.event(&identity, Action::IdentityAdd, client).on(&identity.id),
        ];
        let newcomer = Newcomer { email, name, identity };
        if !self.shared.stores.providers.create(&newcomer, &events).await? {
            return Ok(None);
        }
        let user_id = newcomer.identity.user_id;
        tracing::info!(user_id, provider, "account created");
        Ok(Some(user_id))
    }

    /// A session, or the challenge that comes before it.
    async fn logged_in(&self, user_id: &str, provider: &str, client: &ClientInfo) -> Result<Outcome> {
        let amr = vec!["fed".to_owned()];
        let throttle_key = Key::named(&format!("provider-login:{user_id}")).hex();
        let purpose = Purpose::Login { throttle_key, known_device: false, amr: amr.clone(), password: None };
        let chain = Chain::User(user_id.to_owned());
        let event = self.shared.journal.event(chain, Action::Login, client).by(user_id).because(provider);
        if let Some(challenge) = self.factors.challenge(user_id, purpose).await? {
            self.shared.stores.throttles.note(&event.because("second factor asked for")).await?;
            return Ok(Outcome::Challenge(challenge));
        }
        let opening = Opening {
            user_id,
            client_id: WEB_CLIENT,
            scope: FULL_SCOPE,
            amr,
            authenticated_at: None,
            password: None,
            client,
            forgiven: None,
            event,
        };
        Ok(Outcome::Pair(self.sessions.open(opening).await?))
    }

    /// What goes with a change of an account's identities; nothing when there is no such account.
    async fn notice(&self, user_id: &str, what: &str, event: Event) -> Result<Option<Notice>> {
        let Some(owner) = self.shared.stores.accounts.find(user_id).await? else { return Ok(None) };
        let letter = Letter::identities_changed(&owner.email, what, public_url(&self.shared));
        Ok(Some(Notice { mail: self.shared.mailroom.envelope(&letter)?, event }))
    }

    fn party(&self, provider: &str) -> Result<&RelyingParty> {
        self.parties.get(provider).ok_or_else(|| Error::not_found("provider"))
    }

    fn identity(&self, provider: &str, person: &Person, user_id: &str) -> Identity {
        Identity {
            id: self.shared.ids.next(),
            user_id: user_id.to_owned(),
            provider: provider.to_owned(),
            subject: person.subject.clone(),
            email: address(person).map(|email| email.given).unwrap_or_default(),
            created_at: self.shared.clock.now_ms(),
        }
    }

    fn event(&self, identity: &Identity, action: Action, client: &ClientInfo) -> Event {
        let chain = Chain::User(identity.user_id.clone());
        self.shared.journal.event(chain, action, client).by(&identity.user_id).because(&identity.provider)
    }
}

/// The ids of the providers that there are.
pub(in crate::domain) fn offered(shared: &Shared) -> Vec<&str> {
    shared.config.providers.keys().map(String::as_str).collect()
}

/// What keeps owners from locking themselves out.
pub(in crate::domain) fn last_login_method() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "LAST_LOGIN_METHOD",
        "this is the only way into the account; set a password or add a passkey first",
    )
}

/// Whether the settings of a provider make sense; what is wrong otherwise, with the name of the key.
pub(crate) fn check(id: &str, config: &crate::config::ProviderConfig) -> anyhow::Result<()> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    anyhow::ensure!(
        (1..=40).contains(&id.len()) && id.bytes().all(word),
        "providers.{id}: the id must be 1 to 40 of a-z, 0-9 and -"
    );
    let url = |key: &str, text: &str| {
        let url: reqwest::Url =
            text.parse().map_err(|_| anyhow!("providers.{id}.{key} is not an absolute URL"))?;
        let plain = url.fragment().is_none();
        anyhow::ensure!(plain && url.has_host(), "providers.{id}.{key} must have a host and no fragment");
        Ok(url)
    };
    let issuer = url("issuer", &config.issuer)?;
    anyhow::ensure!(
        may_ask(&issuer, true) && issuer.query().is_none(),
        "providers.{id}.issuer must be an https:// URL, or http:// on this machine"
    );
    url("redirect_url", &config.redirect_url)?;
    for (key, value) in [("name", &config.name), ("client_id", &config.client_id)] {
        anyhow::ensure!(!value.trim().is_empty(), "providers.{id}.{key} is required");
    }
    let scopes =
        config.scopes.iter().all(|scope| !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic()));
    anyhow::ensure!(scopes, "providers.{id}.scopes must be words without spaces");
    Ok(())
}

fn context(hash: TokenHash) -> String {
    let hex: String = hash.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("provider-login:{hex}")
}

/// The address at the provider, if it is one.
fn address(person: &Person) -> Option<Email> {
    let mut checks = Checks::new();
    let email = Email::check(&mut checks, &person.email);
    checks.done().is_ok().then_some(email)
}

fn identity_taken() -> Error {
    Error::new(
        Kind::AlreadyExists,
        "IDENTITY_TAKEN",
        "this account at the provider belongs to another account",
    )
}
