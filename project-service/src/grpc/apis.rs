//! `ApiService`: APIs here, revisions in [`super::revisions`].

use proto::{
    google::api::HttpBody,
    project::{
        Api, CreateApiRequest, CreateRevisionRequest, DeleteApiRequest, GetApiRequest, GetDefinitionRequest,
        GetRevisionRequest, ImportApiRequest, ListApisRequest, ListApisResponse, ListRevisionsRequest,
        ListRevisionsResponse, Revision, UpdateApiRequest,
        api_service_server::{ApiService, ApiServiceServer},
    },
};
use service_kit::{AuthContext, Error, page::Page, server::max_request_bytes};
use tonic::{Request, Response, Status, server::NamedService};

use super::{count, revisions};
use crate::domain::{
    access::Permission,
    apis::{Apis, Definition},
    openapi::{self, Names},
    revisions::Revisions,
};

/// `ApiService`.
#[derive(Debug)]
pub(crate) struct ApiGrpc {
    pub(crate) apis: Apis,
    pub(crate) revisions: Revisions,
}

impl ApiGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> ApiServiceServer<Self> {
        let limit = max_request_bytes(ApiServiceServer::<Self>::NAME);
        ApiServiceServer::new(self).max_decoding_message_size(limit)
    }
}

#[tonic::async_trait]
impl ApiService for ApiGrpc {
    async fn create_api(&self, request: Request<CreateApiRequest>) -> Result<Response<Api>, Status> {
        let caller = AuthContext::of(&request)?;
        let new = request.into_inner();
        let made = self.apis.create(&caller, &new.project_id, new.api.unwrap_or_default(), None).await?;
        Ok(Response::new(made.api))
    }

    async fn import_api(&self, request: Request<ImportApiRequest>) -> Result<Response<Api>, Status> {
        let caller = AuthContext::of(&request)?;
        let import = request.into_inner();
        if import.project_id.is_empty() {
            return Err(Error::field("projectId", "is required").into());
        }
        // A document is read only for somebody who may import it: reading costs.
        self.apis.authorize_create(&caller, &import.project_id).await?;
        let body = import.definition.unwrap_or_default();
        let definition = Definition { media_type: body.content_type, document: body.data };
        let names = Names { name: import.name, context: import.context, version: import.version };
        let (api, definition) = openapi::import(definition, names).await?;
        let made = self.apis.create(&caller, &import.project_id, api, Some(definition)).await?;
        Ok(Response::new(made.api))
    }

    async fn list_apis(
        &self,
        request: Request<ListApisRequest>,
    ) -> Result<Response<ListApisResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let page = Page::of(request.limit, request.offset)?;
        let listed = self.apis.list(&caller, &request.project_id, page).await?;
        Ok(Response::new(ListApisResponse {
            count: count(&listed.list),
            list: listed.list.into_iter().map(|stored| stored.api).collect(),
            pagination: Some(page.pagination(listed.total)),
        }))
    }

    async fn get_api(&self, request: Request<GetApiRequest>) -> Result<Response<Api>, Status> {
        let caller = AuthContext::of(&request)?;
        let found = self.apis.authorized(&caller, &request.get_ref().api_id, Permission::ApisRead).await?;
        Ok(Response::new(found.api))
    }

    async fn update_api(&self, request: Request<UpdateApiRequest>) -> Result<Response<Api>, Status> {
        let caller = AuthContext::of(&request)?;
        let change = request.into_inner();
        let changed = self.apis.update(&caller, &change.api_id, change.api.unwrap_or_default()).await?;
        Ok(Response::new(changed.api))
    }

    async fn delete_api(&self, request: Request<DeleteApiRequest>) -> Result<Response<()>, Status> {
        let caller = AuthContext::of(&request)?;
        self.apis.delete(&caller, &request.get_ref().api_id).await?;
        Ok(Response::new(()))
    }

    async fn get_definition(
        &self,
        request: Request<GetDefinitionRequest>,
    ) -> Result<Response<HttpBody>, Status> {
        let caller = AuthContext::of(&request)?;
        let found = self.apis.definition(&caller, &request.get_ref().api_id).await?;
        Ok(Response::new(HttpBody { content_type: found.media_type, data: found.document }))
    }

    async fn create_revision(
        &self,
        request: Request<CreateRevisionRequest>,
    ) -> Result<Response<Revision>, Status> {
        let caller = AuthContext::of(&request)?;
        let made = revisions::create(&self.revisions, &caller, request.into_inner()).await?;
        Ok(Response::new(made))
    }

    async fn list_revisions(
        &self,
        request: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let listed = revisions::list(&self.revisions, &caller, request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn get_revision(&self, request: Request<GetRevisionRequest>) -> Result<Response<Revision>, Status> {
        let caller = AuthContext::of(&request)?;
        let found = revisions::get(&self.revisions, &caller, request.into_inner()).await?;
        Ok(Response::new(found))
    }
}
