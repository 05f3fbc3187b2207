//! `ProjectService`.

use proto::project::{
    CreateProjectRequest, DeleteProjectRequest, GetProjectRequest, ListProjectsRequest, ListProjectsResponse,
    Project, UpdateProjectRequest,
    project_service_server::{ProjectService, ProjectServiceServer},
};
use service_kit::{AuthContext, page::Page, server::max_request_bytes};
use tonic::{Request, Response, Status, server::NamedService};

use super::{count, time};
use crate::domain::{
    access::Permission,
    projects::{self, Projects},
};

/// `ProjectService`.
#[derive(Debug)]
pub(crate) struct ProjectGrpc {
    pub(crate) projects: Projects,
}

impl ProjectGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> ProjectServiceServer<Self> {
        let limit = max_request_bytes(ProjectServiceServer::<Self>::NAME);
        ProjectServiceServer::new(self).max_decoding_message_size(limit)
    }
}

#[tonic::async_trait]
impl ProjectService for ProjectGrpc {
    async fn create_project(
        &self,
        request: Request<CreateProjectRequest>,
    ) -> Result<Response<Project>, Status> {
        let caller = AuthContext::of(&request)?;
        let new = request.into_inner();
        let made = self.projects.create(&caller, &new.organization_id, &new.name, &new.description).await?;
        Ok(Response::new(encode(made)))
    }

    async fn list_projects(
        &self,
        request: Request<ListProjectsRequest>,
    ) -> Result<Response<ListProjectsResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let page = Page::of(request.limit, request.offset)?;
        let listed = self.projects.list(&caller, &request.organization_id, page).await?;
        Ok(Response::new(ListProjectsResponse {
            count: count(&listed.list),
            list: listed.list.into_iter().map(encode).collect(),
            pagination: Some(page.pagination(listed.total)),
        }))
    }

    async fn get_project(&self, request: Request<GetProjectRequest>) -> Result<Response<Project>, Status> {
        let caller = AuthContext::of(&request)?;
        let id = &request.get_ref().project_id;
        let found = self.projects.authorized(&caller, id, Permission::ProjectsRead).await?;
        Ok(Response::new(encode(found)))
    }

    async fn update_project(
        &self,
        request: Request<UpdateProjectRequest>,
    ) -> Result<Response<Project>, Status> {
        let caller = AuthContext::of(&request)?;
        let change = request.into_inner();
        let changed =
            self.projects.update(&caller, &change.project_id, &change.name, &change.description).await?;
        Ok(Response::new(encode(changed)))
    }

    async fn delete_project(&self, request: Request<DeleteProjectRequest>) -> Result<Response<()>, Status> {
        let caller = AuthContext::of(&request)?;
        self.projects.delete(&caller, &request.get_ref().project_id).await?;
        Ok(Response::new(()))
    }
}

fn encode(project: projects::Project) -> Project {
    Project {
        id: project.id,
        organization_id: project.organization_id,
        name: project.name,
        description: project.description,
        created_at: time(project.created_at),
        updated_at: time(project.updated_at),
    }
}
