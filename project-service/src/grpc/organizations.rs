//! `OrganizationService`, and `AccessService` for other services.

use proto::project::{
    CheckRequest, CheckResponse, CreateOrganizationRequest, GetOrganizationRequest, ListMembershipsRequest,
    ListMembershipsResponse, ListOrganizationsRequest, ListOrganizationsResponse, Organization,
    PutServiceAccountRequest, RemoveServiceAccountRequest, UpdateOrganizationRequest,
    access_service_server::{AccessService, AccessServiceServer},
    check_response,
    organization_service_server::{OrganizationService, OrganizationServiceServer},
};
use service_kit::{AuthContext, Error, page::Page, server::max_request_bytes};
use tonic::{Request, Response, Status, server::NamedService};

use super::{count, time};
use crate::domain::{
    access::{Access, Decision, Permission},
    organizations::{self, Organizations},
};

/// `OrganizationService`.
#[derive(Debug)]
pub(crate) struct OrganizationGrpc {
    pub(crate) organizations: Organizations,
}

/// `AccessService`.
#[derive(Debug)]
pub(crate) struct AccessGrpc {
    pub(crate) access: Access,
    pub(crate) organizations: Organizations,
}

impl OrganizationGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> OrganizationServiceServer<Self> {
        let limit = max_request_bytes(OrganizationServiceServer::<Self>::NAME);
        OrganizationServiceServer::new(self).max_decoding_message_size(limit)
    }
}

impl AccessGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> AccessServiceServer<Self> {
        let limit = max_request_bytes(AccessServiceServer::<Self>::NAME);
        AccessServiceServer::new(self).max_decoding_message_size(limit)
    }
}

#[tonic::async_trait]
impl OrganizationService for OrganizationGrpc {
    async fn create_organization(
        &self,
        request: Request<CreateOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        let caller = AuthContext::of(&request)?;
        let new = request.into_inner();
        let made = self.organizations.create(&caller, &new.id, &new.handle, &new.name).await?;
        Ok(Response::new(encode(made)))
    }

    async fn list_organizations(
        &self,
        request: Request<ListOrganizationsRequest>,
    ) -> Result<Response<ListOrganizationsResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let page = Page::of(request.limit, request.offset)?;
        let listed = self.organizations.list(&caller, page).await?;
        Ok(Response::new(ListOrganizationsResponse {
            count: count(&listed.list),
            list: listed.list.into_iter().map(encode).collect(),
            pagination: Some(page.pagination(listed.total)),
        }))
    }

    async fn get_organization(
        &self,
        request: Request<GetOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        let caller = AuthContext::of(&request)?;
        let found = self.organizations.get(&caller, &request.get_ref().organization_id).await?;
        Ok(Response::new(encode(found)))
    }

    async fn update_organization(
        &self,
        request: Request<UpdateOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        let caller = AuthContext::of(&request)?;
        let change = request.into_inner();
        let changed = self.organizations.rename(&caller, &change.organization_id, &change.name).await?;
        Ok(Response::new(encode(changed)))
    }
}

#[tonic::async_trait]
impl AccessService for AccessGrpc {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let question = request.into_inner();
        let permission = permission(&question.permission)?;
        let decision = self.access.check(&question.user_id, &question.organization_id, permission).await?;
        let (decision, role) = match decision {
            Decision::Allowed(role) => (check_response::Decision::Allowed, role.as_str()),
            Decision::Denied(role) => (check_response::Decision::Denied, role.as_str()),
            Decision::Hidden => (check_response::Decision::Hidden, ""),
        };
        Ok(Response::new(CheckResponse { decision: decision.into(), role: role.to_owned() }))
    }

    async fn list_memberships(
        &self,
        request: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        let question = request.into_inner();
        let permission = permission(&question.permission)?;
        let organization_ids = self.access.organizations_with(&question.user_id, permission).await?;
        Ok(Response::new(ListMembershipsResponse { organization_ids }))
    }

    async fn put_service_account(
        &self,
        request: Request<PutServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        let PutServiceAccountRequest { organization_id, service_account_id, role } = request.into_inner();
        self.organizations.put_service_account(&organization_id, &service_account_id, &role).await?;
        Ok(Response::new(()))
    }

    async fn remove_service_account(
        &self,
        request: Request<RemoveServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        let RemoveServiceAccountRequest { organization_id, service_account_id } = request.into_inner();
        self.organizations.remove_service_account(&organization_id, &service_account_id).await?;
        Ok(Response::new(()))
    }
}

fn permission(name: &str) -> service_kit::Result<Permission> {
    Permission::parse(name).ok_or_else(|| Error::field("permission", "must be a known permission"))
}

fn encode(organization: organizations::Organization) -> Organization {
    Organization {
        id: organization.id,
        handle: organization.handle,
        name: organization.name,
        role: organization.role.as_str().to_owned(),
        created_at: time(organization.created_at),
        updated_at: time(organization.updated_at),
    }
}
