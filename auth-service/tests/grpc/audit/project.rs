//! A project-service that knows roles and nothing else.

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
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::Identity,
    token::Verifier,
};
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::harness::Auth;

#[derive(Debug, Default)]
struct Known {
    /// By user and organization.
    roles: HashMap<(String, String), &'static str>,
    asked: String,
}

#[derive(Debug)]
pub(super) struct Project {
    known: Face,
    running: Running,
}

#[derive(Debug, Default, Clone)]
struct Face(Arc<Mutex<Known>>);

impl Project {
    pub(super) async fn serve(auth: &Auth) -> Self {
        let known = Face::default();
        let server = GrpcServer {
            name: "project-service",
            identity: Identity::load(&auth.config.tls, "project-service").unwrap(),
            verifier: Verifier::new(Signer::config(), Arc::new(Signer::new()), auth.clock.clone()),
            routes: Routes::new(AccessServiceServer::new(known.clone())),
            tasks: Tasks::new(),
            readiness: Readiness::new(),
            reflection: false,
        };
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        Self { known, running: server.serve(listeners).await.unwrap() }
    }

    pub(super) fn address(&self) -> String {
        self.running.addr.to_string()
    }

    pub(super) fn join(&self, user: &str, organization: &str, role: &'static str) {
        self.known.0.lock().unwrap().roles.insert((user.to_owned(), organization.to_owned()), role);
    }

    /// The permission that it was asked for last.
    pub(super) fn asked(&self) -> String {
        self.known.0.lock().unwrap().asked.clone()
    }
}

#[async_trait]
impl AccessService for Face {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let CheckRequest { user_id, organization_id, permission } = request.into_inner();
        let mut known = self.0.lock().unwrap();
        known.asked = permission;
        let role = known.roles.get(&(user_id, organization_id)).copied().unwrap_or_default();
        let decision = match role {
            "" => Decision::Hidden,
            "admin" => Decision::Allowed,
            _ => Decision::Denied,
        };
        Ok(Response::new(CheckResponse { decision: decision.into(), role: role.to_owned() }))
    }

    async fn list_memberships(
        &self,
        _: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn put_service_account(
        &self,
        _: Request<PutServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn remove_service_account(
        &self,
        _: Request<RemoveServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}
