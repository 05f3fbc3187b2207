//! Second factors: what an account has set up, the challenges of logins that wait for one, and logins with a
//! passkey alone. Every change is written to the audit log and mailed to the owner in its own transaction.

mod challenges;
mod passkeys;
mod recovery;
mod relying_party;
mod totp;

use std::sync::Arc;

use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result};

use super::{
    Shared,
    accounts::User,
    audit::{Action, Event},
    mail::{Envelope, Letter},
    sessions::Sessions,
    throttle::{Rules, Turns},
};
use crate::config::PasskeyConfig;
use relying_party::RelyingParty;

pub(crate) use challenges::Proof;

/// The most passkeys of an account.
pub(crate) const MAX_PASSKEYS: i64 = 20;
/// Wrong one-time passwords in one step, after which all are refused until the next.
pub(crate) const MAX_TRIES_A_STEP: i64 = 3;

/// Seconds that a challenge, and a ceremony of a passkey, waits for its answer.
const WAITS: u32 = 300;

/// What a challenge is for: what happens when it is met.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Purpose {
    /// A session opens.
    Login {
        /// Whose failed logins are forgiven then: a throttle key in hexadecimal digits.
        throttle_key: String,
        /// Whether that is a known device.
        #[serde(default)]
        known_device: bool,
        /// How the owner has proven who they are so far (RFC 8176).
        amr: Vec<String>,
        /// The version of the password that it was proven with; none where it was by something else.
        #[serde(default)]
        password: Option<i64>,
    },
    /// The session of the caller counts as proven anew.
    Reauthenticate {
        /// The session.
        session_id: String,
    },
}

/// Something to prove before a login, or a new proof, is complete.
#[derive(Debug)]
pub(crate) struct Challenge {
    /// What the answer names it by.
    pub(crate) secret: SecretString,
    /// What proves it: `TOTP`, `RECOVERY_CODE`, `PASSKEY`.
    pub(crate) methods: Vec<&'static str>,
    /// Seconds until it expires.
    pub(crate) expires_in: u32,
}

/// What a browser asks an authenticator.
#[derive(Debug)]
pub(crate) struct Ceremony {
    /// What the call that finishes it takes; absent where a challenge names it already.
    pub(crate) secret: Option<SecretString>,
    /// The argument of `navigator.credentials.create` or `.get`.
    pub(crate) options: serde_json::Value,
}

/// What an account has set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) totp: bool,
    pub(crate) recovery_codes_left: i64,
    /// The oldest first.
    pub(crate) passkeys: Vec<Passkey>,
}

/// The one-time passwords of an account.
#[derive(Debug, Clone)]
pub(crate) struct Totp {
    pub(crate) sealed_secret: Vec<u8>,
    pub(crate) confirmed: bool,
    pub(crate) tried_step: i64,
    /// Wrong codes in `tried_step`.
    pub(crate) tries: i64,
}

/// A code of one-time passwords that was right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TotpUse<'a> {
    pub(crate) user_id: &'a str,
    /// The secret that it was right for.
    pub(crate) sealed_secret: &'a [u8],
    /// The step of the code: it must be later than all that were used.
    pub(crate) step: i64,
    /// The step that the clock is in.
    pub(crate) current: i64,
}

/// A recovery code as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct RecoveryCode {
    pub(crate) id: String,
    /// A PHC string.
    pub(crate) hash: String,
}

/// A passkey as it is stored. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passkey {
    pub(crate) id: String,
    pub(crate) user_id: String,
    /// base64url; unique over all accounts.
    pub(crate) credential_id: String,
    pub(crate) name: String,
    /// The public key and its counter as JSON, in the form of webauthn-rs.
    pub(crate) document: String,
    pub(crate) created_at: i64,
    pub(crate) last_used_at: Option<i64>,
}

/// A use of a passkey: it counts only if the passkey is still what it was when the use was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PasskeyUse<'a> {
    pub(crate) passkey: &'a Passkey,
    /// The document with the new counter.
    pub(crate) document: &'a str,
}

/// What met a challenge.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spent<'a> {
    Totp(TotpUse<'a>),
    /// The id of a recovery code.
    RecoveryCode(&'a str),
    Passkey(PasskeyUse<'a>),
}

/// What became of a factor that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is the account's first, and the recovery codes are stored.
    First,
    /// It is one more.
    Further,
    /// It would be the first, and there are no recovery codes to store with it: nothing was done.
    NeedsCodes,
    /// The account has as many as it may: nothing was done.
    Full,
    /// It was used before, or is another account's: nothing was done.
    Taken,
}

/// What goes with a change in its transaction.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) mail: Envelope,
    pub(crate) event: Event,
}

/// Everything about second factors.
#[derive(Debug)]
pub(crate) struct Factors {
    shared: Shared,
    sessions: Arc<Sessions>,
    relying_party: RelyingParty,
    rules: Rules,
    turns: Turns,
}

impl Factors {
    /// An error when the configuration of passkeys is none ([`check`]).
    pub(crate) fn new(shared: &Shared, sessions: Arc<Sessions>) -> anyhow::Result<Self> {
        let relying_party = RelyingParty::new(&shared.config.passkeys)?;
        let rules = Rules::healing(&shared.config.throttle);
        Ok(Self { shared: shared.clone(), sessions, relying_party, rules, turns: Turns::default() })
    }

    /// What the caller has set up.
    pub(crate) async fn setup(&self, caller: &AuthContext) -> Result<Setup> {
        self.shared.stores.second_factors.setup(caller.user_id()).await
    }

    /// The caller's account.
    async fn owner(&self, caller: &AuthContext) -> Result<User> {
        self.shared.stores.accounts.find(caller.user_id()).await?.ok_or_else(|| Error::not_found("account"))
    }

    /// What goes with a change of the caller's factors; `what` happened, in a sentence without names.
    async fn notice(
        &self,
        caller: &AuthContext,
        action: Action,
        what: &str,
        client: &ClientInfo,
    ) -> Result<Notice> {
        let owner = self.owner(caller).await?;
        let event = self.shared.journal.of_caller(caller, action, client);
        Ok(Notice { mail: self.letter(&owner, what)?, event })
    }

    fn letter(&self, owner: &User, what: &str) -> Result<Envelope> {
        let url = self.shared.config.account.public_url.trim_end_matches('/');
        let text = format!(
            "{what}\n\nIf it was not you, change your password and look at your second factors and sessions at \
             once:\n\n{url}\n"
        );
        let subject = "Your two-factor settings were changed".to_owned();
        self.shared.mailroom.envelope(&Letter { to: owner.email.clone(), subject, text })
    }
}

/// Refuses a configuration with which passkeys could not work, or would work elsewhere too.
pub(crate) fn check(config: &PasskeyConfig) -> anyhow::Result<()> {
    RelyingParty::new(config).map(|_| ())
}

/// The one answer to every second factor that does not count, and to every challenge that does not.
fn invalid_second_factor() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "INVALID_SECOND_FACTOR",
        "the second factor is wrong, or the challenge is over, or there were too many attempts; try again, or \
         log in again",
    )
}
