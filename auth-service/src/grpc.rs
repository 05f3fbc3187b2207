//! gRPC in front of the domain: decodes, calls, encodes. No rule and no SQL here.

mod accounts;
mod keys;
mod sessions;

use std::sync::Arc;

use proto::auth::{
    GetJwksRequest, GetProfileRequest, Jwks, LoginRequest, LogoutRequest, RefreshRequest, SignUpRequest,
    TokenPair, UpdateProfileRequest, User, auth_service_server::AuthService, key_service_server::KeyService,
};
use tonic::{Request, Response, Status, async_trait};

use crate::domain::{accounts::Accounts, keys::KeyRing, sessions::Sessions};

type Answer<T> = Result<Response<T>, Status>;

/// `tollgate.auth.v1.AuthService`.
#[derive(Debug)]
pub(crate) struct AuthApi {
    pub(crate) accounts: Accounts,
    pub(crate) sessions: Sessions,
}

/// `tollgate.auth.v1.KeyService`.
#[derive(Debug)]
pub(crate) struct KeyApi {
    pub(crate) keys: Arc<KeyRing>,
}

#[async_trait]
impl AuthService for AuthApi {
    async fn sign_up(&self, request: Request<SignUpRequest>) -> Answer<User> {
        accounts::sign_up(&self.accounts, request).await
    }

    async fn login(&self, request: Request<LoginRequest>) -> Answer<TokenPair> {
        sessions::login(&self.sessions, request).await
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Answer<TokenPair> {
        sessions::refresh(&self.sessions, request).await
    }

    async fn logout(&self, request: Request<LogoutRequest>) -> Answer<()> {
        sessions::logout(&self.sessions, request).await
    }

    async fn get_profile(&self, request: Request<GetProfileRequest>) -> Answer<User> {
        accounts::get_profile(&self.accounts, request).await
    }

    async fn update_profile(&self, request: Request<UpdateProfileRequest>) -> Answer<User> {
        accounts::update_profile(&self.accounts, request).await
    }
}

#[async_trait]
impl KeyService for KeyApi {
    async fn get_jwks(&self, _request: Request<GetJwksRequest>) -> Answer<Jwks> {
        Ok(Response::new(keys::jwks(&self.keys)))
    }
}
