//! Challenges: what a login, or a new proof of a caller, waits for, and the few tries to meet it. Every
//! reason to refuse an answer looks alike.

use secrecy::SecretString;
use serde_json::Value;
use service_kit::{ClientInfo, Result};
use webauthn_rs::prelude::{DiscoverableAuthentication, PublicKeyCredential};

use super::{
    Ceremony, Challenge, Factors, PasskeyUse, Purpose, Spent, TotpUse, WAITS, invalid_second_factor,
    passkeys::credential_of,
    relying_party::{Assertion, credential_id},
};
use crate::domain::{
    audit::{Action, Chain, Event},
    mail::Envelope,
    pending::{Kind, Pending},
    secret::{self, TokenHash},
    sessions::{FULL_SCOPE, Opening, TokenPair, WEB_CLIENT},
    throttle::{Admission, Key},
};

/// Answers to one challenge, after which it is dead.
const MAX_TRIES: i64 = 5;

/// What somebody answers a challenge with.
#[derive(Debug)]
pub(crate) enum Proof {
    /// A one-time password.
    Totp(SecretString),
    RecoveryCode(SecretString),
    /// What a passkey made.
    Passkey(Box<PublicKeyCredential>),
}

/// What waits under a challenge; stored sealed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Waiting {
    purpose: Purpose,
    /// What a passkey was asked, if one was.
    ceremony: Option<DiscoverableAuthentication>,
}

/// A challenge that can still be met.
#[derive(Debug)]
struct Live {
    hash: TokenHash,
    user_id: String,
    payload: Vec<u8>,
    waiting: Waiting,
}

impl Live {
    /// What wrong answers count under.
    fn key(&self) -> Key {
        match &self.waiting.purpose {
            Purpose::Login { throttle_key, known_device: true, .. } => Key::of_second_factor_on(throttle_key),
            Purpose::Login { .. } => Key::of_second_factor(&self.user_id),
            Purpose::Reauthenticate { session_id } => Key::of_second_factor_in(session_id),
        }
    }
}

/// A proof that was right, as far as it can be known before it is used up.
#[derive(Debug)]
enum Right {
    Totp { sealed_secret: Vec<u8>, step: i64, current: i64 },
    RecoveryCode(String),
    Passkey { passkey: super::Passkey, document: String },
}

impl Right {
    /// How the owner has proven who they are by it (RFC 8176).
    fn methods(&self) -> &'static [&'static str] {
        match self {
            Self::Totp { .. } | Self::RecoveryCode(_) => &["otp", "mfa"],
            Self::Passkey { .. } => &["hwk", "user", "mfa"],
        }
    }

    fn spent<'a>(&'a self, user_id: &'a str) -> Spent<'a> {
        match self {
            Self::Totp { sealed_secret, step, current } => {
                Spent::Totp(TotpUse { user_id, sealed_secret, step: *step, current: *current })
            }
            Self::RecoveryCode(id) => Spent::RecoveryCode(id),
            Self::Passkey { passkey, document } => Spent::Passkey(PasskeyUse { passkey, document }),
        }
    }
}

impl Proof {
    /// Reads what a passkey made.
    pub(crate) fn passkey(credential: Value) -> Result<Self> {
        Ok(Self::Passkey(credential_of(credential, "passkey")?))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Totp(_) => "totp",
            Self::RecoveryCode(_) => "recovery-code",
            Self::Passkey(_) => "passkey",
        }
    }
}

impl Factors {
    /// A challenge for an account that has second factors; nothing for one that has none.
    pub(crate) async fn challenge(&self, user_id: &str, purpose: Purpose) -> Result<Option<Challenge>> {
        let setup = self.shared.stores.second_factors.setup(user_id).await?;
        if !setup.totp && setup.passkeys.is_empty() {
            return Ok(None);
        }
        let methods = [
            (setup.totp, "TOTP"),
            (setup.recovery_codes_left > 0, "RECOVERY_CODE"),
            (!setup.passkeys.is_empty(), "PASSKEY"),
        ];
        let (secret, hash) = secret::issue();
        let now = self.shared.clock.now_ms();
        let pending = Pending {
            hash,
            kind: Kind::Challenge,
            user_id: Some(user_id.to_owned()),
            payload: self.seal(hash, &Waiting { purpose, ceremony: None })?,
            created_at: now,
            expires_at: now + i64::from(WAITS) * 1_000,
        };
        self.shared.stores.pending.put(&pending).await?;
        let methods = methods.into_iter().filter_map(|(there, name)| there.then_some(name)).collect();
        Ok(Some(Challenge { secret, methods, expires_in: WAITS }))
    }

    /// Asks the account's passkeys for an answer to a challenge. Asking again replaces the question.
    /// UNAUTHENTICATED (`INVALID_SECOND_FACTOR`) when there is no such challenge or no passkey.
    pub(crate) async fn start_passkey_verification(&self, challenge: &SecretString) -> Result<Ceremony> {
        let live = self.live(challenge).await?.ok_or_else(invalid_second_factor)?;
        let store = &self.shared.stores.second_factors;
        let passkeys = store.passkeys(&live.user_id).await?;
        if passkeys.is_empty() {
            return Err(invalid_second_factor());
        }
        let (options, state) = self.relying_party.start_assertion(&passkeys)?;
        let waiting = Waiting { ceremony: Some(state), ..live.waiting };
        let payload = self.seal(live.hash, &waiting)?;
        if !store.replace_payload(live.hash, &live.payload, &payload).await? {
            return Err(invalid_second_factor());
        }
        Ok(Ceremony { secret: None, options })
    }

    /// Completes what a challenge holds up. UNAUTHENTICATED (`INVALID_SECOND_FACTOR`) for every reason to
    /// refuse it; RESOURCE_EXHAUSTED when too many codes are checked at once.
    pub(crate) async fn verify(
        &self,
        challenge: &SecretString,
        proof: Proof,
        client: &ClientInfo,
    ) -> Result<TokenPair> {
        let live = self.live(challenge).await?.ok_or_else(invalid_second_factor)?;
        let key = live.key();
        let hashes = matches!(proof, Proof::RecoveryCode(_));
        let place = hashes.then(|| self.shared.hasher.place()).transpose()?;
        let _turn = self.turns.take(&key).await;
        // Nobody guesses a passkey: whoever guesses codes must not keep its holder out.
        if !matches!(proof, Proof::Passkey(_)) && !self.is_admitted(&key).await? {
            count("throttled");
            return Err(invalid_second_factor());
        }
        let now = self.shared.clock.now_ms();
        let tried = self.shared.stores.pending.count_try(live.hash, Kind::Challenge, now).await?;
        if tried.is_none_or(|found| found.tries >= MAX_TRIES) {
            return Err(invalid_second_factor());
        }
        let method = proof.name();
        let mut wrong_at = None;
        let right = match (&proof, &place) {
            (Proof::Totp(code), _) => {
                wrong_at = Some(self.current_step());
                self.right_totp(&live.user_id, code).await?
            }
            (Proof::RecoveryCode(code), Some(place)) => {
                self.right_code(place, &live.user_id, code).await?.map(Right::RecoveryCode)
            }
            (Proof::RecoveryCode(_), None) => None,
            (Proof::Passkey(credential), _) => self.right_passkey(&live, credential, client).await?,
        };
        if let Some(right) = right
            && self.passes(&live, &right, &key, method, client).await?
        {
            count("success");
            return self.complete(&live, &right, method, client).await;
        }
        count("failure");
        let event = self.event(&live.user_id, Action::SecondFactor, client).failed(method);
        let wrong = wrong_at.map(|step| (live.user_id.as_str(), step));
        self.shared.stores.second_factors.fail(wrong, &event).await?;
        Err(invalid_second_factor())
    }

    /// The challenge under a secret, if it has tries left.
    async fn live(&self, challenge: &SecretString) -> Result<Option<Live>> {
        let Some(hash) = secret::hash(challenge) else { return Ok(None) };
        let now = self.shared.clock.now_ms();
        let found = self.shared.stores.pending.look(hash, Kind::Challenge, now).await?;
        let Some(found) = found.filter(|found| found.tries < MAX_TRIES) else { return Ok(None) };
        let Some(user_id) = found.user_id else { return Ok(None) };
        let waiting = self.unseal(hash, &found.payload)?;
        Ok(Some(Live { hash, user_id, payload: found.payload, waiting }))
    }

    async fn is_admitted(&self, key: &Key) -> Result<bool> {
        let now = self.shared.clock.now_ms();
        let admission = self.shared.stores.throttles.admit(key, &self.rules, now).await?;
        Ok(matches!(admission, Admission::Admitted(_)))
    }

    async fn right_totp(&self, user_id: &str, code: &SecretString) -> Result<Option<Right>> {
        let totp = self.shared.stores.second_factors.totp(user_id).await?.filter(|totp| totp.confirmed);
        let Some(totp) = totp else { return Ok(None) };
        let (step, current) = (self.right_step(user_id, &totp, code)?, self.current_step());
        Ok(step.map(|step| Right::Totp { sealed_secret: totp.sealed_secret, step, current }))
    }

    /// Checks the answer of a passkey to what it was asked for this challenge; each question counts once.
    async fn right_passkey(
        &self,
        live: &Live,
        credential: &PublicKeyCredential,
        client: &ClientInfo,
    ) -> Result<Option<Right>> {
        let Some(state) = live.waiting.ceremony.clone() else { return Ok(None) };
        let store = &self.shared.stores.second_factors;
        let answered = Waiting { purpose: live.waiting.purpose.clone(), ceremony: None };
        if !store.replace_payload(live.hash, &live.payload, &self.seal(live.hash, &answered)?).await? {
            return Ok(None);
        }
        let id = credential_id(credential);
        let passkeys = store.passkeys(&live.user_id).await?;
        let Some(passkey) = passkeys.into_iter().find(|passkey| passkey.credential_id == id) else {
            return Ok(None);
        };
        match self.relying_party.check_assertion(credential, state, &passkey)? {
            Assertion::Right(document) => Ok(Some(Right::Passkey { passkey, document })),
            Assertion::Wrong => Ok(None),
            Assertion::CounterWentBack => {
                self.alarm(&passkey, Action::SecondFactor, client).await?;
                Ok(None)
            }
        }
    }

    /// Uses the challenge and the proof up, and forgives the tries before: of calls side by side one may.
    async fn passes(
        &self,
        live: &Live,
        right: &Right,
        key: &Key,
        method: &str,
        client: &ClientInfo,
    ) -> Result<bool> {
        let (action, mail) = match right {
            Right::RecoveryCode(_) => (Action::RecoveryCodeUse, self.code_used(&live.user_id).await?),
            _ => (Action::SecondFactor, None),
        };
        let event = self.event(&live.user_id, action, client).by(&live.user_id).because(method);
        let spent = right.spent(&live.user_id);
        let store = &self.shared.stores.second_factors;
        let passed = store.pass(live.hash, &spent, key, mail.as_ref(), &event).await?;
        if passed && mail.is_some() {
            self.shared.mail_nudge.now();
        }
        Ok(passed)
    }

    async fn code_used(&self, user_id: &str) -> Result<Option<Envelope>> {
        let owner = self.shared.stores.accounts.find(user_id).await?;
        let what = "A recovery code was used in place of a second factor of your Tollgate account.";
        owner.map(|owner| self.letter(&owner, what)).transpose()
    }

    async fn complete(
        &self,
        live: &Live,
        right: &Right,
        method: &str,
        client: &ClientInfo,
    ) -> Result<TokenPair> {
        let (user_id, methods) = (live.user_id.as_str(), right.methods());
        let amr = |first: &[String]| -> Vec<String> {
            first.iter().map(String::as_str).chain(methods.iter().copied()).map(str::to_owned).collect()
        };
        match &live.waiting.purpose {
            Purpose::Login { throttle_key, amr: first, password, .. } => {
                let event = self.event(user_id, Action::Login, client).by(user_id).because(method);
                let key = Key::from_hex(throttle_key);
                let opening = Opening {
                    user_id,
                    authenticated_at: None,
                    password: *password,
                    client_id: WEB_CLIENT,
                    scope: FULL_SCOPE,
                    amr: amr(first),
                    client,
                    forgiven: key.as_ref(),
                    event,
                };
                self.sessions.open(opening).await
            }
            Purpose::Reauthenticate { session_id } => {
                let event = self.event(user_id, Action::Reauthenticate, client).by(user_id).because(method);
                let amr = amr(&["pwd".to_owned()]);
                self.sessions.reauthenticated(user_id, session_id, &amr, event).await
            }
        }
    }

    fn event(&self, user_id: &str, action: Action, client: &ClientInfo) -> Event {
        self.shared.journal.event(Chain::User(user_id.to_owned()), action, client)
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("tollgate_second_factors_total", "outcome" => outcome).increment(1);
}
