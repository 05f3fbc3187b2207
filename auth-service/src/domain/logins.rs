//! Proofs with a password: logins, and new proofs of who a caller is. Throttled, alike for every reason to
//! refuse one, and recorded.

use std::sync::Arc;

use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, field::Checks};

use super::{
    Shared,
    audit::{Action, Chain, Event},
    email::Email,
    hashing::{Place, Verdict},
    known_devices,
    password::Password,
    second_factors::{Factors, Purpose},
    secret::{self, TokenHash},
    sessions::{FULL_SCOPE, Opening, Outcome, Sessions, WEB_CLIENT, invalid_credentials},
    throttle::{Admission, Key, Rules, Turns},
};
use crate::store::accounts::Credential;

/// Checks passwords.
#[derive(Debug)]
pub(crate) struct Logins {
    shared: Shared,
    sessions: Arc<Sessions>,
    factors: Arc<Factors>,
    rules: Rules,
    turns: Turns,
}

/// What somebody brings to log in.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) email: String,
    pub(crate) password: SecretString,
    /// The device token of an earlier login; anything else is as good as none.
    pub(crate) device: Option<SecretString>,
}

/// What a look at a password found.
#[derive(Debug)]
enum Judgement {
    /// It is the account's.
    Proven(Credential),
    /// It opens nothing; the caller is not told why.
    Refused(Option<Credential>, Refusal),
}

/// Why a password opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It was not looked at: there were too many failures just before.
    Locked,
    /// It was not looked at: there were too many failures in a row to heal by waiting.
    Exhausted,
    UnknownAccount,
    WrongPassword,
    Disabled,
    NotVerified,
}

impl Refusal {
    /// What the audit log says.
    fn reason(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Exhausted => "too many failures",
            Self::UnknownAccount => "unknown account",
            Self::WrongPassword => "wrong password",
            Self::Disabled => "account disabled",
            Self::NotVerified => "address not verified",
        }
    }

    fn is_throttled(self) -> bool {
        matches!(self, Self::Locked | Self::Exhausted)
    }
}

impl Logins {
    pub(crate) fn new(shared: &Shared, sessions: Arc<Sessions>, factors: Arc<Factors>) -> Self {
        let rules = Rules::new(&shared.config.throttle);
        Self { shared: shared.clone(), sessions, factors, rules, turns: Turns::default() }
    }

    /// Opens a session, or asks for a second factor. UNAUTHENTICATED (`INVALID_CREDENTIALS`) for every reason
    /// to refuse it; RESOURCE_EXHAUSTED when too many log in at once.
    pub(crate) async fn login(&self, login: &Login, client: &ClientInfo) -> Result<Outcome> {
        let mut checks = Checks::new();
        let email = Email::check(&mut checks, &login.email);
        let password = Password::check_login(&mut checks, &login.password);
        checks.done()?;

        let device = self.known_device(&email, login.device.as_ref()).await?;
        let key = device.map_or_else(|| Key::of(&email), Key::of_device);
        let place = self.shared.hasher.place()?;
        let _turn = self.turns.take(&key).await;
        let credential = self.shared.stores.accounts.credential(&email.canonical).await?;
        let Credential { user_id, version, .. } =
            match self.judge(&place, &key, &password, credential).await? {
                Judgement::Proven(credential) => credential,
                Judgement::Refused(credential, refusal) => {
                    count_login(if refusal.is_throttled() { "throttled" } else { "failure" });
                    let chain =
                        credential.map_or_else(|| key.chain(), |credential| Chain::User(credential.user_id));
                    let event = self.shared.journal.event(chain, Action::Login, client);
                    return Err(self.refuse(refusal, device, event).await);
                }
            };
        count_login("success");
        let amr = vec!["pwd".to_owned()];
        let event =
            self.shared.journal.event(Chain::User(user_id.clone()), Action::Login, client).by(&user_id);
        let purpose = Purpose::Login {
            throttle_key: key.hex(),
            known_device: device.is_some(),
            amr: amr.clone(),
            password: Some(version),
        };
        if let Some(challenge) = self.factors.challenge(&user_id, purpose).await? {
            self.shared.stores.throttles.note(&event.because("second factor asked for")).await?;
            return Ok(Outcome::Challenge(challenge));
        }
        let opening = Opening {
            user_id: &user_id,
            client_id: WEB_CLIENT,
            scope: FULL_SCOPE,
            amr,
            authenticated_at: None,
            password: Some(version),
            client,
            forgiven: Some(&key),
            event,
        };
        Ok(Outcome::Pair(self.sessions.open(opening).await?))
    }

    /// Proves the caller anew by the password, or asks for the second factor. The failures of a session are
    /// its own: strangers who guess elsewhere do not lock its owner out. FAILED_PRECONDITION (`NO_PASSWORD`)
    /// for an account without one; UNAUTHENTICATED (`INVALID_CREDENTIALS`) for every reason to refuse it.
    pub(crate) async fn reauthenticate(
        &self,
        caller: &AuthContext,
        password: &SecretString,
        client: &ClientInfo,
    ) -> Result<Outcome> {
        let mut checks = Checks::new();
        let password = Password::check_login(&mut checks, password);
        checks.done()?;

        let (user_id, session_id) = (caller.user_id(), caller.session_id());
        let key = Key::of_session(session_id);
        let place = self.shared.hasher.place()?;
        let _turn = self.turns.take(&key).await;
        let credential = self.shared.stores.accounts.credential_of(user_id).await?;
        let credential = credential.ok_or_else(no_password)?;
        let event = self.shared.journal.of_caller(caller, Action::Reauthenticate, client).on(session_id);
        if let Judgement::Refused(_, refusal) = self.judge(&place, &key, &password, Some(credential)).await? {
            return Err(self.refuse(refusal, None, event).await);
        }
        let purpose = Purpose::Reauthenticate { session_id: session_id.to_owned() };
        if let Some(challenge) = self.factors.challenge(user_id, purpose).await? {
            self.shared.stores.throttles.note(&event.because("second factor asked for")).await?;
            return Ok(Outcome::Challenge(challenge));
        }
        let pair = self.sessions.reauthenticated(user_id, session_id, &["pwd".to_owned()], event).await?;
        Ok(Outcome::Pair(pair))
    }

    /// The presented device, if it is one of the account with this address.
    async fn known_device(&self, email: &Email, token: Option<&SecretString>) -> Result<Option<TokenHash>> {
        let Some(hash) = token.and_then(secret::hash) else { return Ok(None) };
        let since = known_devices::known_since(self.shared.clock.now_ms());
        let known = self.shared.stores.known_devices.knows(&email.canonical, hash, since).await?;
        Ok(known.then_some(hash))
    }

    /// Looks at a password, unless there were too many failures. For an unknown address it costs the same
    /// hash; a second one, of today's parameters, only what is let in.
    async fn judge(
        &self,
        place: &Place,
        key: &Key,
        password: &Password,
        credential: Option<Credential>,
    ) -> Result<Judgement> {
        let (stores, hasher) = (&self.shared.stores, &self.shared.hasher);
        let now = self.shared.clock.now_ms();
        if let Admission::Locked(wait) = stores.throttles.admit(key, &self.rules, now).await? {
            let refusal = if wait.is_some() { Refusal::Locked } else { Refusal::Exhausted };
            return Ok(Judgement::Refused(credential, refusal));
        }
        let stored = credential.as_ref().map(|credential| credential.password_hash.as_str());
        let verdict = hasher.verify(place, password, stored).await?;
        let Some(credential) = credential else {
            return Ok(Judgement::Refused(None, Refusal::UnknownAccount));
        };
        let refusal = if verdict == Verdict::Wrong {
            Some(Refusal::WrongPassword)
        } else if credential.disabled {
            Some(Refusal::Disabled)
        } else if self.shared.config.account.verify_email && !credential.verified {
            Some(Refusal::NotVerified)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Ok(Judgement::Refused(Some(credential), refusal));
        }
        if verdict == Verdict::RightButOutdated {
            let hash = hasher.hash(place, password).await?;
            stores.accounts.rehash(&credential, &hash).await?;
            tracing::info!(user_id = credential.user_id, "password hashed again with today's parameters");
        }
        Ok(Judgement::Proven(credential))
    }

    /// Records a refusal, and answers it. A device with too many failures is known no more: its owner goes
    /// on as anybody, and the guesses that it had ahead of strangers end.
    async fn refuse(&self, refusal: Refusal, device: Option<TokenHash>, event: Event) -> Error {
        let done = async {
            if let (Refusal::Exhausted, Some(device)) = (refusal, device) {
                self.shared.stores.known_devices.forget(device).await?;
            }
            self.shared.stores.throttles.note(&event.failed(refusal.reason())).await
        };
        done.await.err().unwrap_or_else(invalid_credentials)
    }
}

/// What an account without a password cannot do.
pub(super) fn no_password() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "NO_PASSWORD",
        "this account has no password; ask for a reset by mail to set one",
    )
}

fn count_login(outcome: &'static str) {
    metrics::counter!("tollgate_logins_total", "outcome" => outcome).increment(1);
}
