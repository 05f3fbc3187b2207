//! gRPC in front of the domain: decodes, calls, encodes. No rule and no SQL here.

mod accounts;
pub(crate) mod audit_log;
mod cookies;
pub(crate) mod devices;
pub(crate) mod identity;
mod keys;
pub(crate) mod opaque_tokens;
mod passwords;
pub(crate) mod project;
pub(crate) mod providers;
pub(crate) mod second_factors;
pub(crate) mod service_accounts;
mod sessions;

use std::sync::Arc;

use proto::auth::{
    ChangePasswordRequest, GetJwksRequest, GetProfileRequest, Jwks, LoginRequest, LogoutRequest,
    RefreshRequest, RequestEmailVerificationRequest, RequestPasswordResetRequest, ResetPasswordRequest,
    SignUpRequest, TokenPair, UpdateProfileRequest, User, VerifyEmailRequest,
    audit_service_server::AuditServiceServer,
    auth_service_server::{AuthService, AuthServiceServer},
    device_service_server::DeviceServiceServer,
    identity_service_server::IdentityServiceServer,
    key_service_server::{KeyService, KeyServiceServer},
    provider_service_server::ProviderServiceServer,
    second_factor_service_server::SecondFactorServiceServer,
    service_account_service_server::ServiceAccountServiceServer,
    session_service_server::SessionServiceServer,
    token_service_server::TokenServiceServer,
};
use tonic::{Request, Response, Status, async_trait};

use service_kit::{server::max_request_bytes, token::Verifier};
use tonic::service::Routes;

use crate::domain::{
    Shared, accounts::Accounts, audit_log::AuditLog, devices::Devices, keys::KeyRing, logins::Logins,
    opaque_tokens::OpaqueTokens, passwords::Passwords, providers::Providers, revocations::RevocationFeed,
    second_factors::Factors, service_accounts::ServiceAccounts, sessions::Sessions,
};

/// Every gRPC service of this process, over domain objects that share what they are made with.
pub(crate) fn routes(
    shared: &Shared,
    keys: Arc<KeyRing>,
    feed: RevocationFeed,
    verifier: Verifier,
) -> anyhow::Result<Routes> {
    let tokens = Arc::new(OpaqueTokens::new(shared));
    let identity = identity::IdentityApi { tokens: tokens.clone(), verifier, feed };
    let limit = |service: &str| max_request_bytes(&format!("tollgate.auth.v1.{service}"));
    let sessions = Arc::new(Sessions::new(shared));
    let accounts = Accounts::new(shared);
    let factors = Arc::new(Factors::new(shared, sessions.clone())?);
    let providers = Providers::new(shared, sessions.clone(), factors.clone());
    let logins = Arc::new(Logins::new(shared, sessions.clone(), factors.clone()));
    let passwords = Passwords::new(shared);
    let auth = AuthApi { accounts, logins: logins.clone(), passwords, sessions: sessions.clone() };
    let routes = Routes::new(AuthServiceServer::new(auth).max_decoding_message_size(limit("AuthService")))
        .add_service(IdentityServiceServer::new(identity).max_decoding_message_size(limit("IdentityService")))
        .add_service(KeyServiceServer::new(KeyApi { keys }).max_decoding_message_size(limit("KeyService")))
        .add_service(
            SessionServiceServer::new(sessions::SessionApi { sessions: sessions.clone(), logins })
                .max_decoding_message_size(limit("SessionService")),
        )
        .add_service(
            SecondFactorServiceServer::new(second_factors::SecondFactorApi { factors })
                .max_decoding_message_size(limit("SecondFactorService")),
        )
        .add_service(
            TokenServiceServer::new(opaque_tokens::TokenApi { tokens })
                .max_decoding_message_size(limit("TokenService")),
        )
        .add_service(
            ServiceAccountServiceServer::new(service_accounts::ServiceAccountApi {
                service_accounts: ServiceAccounts::new(shared),
            })
            .max_decoding_message_size(limit("ServiceAccountService")),
        )
        .add_service(
            DeviceServiceServer::new(devices::DeviceApi { devices: Devices::new(shared, sessions.clone()) })
                .max_decoding_message_size(limit("DeviceService")),
        )
        .add_service(
            ProviderServiceServer::new(providers::ProviderApi { providers })
                .max_decoding_message_size(limit("ProviderService")),
        )
        .add_service(
            AuditServiceServer::new(audit_log::AuditApi { audit_log: AuditLog::new(shared) })
                .max_decoding_message_size(limit("AuditService")),
        );
    Ok(routes)
}

type Answer<T> = Result<Response<T>, Status>;

/// `tollgate.auth.v1.AuthService`.
#[derive(Debug)]
pub(crate) struct AuthApi {
    pub(crate) accounts: Accounts,
    pub(crate) logins: Arc<Logins>,
    pub(crate) passwords: Passwords,
    pub(crate) sessions: Arc<Sessions>,
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
        sessions::login(&self.logins, request).await
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

    async fn change_password(&self, request: Request<ChangePasswordRequest>) -> Answer<()> {
        passwords::change(&self.passwords, request).await
    }

    async fn request_password_reset(&self, request: Request<RequestPasswordResetRequest>) -> Answer<()> {
        passwords::request_reset(&self.passwords, request).await
    }

    async fn reset_password(&self, request: Request<ResetPasswordRequest>) -> Answer<()> {
        passwords::reset(&self.passwords, request).await
    }

    async fn request_email_verification(
        &self,
        request: Request<RequestEmailVerificationRequest>,
    ) -> Answer<()> {
        accounts::request_verification(&self.accounts, request).await
    }

    async fn verify_email(&self, request: Request<VerifyEmailRequest>) -> Answer<()> {
        accounts::verify_email(&self.accounts, request).await
    }
}

#[async_trait]
impl KeyService for KeyApi {
    async fn get_jwks(&self, _request: Request<GetJwksRequest>) -> Answer<Jwks> {
        Ok(Response::new(keys::jwks(&self.keys)))
    }
}
