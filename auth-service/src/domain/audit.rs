//! What happened to accounts and organizations: events in chains, one for each account and organization.
//! Each event is hashed with the hash before it, so that a change of any of them shows.

use serde::Deserialize;
use service_kit::{AuthContext, ClientInfo, Clock, Ids};
use sha2::{Digest as _, Sha256};

/// The hash before the first event of a chain.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

/// What can happen. The names are part of the contract with whoever reads the log: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    SignUp,
    EmailVerify,
    EmailVerifyRequest,
    Login,
    SecondFactor,
    Reauthenticate,
    RefreshReuse,
    Logout,
    SessionEnd,
    PasswordChange,
    PasswordResetRequest,
    PasswordReset,
    ProfileUpdate,
    AccountDisable,
    AccountEnable,
    AccountExpire,
    TotpAdd,
    TotpRemove,
    RecoveryCodesRenew,
    RecoveryCodeUse,
    PasskeyAdd,
    PasskeyRemove,
    IdentityAdd,
    IdentityRemove,
    DeviceApprove,
    DeviceDeny,
    TokenCreate,
    TokenRevoke,
    ServiceAccountCreate,
    ServiceAccountDelete,
    ServiceAccountKeyCreate,
    ServiceAccountKeyRevoke,
    KeyRotate,
    KeyRevoke,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SignUp => "auth.signup",
            Self::EmailVerify => "auth.email.verify",
            Self::EmailVerifyRequest => "auth.email.verify.request",
            Self::Login => "auth.login",
            Self::SecondFactor => "auth.login.second-factor",
            Self::Reauthenticate => "auth.reauthenticate",
            Self::RefreshReuse => "auth.refresh.reuse",
            Self::Logout => "auth.logout",
            Self::SessionEnd => "auth.session.end",
            Self::PasswordChange => "auth.password.change",
            Self::PasswordResetRequest => "auth.password.reset.request",
            Self::PasswordReset => "auth.password.reset",
            Self::ProfileUpdate => "auth.profile.update",
            Self::AccountDisable => "auth.account.disable",
            Self::AccountEnable => "auth.account.enable",
            Self::AccountExpire => "auth.account.expire",
            Self::TotpAdd => "auth.totp.add",
            Self::TotpRemove => "auth.totp.remove",
            Self::RecoveryCodesRenew => "auth.recovery-codes.renew",
            Self::RecoveryCodeUse => "auth.recovery-codes.use",
            Self::PasskeyAdd => "auth.passkey.add",
            Self::PasskeyRemove => "auth.passkey.remove",
            Self::IdentityAdd => "auth.identity.add",
            Self::IdentityRemove => "auth.identity.remove",
            Self::DeviceApprove => "auth.device.approve",
            Self::DeviceDeny => "auth.device.deny",
            Self::TokenCreate => "auth.token.create",
            Self::TokenRevoke => "auth.token.revoke",
            Self::ServiceAccountCreate => "auth.service-account.create",
            Self::ServiceAccountDelete => "auth.service-account.delete",
            Self::ServiceAccountKeyCreate => "auth.service-account.key.create",
            Self::ServiceAccountKeyRevoke => "auth.service-account.key.revoke",
            Self::KeyRotate => "auth.key.rotate",
            Self::KeyRevoke => "auth.key.revoke",
        }
    }
}

/// Whose log an event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chain {
    /// An account's.
    User(String),
    /// An organization's.
    Organization(String),
    /// Nobody's: attempts on accounts that do not exist, spread so that they seldom wait for each other.
    Nobody(Shard),
    /// The service's own: its keys.
    System,
}

/// One of sixteen chains of nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard(u8);

impl Shard {
    /// The one of a hash.
    pub(crate) fn of(hash: &[u8; 32]) -> Self {
        Self(hash[0] >> 4)
    }
}

impl Chain {
    /// The form that is stored.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::User(id) => format!("user:{id}"),
            Self::Organization(id) => format!("organization:{id}"),
            Self::Nobody(Shard(at)) => format!("nobody:{at:x}"),
            Self::System => "system".to_owned(),
        }
    }
}

/// Something that happened. Made by [`Journal::event`]; recorded in the transaction of the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) chain: Chain,
    pub(crate) id: String,
    /// Unix milliseconds.
    pub(crate) at: i64,
    pub(crate) action: Action,
    pub(crate) success: bool,
    /// A short word, never what somebody typed.
    pub(crate) reason: String,
    /// Who did it; empty when nobody was proven.
    pub(crate) actor_id: String,
    /// What it was done to; empty when it is the actor.
    pub(crate) target_id: String,
    pub(crate) address: String,
    /// The first half of the SHA-256 of the User-Agent, in hexadecimal digits.
    pub(crate) device: String,
    pub(crate) request_id: String,
}

impl Event {
    /// It did not succeed, for this reason.
    pub(crate) fn failed(mut self, reason: impl Into<String>) -> Self {
        self.success = false;
        self.reason = reason.into();
        self
    }

    /// Adds what else is worth knowing.
    pub(crate) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Moves it to the log of whom it turned out to be about.
    pub(crate) fn into_chain(mut self, chain: Chain) -> Self {
        self.chain = chain;
        self
    }

    /// Says who did it.
    pub(crate) fn by(mut self, actor_id: &str) -> Self {
        actor_id.clone_into(&mut self.actor_id);
        self
    }

    /// Says what it was done to.
    pub(crate) fn on(mut self, target_id: &str) -> Self {
        target_id.clone_into(&mut self.target_id);
        self
    }

    /// The event at its place in the chain as JSON with fixed members in a fixed order: what is hashed.
    pub(crate) fn canonical(&self, sequence: i64) -> String {
        let Self { chain, id, at, action, success, reason, actor_id, target_id, address, device, request_id } =
            self;
        serde_json::json!([
            chain.name(),
            sequence,
            id,
            at,
            action.name(),
            success,
            reason,
            actor_id,
            target_id,
            address,
            device,
            request_id,
        ])
        .to_string()
    }
}

/// An event as it is read back from its canonical form, whose members it has in their order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) chain: String,
    /// The place in the chain, from 1.
    pub(crate) sequence: i64,
    pub(crate) id: String,
    /// Unix milliseconds.
    pub(crate) at: i64,
    pub(crate) action: String,
    pub(crate) success: bool,
    pub(crate) reason: String,
    pub(crate) actor_id: String,
    pub(crate) target_id: String,
    pub(crate) address: String,
    pub(crate) device: String,
    pub(crate) request_id: String,
}

impl Recorded {
    /// Reads what [`Event::canonical`] wrote.
    pub(crate) fn read(body: &str) -> serde_json::Result<Self> {
        serde_json::from_str(body)
    }
}

/// The hash of an event: SHA-256 of the 32 bytes of the hash before it, and of what it says.
pub(crate) fn link(previous: &[u8], body: &str) -> [u8; 32] {
    Sha256::new().chain_update(previous).chain_update(body).finalize().into()
}

/// Bytes as hexadecimal digits in lower case: how hashes are shown.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Begins events. Clones share their ids.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    clock: Clock,
    ids: Ids,
}

impl Journal {
    pub(crate) fn new(clock: Clock, ids: Ids) -> Self {
        Self { clock, ids }
    }

    /// An event that succeeded, as far as it is known: who, on what and why are added by its methods.
    pub(crate) fn event(&self, chain: Chain, action: Action, client: &ClientInfo) -> Event {
        let device = match client.device.as_str() {
            "" => String::new(),
            text => hex(&Sha256::digest(text)[..16]),
        };
        Event {
            chain,
            id: self.ids.next(),
            at: self.clock.now_ms(),
            action,
            success: true,
            reason: String::new(),
            actor_id: String::new(),
            target_id: String::new(),
            address: client.address_text(),
            device,
            request_id: client.request_id.clone(),
        }
    }

    /// What a caller did to his own account.
    pub(crate) fn of_caller(&self, caller: &AuthContext, action: Action, client: &ClientInfo) -> Event {
        self.event(Chain::User(caller.user_id().to_owned()), action, client).by(caller.user_id())
    }
}

#[cfg(test)]
mod tests;
