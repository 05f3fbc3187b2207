//! Sign-up, verified addresses, and the profile.

use proto::{
    auth::{
        GetProfileRequest, RequestEmailVerificationRequest, SignUpRequest, UpdateProfileRequest, User,
        VerifyEmailRequest,
    },
    time::Timestamp,
};
use secrecy::SecretString;
use service_kit::{AuthContext, ClientInfo};
use tonic::{Request, Response};

use super::Answer;
use crate::domain::accounts::{self, Accounts, SignUp, SignedUp};

pub(super) async fn sign_up(accounts: &Accounts, request: Request<SignUpRequest>) -> Answer<User> {
    let client = ClientInfo::of(&request);
    let SignUpRequest { email, password, name } = request.into_inner();
    let asked = SignUp { email, password: SecretString::from(password), name };
    Ok(Response::new(match accounts.sign_up(asked, &client).await? {
        SignedUp::Account(user) => encode(user),
        SignedUp::Unverified { email, name } => User { email, name, ..User::default() },
    }))
}

pub(super) async fn request_verification(
    accounts: &Accounts,
    request: Request<RequestEmailVerificationRequest>,
) -> Answer<()> {
    let client = ClientInfo::of(&request);
    accounts.request_verification(&request.get_ref().email, &client).await?;
    Ok(Response::new(()))
}

pub(super) async fn verify_email(accounts: &Accounts, request: Request<VerifyEmailRequest>) -> Answer<()> {
    let client = ClientInfo::of(&request);
    let token = SecretString::from(request.into_inner().token);
    accounts.verify_email(&token, &client).await?;
    Ok(Response::new(()))
}

pub(super) async fn get_profile(accounts: &Accounts, request: Request<GetProfileRequest>) -> Answer<User> {
    let caller = AuthContext::of(&request)?;
    Ok(Response::new(encode(accounts.profile(&caller).await?)))
}

pub(super) async fn update_profile(
    accounts: &Accounts,
    request: Request<UpdateProfileRequest>,
) -> Answer<User> {
    let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
    let user = accounts.update_profile(&caller, &request.get_ref().name, &client).await?;
    Ok(Response::new(encode(user)))
}

fn encode(user: accounts::User) -> User {
    User {
        id: user.id,
        email: user.email,
        name: user.name,
        created_at: Some(Timestamp::from_unix_ms(user.created_at)),
        updated_at: Some(Timestamp::from_unix_ms(user.updated_at)),
        email_verified: user.email_verified,
    }
}
