//! The neighbours: a stand-in for auth-service, and a project-service that can be told what to say.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use proto::project::{
    ApisExistRequest, ApisExistResponse, Artifact, ArtifactImport, CheckRequest, CheckResponse,
    DeploymentReport, DesiredDeployment, GetArtifactsRequest, GetArtifactsResponse, ImportArtifactsRequest,
    ImportArtifactsResponse, ListDesiredRequest, ListDesiredResponse, ListMembershipsRequest,
    ListMembershipsResponse, PutServiceAccountRequest, RemoveServiceAccountRequest, ReportDeploymentsRequest,
    access_service_server::{AccessService, AccessServiceServer},
    check_response::Decision,
    desired_state_service_server::{DesiredStateService, DesiredStateServiceServer},
};
use service_kit::{
    Clock,
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::DevCa,
    token::Verifier,
};
use tonic::{Request, Response, Status, service::Routes};

/// What the fake project-service knows.
#[derive(Debug, Default)]
pub(crate) struct Project {
    /// Roles by user and organization: `admin` or `viewer`.
    pub(crate) roles: Mutex<HashMap<(String, String), &'static str>>,
    pub(crate) desired: Mutex<Vec<DesiredDeployment>>,
    pub(crate) artifacts: Mutex<Vec<Artifact>>,
    pub(crate) reports: Mutex<Vec<DeploymentReport>>,
    /// What gateways handed over, by gateway and the gateway's own id.
    pub(crate) imported: Mutex<HashMap<(String, String), ArtifactImport>>,
    /// How many artifacts each question about imports had.
    pub(crate) imports: Mutex<Vec<usize>>,
    /// Whoever writes keeps imports waiting.
    pub(crate) importing: tokio::sync::RwLock<()>,
    /// How often it was down when it was asked.
    pub(crate) refusals: AtomicUsize,
    /// How often it was asked what is wanted.
    pub(crate) listed: AtomicUsize,
    /// How often it was asked for a decision.
    pub(crate) checks: AtomicUsize,
    /// Fails every call.
    pub(crate) down: AtomicBool,
}

impl Project {
    pub(crate) fn join(&self, user: &str, organization: &str, role: &'static str) {
        self.roles.lock().unwrap().insert((user.to_owned(), organization.to_owned()), role);
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// The statuses reported of a deployment, in order.
    pub(crate) fn reported(&self, deployment_id: &str) -> Vec<(i32, String, String)> {
        let reports = self.reports.lock().unwrap();
        reports
            .iter()
            .filter(|report| report.deployment_id == deployment_id)
            .map(|report| (report.status, report.action.clone(), report.reason.clone()))
            .collect()
    }

    fn up(&self) -> Result<(), Status> {
        if self.down.load(Ordering::SeqCst) {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            return Err(Status::internal("as told"));
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Face(Arc<Project>);

#[async_trait]
impl AccessService for Face {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.up()?;
        self.0.checks.fetch_add(1, Ordering::SeqCst);
        let asked = request.into_inner();
        let role = self.0.roles.lock().unwrap().get(&(asked.user_id, asked.organization_id)).copied();
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
        request: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        self.0.up()?;
        let user = request.into_inner().user_id;
        let roles = self.0.roles.lock().unwrap();
        let organization_ids = roles.keys().filter(|(u, _)| *u == user).map(|(_, o)| o.clone()).collect();
        Ok(Response::new(ListMembershipsResponse { organization_ids }))
    }

    // Only auth-service calls these two.
    async fn put_service_account(
        &self,
        _: Request<PutServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::permission_denied("not for gateway-service"))
    }

    async fn remove_service_account(
        &self,
        _: Request<RemoveServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::permission_denied("not for gateway-service"))
    }
}

#[async_trait]
impl DesiredStateService for Face {
    async fn import_artifacts(
        &self,
        request: Request<ImportArtifactsRequest>,
    ) -> Result<Response<ImportArtifactsResponse>, Status> {
        self.0.up()?;
        let asked = request.into_inner();
        drop(self.0.importing.read().await);
        let mut imports = self.0.imports.lock().unwrap();
        imports.push(asked.artifacts.len());
        let mut known = self.0.imported.lock().unwrap();
        let artifacts = asked.artifacts.into_iter().map(|artifact| {
            if !artifact.configuration_json.contains("RestApi") {
                let error = "configuration.kind must be RestApi".to_owned();
                return ArtifactImport { dpid: artifact.dpid, error, ..ArtifactImport::default() };
            }
            let made = known.entry((asked.gateway_id.clone(), artifact.dpid.clone())).or_insert_with(|| {
                let ids = service_kit::Ids::new(Clock::system());
                let (api_id, deployment_id) = (ids.next(), ids.next());
                let event = if artifact.deployed { "api.deployed" } else { "api.undeployed" };
                ArtifactImport {
                    dpid: artifact.dpid.clone(),
                    payload_json: format!(r#"{{"apiId":"{api_id}","deploymentId":"{deployment_id}"}}"#),
                    api_id,
                    deployment_id,
                    created_at: artifact.deployed_at,
                    updated_at: artifact.deployed_at,
                    performed_at: artifact.deployed_at,
                    event_type: event.to_owned(),
                    error: String::new(),
                }
            });
            made.clone()
        });
        Ok(Response::new(ImportArtifactsResponse { artifacts: artifacts.collect() }))
    }

    async fn report_deployments(
        &self,
        request: Request<ReportDeploymentsRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.up()?;
        self.0.reports.lock().unwrap().extend(request.into_inner().reports);
        Ok(Response::new(()))
    }

    async fn list_desired(
        &self,
        _: Request<ListDesiredRequest>,
    ) -> Result<Response<ListDesiredResponse>, Status> {
        self.0.up()?;
        let deployments = self.0.desired.lock().unwrap().clone();
        self.0.listed.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(ListDesiredResponse { deployments }))
    }

    async fn get_artifacts(
        &self,
        request: Request<GetArtifactsRequest>,
    ) -> Result<Response<GetArtifactsResponse>, Status> {
        self.0.up()?;
        let asked = request.into_inner();
        let mut artifacts = self.0.artifacts.lock().unwrap().clone();
        artifacts.retain(|artifact| {
            asked.deployment_ids.contains(&artifact.deployment_id)
                || (asked.deployment_ids.is_empty() && artifact.api_id == asked.api_id)
        });
        Ok(Response::new(GetArtifactsResponse { artifacts }))
    }

    async fn apis_exist(
        &self,
        request: Request<ApisExistRequest>,
    ) -> Result<Response<ApisExistResponse>, Status> {
        self.0.up()?;
        let artifacts = self.0.artifacts.lock().unwrap();
        let mut api_ids = request.into_inner().api_ids;
        api_ids.retain(|id| artifacts.iter().any(|artifact| artifact.api_id == *id));
        Ok(Response::new(ApisExistResponse { api_ids }))
    }
}

async fn serve(ca: &DevCa, signer: &Signer, name: &'static str, routes: Routes) -> Running {
    let server = GrpcServer {
        name,
        identity: ca.identity(name).unwrap(),
        verifier: Verifier::new(Signer::config(), Arc::new(signer.clone()), Clock::system()),
        routes,
        tasks: Tasks::new(),
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap()
}

pub(crate) async fn serve_auth(ca: &DevCa, signer: &Signer) -> Running {
    serve(ca, signer, "auth-service", signer.routes()).await
}

pub(crate) async fn serve_project(ca: &DevCa, signer: &Signer, project: Arc<Project>) -> Running {
    let face = Face(project);
    let routes = Routes::new(AccessServiceServer::new(face.clone()))
        .add_service(DesiredStateServiceServer::new(face).max_decoding_message_size(8 * 1024 * 1024));
    serve(ca, signer, "project-service", routes).await
}
