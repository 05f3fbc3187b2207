//! A project-service that can be told who is what in an organization.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use proto::project::{
    CheckRequest, CheckResponse, ListMembershipsRequest, ListMembershipsResponse, PutServiceAccountRequest,
    RemoveServiceAccountRequest,
    access_service_server::{AccessService, AccessServiceServer},
    check_response::Decision,
};
use service_kit::{
    Clock,
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::Identity,
    token::Verifier,
};
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::harness::Setup;

/// Roles by user and organization: `admin` may do everything, `viewer` only read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Project(Arc<Mutex<HashMap<(String, String), &'static str>>>);

impl Project {
    pub(crate) fn join(&self, user_id: &str, organization_id: &str, role: &'static str) {
        self.0.lock().unwrap().insert((user_id.to_owned(), organization_id.to_owned()), role);
    }

    /// Serves it in the mesh of `setup`.
    pub(crate) async fn serve(&self, setup: &Setup) -> Running {
        let server = GrpcServer {
            name: "project-service",
            identity: Identity::load(&setup.config.tls, "project-service").unwrap(),
            verifier: Verifier::new(Signer::config(), Arc::new(Signer::new()), Clock::system()),
            routes: Routes::new(AccessServiceServer::new(self.clone())),
            tasks: Tasks::new(),
            readiness: Readiness::new(),
            reflection: false,
        };
        server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap()
    }
}

#[async_trait]
impl AccessService for Project {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let asked = request.into_inner();
        let role = self.0.lock().unwrap().get(&(asked.user_id, asked.organization_id)).copied();
        let decision = match role {
            None => Decision::Hidden,
            Some("viewer") if !asked.permission.ends_with(":read") => Decision::Denied,
            Some(_) => Decision::Allowed,
        };
        let role = role.unwrap_or_default().to_owned();
        Ok(Response::new(CheckResponse { decision: decision.into(), role }))
    }

    async fn list_memberships(
        &self,
        _: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        Err(Status::unimplemented("nobody here asks"))
    }

    async fn put_service_account(
        &self,
        _: Request<PutServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("nobody here asks"))
    }

    async fn remove_service_account(
        &self,
        _: Request<RemoveServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("nobody here asks"))
    }
}
