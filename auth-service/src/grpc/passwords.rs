//! Change and reset of passwords.

use proto::auth::{ChangePasswordRequest, RequestPasswordResetRequest, ResetPasswordRequest};
use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo};
use tonic::{Request, Response};

use super::Answer;
use crate::domain::passwords::Passwords;

pub(super) async fn change(passwords: &Passwords, request: Request<ChangePasswordRequest>) -> Answer<()> {
    let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
    let ChangePasswordRequest { current_password, new_password } = request.into_inner();
    let (current, new) = (SecretString::from(current_password), SecretString::from(new_password));
    passwords.change(&caller, &current, &new, &client).await?;
    Ok(Response::new(()))
}

pub(super) async fn request_reset(
    passwords: &Passwords,
    request: Request<RequestPasswordResetRequest>,
) -> Answer<()> {
    let client = ClientInfo::of(&request);
    passwords.request_reset(&request.get_ref().email, &client).await?;
    Ok(Response::new(()))
}

pub(super) async fn reset(passwords: &Passwords, request: Request<ResetPasswordRequest>) -> Answer<()> {
    let client = ClientInfo::of(&request);
    let ResetPasswordRequest { token, new_password } = request.into_inner();
    let (token, new) = (SecretString::from(token), SecretString::from(new_password));
    passwords.reset(&token, &new, &client).await?;
    Ok(Response::new(()))
}
