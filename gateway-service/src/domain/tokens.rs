//! Tokens of gateways: shown once, at most two active, revoked at once; and who a token is.

use std::{collections::VecDeque, sync::Arc};

use secrecy::SecretString;
use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, field::Checks, opaque};

use crate::{domain::gateways::Gateways, link::Hub, store::TokenStore};

/// The kind of opaque token: `tggw_…`.
const KIND: &str = "gw";
const MINUTE_MS: i64 = 60_000;

/// A token as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: String,
    /// Unix milliseconds.
    pub(crate) created_at: i64,
    pub(crate) revoked_at: Option<i64>,
    /// To the minute.
    pub(crate) last_used_at: Option<i64>,
}

/// A token as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredToken {
    pub(crate) token: Token,
    pub(crate) salt: Vec<u8>,
    pub(crate) hash: Vec<u8>,
    pub(crate) bearer: Bearer,
}

/// The gateway behind a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) gateway_id: String,
    pub(crate) organization_id: String,
    pub(crate) token_id: String,
}

/// What became of a request for another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Issued {
    /// It is stored.
    Stored,
    /// Two are active already.
    Limit,
    /// There is no such gateway (any more).
    NoGateway,
}

/// The tokens of the registry's gateways.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) store: Arc<dyn TokenStore>,
    pub(crate) gateways: Gateways,
    pub(crate) hub: Hub,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
}

impl Tokens {
    /// Issues another token. FAILED_PRECONDITION `TOKEN_LIMIT` when two are active.
    pub(crate) async fn rotate(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
    ) -> Result<(Token, SecretString)> {
        self.gateways.permitted(caller, gateway_id, "gateways:rotate").await?;
        let (secret, stored) = opaque::issue(KIND);
        let token = Token {
            id: self.ids.next(),
            created_at: self.clock.now_ms(),
            revoked_at: None,
            last_used_at: None,
        };
        match self.store.issue(gateway_id, &token, &stored).await? {
            Issued::Stored => {
                tracing::info!(gateway = gateway_id, token = token.id, "gateway token issued");
                Ok((token, secret))
            }
            Issued::NoGateway => Err(Error::not_found("gateway")),
            Issued::Limit => Err(Error::new(
                Kind::FailedPrecondition,
                "TOKEN_LIMIT",
                "the gateway has two active tokens: revoke one of them first",
            )),
        }
    }

    /// The tokens of a gateway, newest first.
    pub(crate) async fn list(&self, caller: &AuthContext, gateway_id: &str) -> Result<Vec<Token>> {
        self.gateways.permitted(caller, gateway_id, "gateways:read").await?;
        self.store.list(gateway_id).await
    }

    /// Revokes a token and closes the connections that it opened. Again changes nothing.
    pub(crate) async fn revoke(&self, caller: &AuthContext, gateway_id: &str, token_id: &str) -> Result<()> {
        Checks::new().id("gatewayId", gateway_id).id("tokenId", token_id).done()?;
        self.gateways.permitted(caller, gateway_id, "gateways:rotate").await?;
        if !self.store.revoke(gateway_id, token_id, self.clock.now_ms()).await? {
            return Err(Error::not_found("token"));
        }
        self.hub.token_revoked(token_id);
        self.hub.announce(gateway_id).await;
        tracing::info!(gateway = gateway_id, token = token_id, "gateway token revoked");
        Ok(())
    }

    /// The gateway that presents these tokens (the values of its `api-key`). UNAUTHENTICATED only for what is
    /// proven bad; UNAVAILABLE when that cannot be known, because gateways give up for good on a refusal.
    pub(crate) async fn authenticate(&self, mut presented: VecDeque<&str>) -> Result<Bearer> {
        let refuse = |why: &'static str| {
            tracing::warn!(why, "gateway refused");
            metrics::counter!("tollgate_gateway_auth_failures_total", "reason" => why).increment(1);
            Error::unauthenticated("a valid gateway token is required in `api-key`")
        };
        let (Some(text), None) = (presented.pop_front(), presented.pop_front()) else {
            return Err(refuse("not one token"));
        };
        let presented = opaque::parse(KIND, text).ok_or_else(|| refuse("malformed"))?;
        let found = self
            .store
            .find(&presented.lookup())
            .await
            .map_err(|error| Error::unavailable("gateway tokens cannot be checked right now", error))?;
        let Some(stored) = found else {
            presented.matches_nothing();
            return Err(refuse("unknown"));
        };
        if !presented.matches(&stored.salt, &stored.hash) {
            return Err(refuse("wrong secret"));
        }
        if stored.token.revoked_at.is_some() {
            return Err(refuse("revoked"));
        }
        self.note_use(&stored.token).await;
        Ok(stored.bearer)
    }

    /// Notes the minute of use. It is a courtesy: no call fails for it.
    async fn note_use(&self, token: &Token) {
        let minute = self.clock.now_ms() / MINUTE_MS * MINUTE_MS;
        if token.last_used_at.is_some_and(|at| at >= minute) {
            return;
        }
        if let Err(error) = self.store.note_use(&token.id, minute).await {
            tracing::warn!(token = token.id, %error, "use of a gateway token not noted");
        }
    }
}
