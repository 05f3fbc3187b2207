//! Sign-up and profile.

use proto::{
    auth::{GetProfileRequest, SignUpRequest, UpdateProfileRequest, User},
    time::Timestamp,
};
use secrecy::SecretString;
use service_kit::AuthContext;
use tonic::{Request, Response};

use super::Answer;
use crate::domain::accounts::{self, Accounts, SignUp};

pub(super) async fn sign_up(accounts: &Accounts, request: Request<SignUpRequest>) -> Answer<User> {
    let SignUpRequest { email, password, name } = request.into_inner();
    let user = accounts.sign_up(SignUp { email, password: SecretString::from(password), name }).await?;
    Ok(Response::new(encode(user)))
}

pub(super) async fn get_profile(accounts: &Accounts, request: Request<GetProfileRequest>) -> Answer<User> {
    let caller = AuthContext::of(&request)?;
    Ok(Response::new(encode(accounts.profile(&caller).await?)))
}

pub(super) async fn update_profile(
    accounts: &Accounts,
    request: Request<UpdateProfileRequest>,
) -> Answer<User> {
    let caller = AuthContext::of(&request)?;
    let user = accounts.update_profile(&caller, &request.get_ref().name).await?;
    Ok(Response::new(encode(user)))
}

fn encode(user: accounts::User) -> User {
    User {
        id: user.id,
        email: user.email,
        name: user.name,
        created_at: Some(Timestamp::from_unix_ms(user.created_at)),
        updated_at: Some(Timestamp::from_unix_ms(user.updated_at)),
    }
}
