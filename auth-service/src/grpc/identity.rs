//! What other services ask about tokens, and this service's own verifier too.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use proto::auth::{
    ExchangeTokenRequest, ExchangeTokenResponse, Jwks, Revocation, RevocationUpdate, ValidateTokenRequest,
    ValidateTokenResponse, WatchRevocationsRequest, identity_service_server::IdentityService,
};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    Kind, Result,
    token::{Authority, Claims, Feed, Verifier},
};
use tonic::{Request, Response, Status, async_trait};

use super::{Answer, keys::jwks};
use crate::domain::{
    keys::KeyRing,
    opaque_tokens::OpaqueTokens,
    revocations::{RevocationFeed, Update},
};

/// This service as the authority of its own verifier.
#[derive(Debug)]
pub(crate) struct LocalAuthority {
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) feed: RevocationFeed,
}

#[async_trait]
impl Authority for LocalAuthority {
    async fn jwks(&self) -> Result<Jwks> {
        Ok(jwks(&self.keys))
    }

    async fn is_active(&self, _token: &str, claims: &Claims) -> Result<bool> {
        self.feed.is_live(claims).await
    }

    async fn revocations(&self, after: u64) -> Result<Feed> {
        Ok(self.feed.follow(position(after)).map(|update| update.map(encode)).boxed())
    }
}

/// `tollgate.auth.v1.IdentityService`.
#[derive(Debug)]
pub(crate) struct IdentityApi {
    pub(crate) tokens: Arc<OpaqueTokens>,
    /// This service's own.
    pub(crate) verifier: Verifier,
    pub(crate) feed: RevocationFeed,
}

/// A position that cannot be is beyond all others: everything is told.
fn position(after: u64) -> i64 {
    i64::try_from(after).unwrap_or(i64::MAX)
}

fn encode(update: Update) -> RevocationUpdate {
    let revocations = update.revocations.into_iter();
    RevocationUpdate {
        position: update.position.unsigned_abs(),
        revocations: revocations
            .map(|one| Revocation { session_id: one.session_id, expires_at: one.expires_at })
            .collect(),
        key_ids: update.key_ids,
    }
}

#[async_trait]
impl IdentityService for IdentityApi {
    type WatchRevocationsStream =
        Pin<Box<dyn Stream<Item = std::result::Result<RevocationUpdate, Status>> + Send>>;

    async fn validate_token(&self, request: Request<ValidateTokenRequest>) -> Answer<ValidateTokenResponse> {
        let active = match self.verifier.verify(&request.into_inner().access_token).await {
            // The feed may be a moment behind.
            Ok(claims) => self.feed.is_live(&claims).await?,
            Err(error) if error.kind() == Kind::Unauthenticated => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(ValidateTokenResponse { active }))
    }

    async fn exchange_token(&self, request: Request<ExchangeTokenRequest>) -> Answer<ExchangeTokenResponse> {
        let exchanged = self.tokens.exchange(&SecretString::from(request.into_inner().token)).await?;
        Ok(Response::new(ExchangeTokenResponse {
            access_token: exchanged.access.expose_secret().to_owned(),
            expires_in: exchanged.expires_in,
        }))
    }

    async fn watch_revocations(
        &self,
        request: Request<WatchRevocationsRequest>,
    ) -> Answer<Self::WatchRevocationsStream> {
        let updates = self.feed.follow(position(request.into_inner().after));
        Ok(Response::new(Box::pin(updates.map(|update| update.map(encode).map_err(Status::from)))))
    }
}
