//! `ProviderService`.

use proto::{
    auth::{
        DeleteIdentityRequest, FinishProviderLoginRequest, Identity, ListIdentitiesRequest,
        ListIdentitiesResponse, ListProvidersRequest, ListProvidersResponse, Provider, ProviderLogin,
        StartProviderLinkRequest, StartProviderLoginRequest, TokenPair,
        provider_service_server::ProviderService,
    },
    time::Timestamp,
};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, page::Page};
use tonic::{Request, Response, async_trait};

use super::{Answer, sessions::answer};
use crate::domain::providers::{self, Finish, Providers, Started};

/// `tollgate.auth.v1.ProviderService`.
#[derive(Debug)]
pub(crate) struct ProviderApi {
    pub(crate) providers: Providers,
}

#[async_trait]
impl ProviderService for ProviderApi {
    async fn list_providers(&self, _request: Request<ListProvidersRequest>) -> Answer<ListProvidersResponse> {
        let provider = |(id, name): (&str, &str)| Provider { id: id.to_owned(), name: name.to_owned() };
        let list: Vec<Provider> = self.providers.list().map(provider).collect();
        Ok(Response::new(ListProvidersResponse { count: count(&list), list }))
    }

    async fn start_provider_login(
        &self,
        request: Request<StartProviderLoginRequest>,
    ) -> Answer<ProviderLogin> {
        let started = self.providers.start_login(&request.get_ref().provider).await?;
        Ok(Response::new(encode_started(started)))
    }

    async fn start_provider_link(&self, request: Request<StartProviderLinkRequest>) -> Answer<ProviderLogin> {
        let caller = AuthContext::of(&request)?;
        let started = self.providers.start_link(&caller, &request.get_ref().provider).await?;
        Ok(Response::new(encode_started(started)))
    }

    async fn finish_provider_login(&self, request: Request<FinishProviderLoginRequest>) -> Answer<TokenPair> {
        let client = ClientInfo::of(&request);
        let FinishProviderLoginRequest { provider, state, code, binding, cookie } = request.into_inner();
        let (state, code, binding) = (state.into(), code.into(), SecretString::from(binding));
        let outcome = self.providers.finish(Finish { provider, state, code, binding }, &client).await?;
        Ok(answer(&outcome, cookie))
    }

    async fn list_identities(
        &self,
        request: Request<ListIdentitiesRequest>,
    ) -> Answer<ListIdentitiesResponse> {
        let caller = AuthContext::of(&request)?;
        let ListIdentitiesRequest { limit, offset } = request.into_inner();
        let page = Page::of(limit, offset)?;
        let (list, total) = self.providers.identities(&caller, page).await?;
        let list: Vec<Identity> = list.into_iter().map(encode_identity).collect();
        let pagination = Some(page.pagination(total));
        Ok(Response::new(ListIdentitiesResponse { count: count(&list), list, pagination }))
    }

    async fn delete_identity(&self, request: Request<DeleteIdentityRequest>) -> Answer<()> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        self.providers.remove(&caller, &request.get_ref().identity_id, &client).await?;
        Ok(Response::new(()))
    }
}

fn encode_started(started: Started) -> ProviderLogin {
    ProviderLogin {
        authorization_url: started.authorization_url,
        state: started.state.expose_secret().to_owned(),
        binding: started.binding.expose_secret().to_owned(),
        expires_in: started.expires_in,
    }
}

fn encode_identity(identity: providers::Identity) -> Identity {
    Identity {
        id: identity.id,
        provider: identity.provider,
        email: identity.email,
        created_at: Some(Timestamp::from_unix_ms(identity.created_at)),
    }
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}
