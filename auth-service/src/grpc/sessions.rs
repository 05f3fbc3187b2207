//! Login, refresh and logout.

use proto::auth::{LoginRequest, LogoutRequest, RefreshRequest, TokenPair};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::AuthContext;
use tonic::{Request, Response};

use super::Answer;
use crate::domain::sessions::{self, Sessions};

pub(super) async fn login(sessions: &Sessions, request: Request<LoginRequest>) -> Answer<TokenPair> {
    let LoginRequest { email, password } = request.into_inner();
    let pair = sessions.login(&email, &SecretString::from(password)).await?;
    Ok(Response::new(encode(&pair)))
}

pub(super) async fn refresh(sessions: &Sessions, request: Request<RefreshRequest>) -> Answer<TokenPair> {
    let token = SecretString::from(request.into_inner().refresh_token);
    Ok(Response::new(encode(&sessions.refresh(&token).await?)))
}

pub(super) async fn logout(sessions: &Sessions, request: Request<LogoutRequest>) -> Answer<()> {
    let caller = AuthContext::of(&request)?;
    sessions.logout(&caller).await?;
    Ok(Response::new(()))
}

fn encode(pair: &sessions::TokenPair) -> TokenPair {
    TokenPair {
        access_token: pair.access.expose_secret().to_owned(),
        refresh_token: pair.refresh.expose_secret().to_owned(),
        token_type: "Bearer".to_owned(),
        expires_in: pair.expires_in,
    }
}
