//! What waits to be used once, by whoever holds its secret, before its time is over: mailed links,
//! challenges of a login, ceremonies of passkeys, logins at a provider.

use super::secret::TokenHash;

/// What a secret is for. One of another kind is as good as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A mailed link to verify an address.
    EmailVerification,
    /// A mailed link to choose a new password.
    PasswordReset,
    /// A login, or a new proof of a caller, that waits for a second factor.
    Challenge,
    /// A passkey that is being registered.
    PasskeyRegistration,
    /// A login with a passkey alone.
    PasskeyLogin,
    /// A login at an OpenID Connect provider.
    ProviderLogin,
    /// Counts a letter: nobody holds its secret.
    LetterMark,
}

impl Kind {
    /// The form that is stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EmailVerification => "EMAIL_VERIFICATION",
            Self::PasswordReset => "PASSWORD_RESET",
            Self::Challenge => "CHALLENGE",
            Self::PasskeyRegistration => "PASSKEY_REGISTRATION",
            Self::PasskeyLogin => "PASSKEY_LOGIN",
            Self::ProviderLogin => "PROVIDER_LOGIN",
            Self::LetterMark => "LETTER_MARK",
        }
    }
}

/// Something that waits. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) hash: TokenHash,
    pub(crate) kind: Kind,
    pub(crate) user_id: Option<String>,
    /// What the kind says; sealed where it is secret.
    pub(crate) payload: Vec<u8>,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
}

/// What was found under a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) user_id: Option<String>,
    pub(crate) payload: Vec<u8>,
    /// How often it was tried before, as counted by `count_try`.
    pub(crate) tries: i64,
}
