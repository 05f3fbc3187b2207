//! `TokenService`: personal access tokens.

use std::sync::Arc;

use proto::{
    auth::{
        CreateTokenRequest, CreatedToken, GetTokenRequest, ListTokensRequest, ListTokensResponse,
        PersonalToken, RevokeTokenRequest, token_service_server::TokenService,
    },
    time::Timestamp,
};
use secrecy::ExposeSecret as _;
use service_kit::{AuthContext, ClientInfo, page::Page};
use tonic::{Request, Response, async_trait};

use super::Answer;
use crate::domain::opaque_tokens::{Asked, OpaqueTokens, Token};

/// `tollgate.auth.v1.TokenService`.
#[derive(Debug)]
pub(crate) struct TokenApi {
    pub(crate) tokens: Arc<OpaqueTokens>,
}

#[async_trait]
impl TokenService for TokenApi {
    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreatedToken> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let CreateTokenRequest { name, scopes, expires_in_days } = request.into_inner();
        let new = self.tokens.create(&caller, Asked { name, scopes, expires_in_days }, &client).await?;
        Ok(Response::new(CreatedToken {
            id: new.token.id.clone(),
            token: new.text.expose_secret().to_owned(),
            details: Some(encode(new.token)),
        }))
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Answer<ListTokensResponse> {
        let caller = AuthContext::of(&request)?;
        let page = Page::of(request.get_ref().limit, request.get_ref().offset)?;
        let (tokens, total) = self.tokens.list(&caller, page).await?;
        Ok(Response::new(ListTokensResponse {
            count: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            list: tokens.into_iter().map(encode).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn get_token(&self, request: Request<GetTokenRequest>) -> Answer<PersonalToken> {
        let caller = AuthContext::of(&request)?;
        Ok(Response::new(encode(self.tokens.get(&caller, &request.get_ref().token_id).await?)))
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Answer<()> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        self.tokens.revoke(&caller, &request.get_ref().token_id, &client).await?;
        Ok(Response::new(()))
    }
}

fn encode(token: Token) -> PersonalToken {
    PersonalToken {
        id: token.id,
        name: token.name,
        scopes: token.scopes,
        created_at: Some(Timestamp::from_unix_ms(token.created_at)),
        expires_at: Some(Timestamp::from_unix_ms(token.expires_at)),
        last_used_at: token.last_used_at.map(Timestamp::from_unix_ms),
    }
}
