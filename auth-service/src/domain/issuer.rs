//! Makes access tokens: what they say is decided by whoever grants them, how they are signed is not.

use std::sync::Arc;

use secrecy::SecretString;
use service_kit::{
    Clock, Ids, Result,
    token::{Claims, TokenConfig},
};

use super::keys::KeyRing;

/// What an access token is to say.
#[derive(Debug, Clone)]
pub(crate) struct Grant<'a> {
    /// Whose token it is.
    pub(crate) user_id: &'a str,
    /// What is revoked to end it: a session, or an opaque token.
    pub(crate) session_id: &'a str,
    pub(crate) client_id: &'a str,
    /// Permissions separated by spaces.
    pub(crate) scope: &'a str,
    /// The last proof of who the user is, in Unix milliseconds.
    pub(crate) authenticated_at: i64,
    /// How it was proven.
    pub(crate) amr: Vec<String>,
    /// Seconds until the token expires.
    pub(crate) lifetime: u32,
}

/// Signs access tokens. Clones share their keys.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    keys: Arc<KeyRing>,
    token: TokenConfig,
    clock: Clock,
    ids: Ids,
}

impl Issuer {
    pub(crate) fn new(keys: Arc<KeyRing>, token: TokenConfig, clock: Clock, ids: Ids) -> Self {
        Self { keys, token, clock, ids }
    }

    /// An access token that begins now.
    pub(crate) fn issue(&self, grant: Grant<'_>) -> Result<SecretString> {
        let iat = self.clock.now_ms() / 1_000;
        let claims = Claims {
            iss: self.token.issuer.clone(),
            sub: grant.user_id.to_owned(),
            aud: self.token.audience.clone(),
            exp: iat + i64::from(grant.lifetime),
            iat,
            nbf: None,
            jti: self.ids.next(),
            client_id: grant.client_id.to_owned(),
            sid: grant.session_id.to_owned(),
            scope: grant.scope.to_owned(),
            auth_time: grant.authenticated_at / 1_000,
            amr: grant.amr,
        };
        Ok(SecretString::from(self.keys.sign(&claims)?))
    }
}
