//! Passkeys: adding and removing them, and logins with one alone. They verify their user themselves, so
//! one is both factors.

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, field::Checks};
use webauthn_rs::prelude::{PasskeyRegistration, PublicKeyCredential, RegisterPublicKeyCredential};

use super::{
    Added, Ceremony, Factors, MAX_PASSKEYS, Passkey, PasskeyUse, WAITS,
    relying_party::{Assertion, credential_id},
};
use crate::domain::{
    audit::{Action, Chain},
    pending::{self, Pending},
    providers::{Removal, last_login_method, offered},
    secret::{self, TokenHash},
    sessions::{FULL_SCOPE, Opening, TokenPair, WEB_CLIENT, invalid_credentials},
};

const MAX_NAME: usize = 100;

impl Factors {
    /// Asks for a new passkey. FAILED_PRECONDITION (`PASSKEY_LIMIT`) when the account has 20.
    pub(crate) async fn start_passkey_registration(&self, caller: &AuthContext) -> Result<Ceremony> {
        let owner = self.owner(caller).await?;
        let others = self.shared.stores.second_factors.passkeys(&owner.id).await?;
        if i64::try_from(others.len()).unwrap_or(i64::MAX) >= MAX_PASSKEYS {
            return Err(passkey_limit());
        }
        let (options, state) = self.relying_party.start_registration(&owner, &others)?;
        let secret = self.wait(pending::Kind::PasskeyRegistration, Some(owner.id), &state).await?;
        Ok(Ceremony { secret: Some(secret), options })
    }

    /// Adds the passkey that was made. New recovery codes when it is the account's first second factor.
    /// FAILED_PRECONDITION (`INVALID_CEREMONY`, `PASSKEY_LIMIT`), ALREADY_EXISTS (`PASSKEY_EXISTS`).
    pub(crate) async fn finish_passkey_registration(
        &self,
        caller: &AuthContext,
        ceremony: &SecretString,
        credential: Value,
        name: &str,
        client: &ClientInfo,
    ) -> Result<(Passkey, Vec<SecretString>)> {
        let name = name.trim();
        Checks::new().length("name", name, 1, MAX_NAME).printable("name", name, false).done()?;
        let credential: RegisterPublicKeyCredential = credential_of(credential, "credential")?;
        let user_id = caller.user_id();
        let (owner, state): (_, PasskeyRegistration) = self
            .take_ceremony(ceremony, pending::Kind::PasskeyRegistration)
            .await?
            .ok_or_else(invalid_ceremony)?;
        if owner.as_deref() != Some(user_id) {
            return Err(invalid_ceremony());
        }
        let registered = self.relying_party.finish_registration(&credential, &state)?;
        let registered = registered
            .ok_or_else(|| Error::field("credential", "must be a passkey made for this ceremony"))?;
        let passkey = Passkey {
            id: self.shared.ids.next(),
            user_id: user_id.to_owned(),
            credential_id: registered.credential_id,
            name: name.to_owned(),
            document: registered.document,
            created_at: self.shared.clock.now_ms(),
            last_used_at: None,
        };
        let codes = self.add_passkey(caller, &passkey, client).await?;
        tracing::info!(user_id, passkey_id = passkey.id, "passkey added");
        Ok((passkey, codes))
    }

    async fn add_passkey(
        &self,
        caller: &AuthContext,
        passkey: &Passkey,
        client: &ClientInfo,
    ) -> Result<Vec<SecretString>> {
        let what = "A passkey was added to your Tollgate account.";
        let mut notice = self.notice(caller, Action::PasskeyAdd, what, client).await?;
        notice.event = notice.event.on(&passkey.id);
        let mut codes = self.no_codes();
        loop {
            match self.shared.stores.second_factors.add_passkey(passkey, &codes.stored, &notice).await? {
                Added::NeedsCodes => codes = self.new_codes().await?,
                Added::Full => return Err(passkey_limit()),
                Added::Taken => {
                    let message = "this passkey belongs to an account already";
                    return Err(Error::new(Kind::AlreadyExists, "PASSKEY_EXISTS", message));
                }
                added => {
                    self.shared.mail_nudge.now();
                    return Ok(codes.shown_if(added));
                }
            }
        }
    }

    /// Removes a passkey of the caller. NOT_FOUND when it is none of theirs; FAILED_PRECONDITION
    /// (`LAST_LOGIN_METHOD`) when it is the only way into the account.
    pub(crate) async fn delete_passkey(
        &self,
        caller: &AuthContext,
        id: &str,
        client: &ClientInfo,
    ) -> Result<()> {
        Checks::new().id("passkeyId", id).done()?;
        let what = "A passkey was removed from your Tollgate account.";
        let mut notice = self.notice(caller, Action::PasskeyRemove, what, client).await?;
        notice.event = notice.event.on(id);
        let (store, offered) = (&self.shared.stores.second_factors, offered(&self.shared));
        match store.delete_passkey(caller.user_id(), id, &offered, &notice).await? {
            Removal::Removed => {}
            Removal::Unknown => return Err(Error::not_found("passkey")),
            Removal::LastWay => return Err(last_login_method()),
        }
        self.shared.mail_nudge.now();
        tracing::info!(user_id = caller.user_id(), passkey_id = id, "passkey removed");
        Ok(())
    }

    /// Asks for a login with any passkey: it says itself whose it is.
    pub(crate) async fn start_passkey_login(&self) -> Result<Ceremony> {
        let (options, state) = self.relying_party.start_assertion(&[])?;
        let secret = self.wait(pending::Kind::PasskeyLogin, None, &state).await?;
        Ok(Ceremony { secret: Some(secret), options })
    }

    /// Opens a session for the holder of a passkey, however often the account's password was guessed.
    /// UNAUTHENTICATED (`INVALID_CREDENTIALS`) for every reason to refuse it.
    pub(crate) async fn finish_passkey_login(
        &self,
        ceremony: &SecretString,
        credential: Value,
        client: &ClientInfo,
    ) -> Result<TokenPair> {
        let credential: PublicKeyCredential = credential_of(credential, "credential")?;
        let Some(passkey) = self.proven_passkey(ceremony, &credential, client).await? else {
            count_login("failure");
            return Err(invalid_credentials());
        };
        let user_id = &passkey.user_id;
        let event = self.shared.journal.event(Chain::User(user_id.clone()), Action::Login, client);
        let opening = Opening {
            user_id,
            authenticated_at: None,
            password: None,
            client_id: WEB_CLIENT,
            scope: FULL_SCOPE,
            amr: ["hwk", "user", "mfa"].map(str::to_owned).to_vec(),
            client,
            forgiven: None,
            event: event.by(user_id).because("passkey"),
        };
        let pair = self.sessions.open(opening).await?;
        count_login("success");
        Ok(pair)
    }

    /// The passkey whose holder is here, if its account may log in. The ceremony is used up.
    async fn proven_passkey(
        &self,
        ceremony: &SecretString,
        credential: &PublicKeyCredential,
        client: &ClientInfo,
    ) -> Result<Option<Passkey>> {
        let Some((_, state)) = self.take_ceremony(ceremony, pending::Kind::PasskeyLogin).await? else {
            return Ok(None);
        };
        // Without the account's handle it is an answer to another question.
        if credential.get_user_unique_id().is_none() {
            return Ok(None);
        }
        let store = &self.shared.stores.second_factors;
        let Some((passkey, verified)) = store.passkey(&credential_id(credential)).await? else {
            return Ok(None);
        };
        if self.shared.config.account.verify_email && !verified {
            return Ok(None);
        }
        let document = match self.relying_party.check_assertion(credential, state, &passkey)? {
            Assertion::Right(document) => document,
            Assertion::Wrong => return Ok(None),
            Assertion::CounterWentBack => {
                self.alarm(&passkey, Action::Login, client).await?;
                return Ok(None);
            }
        };
        let using = PasskeyUse { passkey: &passkey, document: &document };
        let counts = store.use_passkey(using, self.shared.clock.now_ms()).await?;
        Ok(counts.then_some(passkey))
    }

    /// There may be a copy of a passkey: the log, the metrics and the audit log say so.
    pub(super) async fn alarm(&self, passkey: &Passkey, action: Action, client: &ClientInfo) -> Result<()> {
        let (user_id, passkey_id) = (&passkey.user_id, &passkey.id);
        tracing::warn!(user_id, passkey_id, "the counter of a passkey went back: it may have been copied");
        metrics::counter!("tollgate_passkey_counter_regressions_total").increment(1);
        let event = self.shared.journal.event(Chain::User(user_id.clone()), action, client);
        let event = event.on(passkey_id).failed("passkey counter went back");
        self.shared.stores.second_factors.fail(None, &event).await
    }

    /// Stores the state of a ceremony, sealed; the secret that names it.
    async fn wait(
        &self,
        kind: pending::Kind,
        user_id: Option<String>,
        state: &impl serde::Serialize,
    ) -> Result<SecretString> {
        let (secret, hash) = secret::issue();
        let now = self.shared.clock.now_ms();
        let pending = Pending {
            hash,
            kind,
            user_id,
            payload: self.seal(hash, state)?,
            created_at: now,
            expires_at: now + i64::from(WAITS) * 1_000,
        };
        self.shared.stores.pending.put(&pending).await?;
        Ok(secret)
    }

    /// Takes a ceremony: whose it is, and its state. It is used up whatever comes of it.
    async fn take_ceremony<T: DeserializeOwned>(
        &self,
        ceremony: &SecretString,
        kind: pending::Kind,
    ) -> Result<Option<(Option<String>, T)>> {
        let Some(hash) = secret::hash(ceremony) else { return Ok(None) };
        let found = self.shared.stores.pending.take(hash, kind, self.shared.clock.now_ms()).await?;
        found.map(|found| Ok((found.user_id, self.unseal(hash, &found.payload)?))).transpose()
    }

    /// The payload of what waits under a secret: it opens nowhere else.
    pub(super) fn seal(&self, hash: TokenHash, state: &impl serde::Serialize) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(state).map_err(Error::internal)?;
        self.shared.sealer.seal(&context(hash), &text).map_err(Error::internal)
    }

    pub(super) fn unseal<T: DeserializeOwned>(&self, hash: TokenHash, payload: &[u8]) -> Result<T> {
        let text = self.shared.sealer.open(&context(hash), payload).map_err(Error::internal)?;
        serde_json::from_slice(&text).map_err(Error::internal)
    }
}

/// Reads what an authenticator made.
pub(super) fn credential_of<T: DeserializeOwned>(credential: Value, field: &str) -> Result<T> {
    serde_json::from_value(credential)
        .map_err(|_| Error::field(field, "must be a PublicKeyCredential as JSON"))
}

fn context(hash: TokenHash) -> String {
    hash.0.iter().fold("pending:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn count_login(outcome: &'static str) {
    metrics::counter!("tollgate_passkey_logins_total", "outcome" => outcome).increment(1);
}

fn passkey_limit() -> Error {
    let message = "the account has 20 passkeys; remove one first";
    Error::new(Kind::FailedPrecondition, "PASSKEY_LIMIT", message)
}

fn invalid_ceremony() -> Error {
    let message = "the ceremony is unknown, used or over; start again";
    Error::new(Kind::FailedPrecondition, "INVALID_CEREMONY", message)
}
