//! `ServiceAccountService`.

use proto::{
    auth::{
        self as pb, CreateServiceAccountKeyRequest, CreateServiceAccountRequest, CreatedServiceAccountKey,
        DeleteServiceAccountRequest, GetServiceAccountRequest, ListServiceAccountKeysRequest,
        ListServiceAccountKeysResponse, ListServiceAccountsRequest, ListServiceAccountsResponse,
        RevokeServiceAccountKeyRequest, ServiceAccountKey,
        service_account_service_server::ServiceAccountService,
    },
    time::Timestamp,
};
use secrecy::ExposeSecret as _;
use service_kit::{AuthContext, ClientInfo, page::Page};
use tonic::{Request, Response, async_trait};

use super::Answer;
use crate::domain::{
    opaque_tokens::{Asked, Token},
    service_accounts::{ServiceAccount, ServiceAccounts},
};

/// `tollgate.auth.v1.ServiceAccountService`.
#[derive(Debug)]
pub(crate) struct ServiceAccountApi {
    pub(crate) service_accounts: ServiceAccounts,
}

#[async_trait]
impl ServiceAccountService for ServiceAccountApi {
    async fn create_service_account(
        &self,
        request: Request<CreateServiceAccountRequest>,
    ) -> Answer<pb::ServiceAccount> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let CreateServiceAccountRequest { organization_id, name, role } = request.into_inner();
        let made = self.service_accounts.create(&caller, &organization_id, &name, &role, &client).await?;
        Ok(Response::new(encode(made)))
    }

    async fn list_service_accounts(
        &self,
        request: Request<ListServiceAccountsRequest>,
    ) -> Answer<ListServiceAccountsResponse> {
        let caller = AuthContext::of(&request)?;
        let ListServiceAccountsRequest { organization_id, limit, offset } = request.into_inner();
        let page = Page::of(limit, offset)?;
        let (accounts, total) = self.service_accounts.list(&caller, &organization_id, page).await?;
        Ok(Response::new(ListServiceAccountsResponse {
            count: count(&accounts),
            list: accounts.into_iter().map(encode).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn get_service_account(
        &self,
        request: Request<GetServiceAccountRequest>,
    ) -> Answer<pb::ServiceAccount> {
        let caller = AuthContext::of(&request)?;
        let found = self.service_accounts.get(&caller, &request.get_ref().service_account_id).await?;
        Ok(Response::new(encode(found)))
    }

    async fn delete_service_account(&self, request: Request<DeleteServiceAccountRequest>) -> Answer<()> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        self.service_accounts.delete(&caller, &request.get_ref().service_account_id, &client).await?;
        Ok(Response::new(()))
    }

    async fn create_service_account_key(
        &self,
        request: Request<CreateServiceAccountKeyRequest>,
    ) -> Answer<CreatedServiceAccountKey> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let CreateServiceAccountKeyRequest { service_account_id, name, scopes, expires_in_days } =
            request.into_inner();
        let asked = Asked { name, scopes, expires_in_days };
        let new = self.service_accounts.create_key(&caller, &service_account_id, asked, &client).await?;
        Ok(Response::new(CreatedServiceAccountKey {
            id: new.token.id.clone(),
            service_account_id,
            token: new.text.expose_secret().to_owned(),
            details: Some(encode_key(new.token)),
        }))
    }

    async fn list_service_account_keys(
        &self,
        request: Request<ListServiceAccountKeysRequest>,
    ) -> Answer<ListServiceAccountKeysResponse> {
        let caller = AuthContext::of(&request)?;
        let ListServiceAccountKeysRequest { service_account_id, limit, offset } = request.into_inner();
        let page = Page::of(limit, offset)?;
        let (keys, total) = self.service_accounts.list_keys(&caller, &service_account_id, page).await?;
        Ok(Response::new(ListServiceAccountKeysResponse {
            count: count(&keys),
            list: keys.into_iter().map(encode_key).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn revoke_service_account_key(
        &self,
        request: Request<RevokeServiceAccountKeyRequest>,
    ) -> Answer<()> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let RevokeServiceAccountKeyRequest { service_account_id, key_id } = request.into_inner();
        self.service_accounts.revoke_key(&caller, &service_account_id, &key_id, &client).await?;
        Ok(Response::new(()))
    }
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn encode(account: ServiceAccount) -> pb::ServiceAccount {
    pb::ServiceAccount {
        id: account.id,
        organization_id: account.organization_id,
        name: account.name,
        role: account.role,
        created_by: account.created_by,
        created_at: Some(Timestamp::from_unix_ms(account.created_at)),
    }
}

fn encode_key(key: Token) -> ServiceAccountKey {
    ServiceAccountKey {
        id: key.id,
        name: key.name,
        scopes: key.scopes,
        created_by: key.created_by,
        created_at: Some(Timestamp::from_unix_ms(key.created_at)),
        expires_at: Some(Timestamp::from_unix_ms(key.expires_at)),
        last_used_at: key.last_used_at.map(Timestamp::from_unix_ms),
    }
}
