//! `DeploymentService` for users and `DesiredStateService` for gateway-service.

use proto::project::{
    ApisExistRequest, ApisExistResponse, Artifact, DeployRevisionRequest, DeployRevisionResponse,
    Deployment as DeploymentMessage, DeploymentReport, DeploymentStatus, DeploymentTarget, DesiredDeployment,
    GetArtifactsRequest, GetArtifactsResponse, ImportArtifactsRequest, ImportArtifactsResponse,
    ListDeploymentsRequest, ListDeploymentsResponse, ListDesiredRequest, ListDesiredResponse,
    ReportDeploymentsRequest, UndeployRevisionRequest, UndeployRevisionResponse,
    deployment_service_server::{DeploymentService, DeploymentServiceServer},
    desired_state_service_server::{DesiredStateService, DesiredStateServiceServer},
};
use service_kit::{AuthContext, field::Checks, page::Page, server::max_request_bytes};
use tonic::{Request, Response, Status, server::NamedService};

use super::{count, imports, time};
use crate::domain::{
    deployments::{self as domain, Counts, Deployment, Deployments, Desired, Report, Target},
    imports::Imports,
};

/// The most reports of one call.
const REPORTS: usize = 500;
/// The most artifacts of one call.
const ARTIFACTS: usize = 50;
/// The most imports of one call.
const IMPORTS: usize = 100;
/// The most APIs of one call.
const APIS: usize = 1_000;

/// `DeploymentService`.
#[derive(Debug)]
pub(crate) struct DeploymentGrpc {
    pub(crate) deployments: Deployments,
}

/// `DesiredStateService`.
#[derive(Debug)]
pub(crate) struct DesiredStateGrpc {
    pub(crate) deployments: Deployments,
    pub(crate) imports: Imports,
}

impl DeploymentGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> DeploymentServiceServer<Self> {
        let limit = max_request_bytes(DeploymentServiceServer::<Self>::NAME);
        DeploymentServiceServer::new(self).max_decoding_message_size(limit)
    }
}

impl DesiredStateGrpc {
    /// As a gRPC service.
    pub(crate) fn server(self) -> DesiredStateServiceServer<Self> {
        let limit = max_request_bytes(DesiredStateServiceServer::<Self>::NAME);
        DesiredStateServiceServer::new(self).max_decoding_message_size(limit)
    }
}

#[tonic::async_trait]
impl DeploymentService for DeploymentGrpc {
    async fn deploy_revision(
        &self,
        request: Request<DeployRevisionRequest>,
    ) -> Result<Response<DeployRevisionResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let targets = targets(request.deployments);
        let (rows, counts) =
            self.deployments.deploy(&caller, &request.api_id, &request.revision_id, &targets).await?;
        Ok(Response::new(DeployRevisionResponse { deployments: messages(rows, counts) }))
    }

    async fn undeploy_revision(
        &self,
        request: Request<UndeployRevisionRequest>,
    ) -> Result<Response<UndeployRevisionResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let targets = targets(request.deployments);
        let (rows, counts) =
            self.deployments.undeploy(&caller, &request.api_id, &request.revision_id, &targets).await?;
        Ok(Response::new(UndeployRevisionResponse { deployments: messages(rows, counts) }))
    }

    async fn list_deployments(
        &self,
        request: Request<ListDeploymentsRequest>,
    ) -> Result<Response<ListDeploymentsResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let page = Page::of(request.limit, request.offset)?;
        let (listed, counts) = self.deployments.list(&caller, &request.api_id, page).await?;
        Ok(Response::new(ListDeploymentsResponse {
            count: count(&listed.list),
            list: messages(listed.list, counts),
            pagination: Some(page.pagination(listed.total)),
        }))
    }
}

#[tonic::async_trait]
impl DesiredStateService for DesiredStateGrpc {
    async fn report_deployments(
        &self,
        request: Request<ReportDeploymentsRequest>,
    ) -> Result<Response<()>, Status> {
        let reports = request.into_inner().reports;
        at_most("reports", reports.len(), REPORTS)?;
        let reports: Vec<Report> = reports.into_iter().filter_map(report).collect();
        self.deployments.report(&reports).await?;
        Ok(Response::new(()))
    }

    async fn list_desired(
        &self,
        request: Request<ListDesiredRequest>,
    ) -> Result<Response<ListDesiredResponse>, Status> {
        let request = request.into_inner();
        let desired = self.deployments.desired(&request.gateway_id, &request.vhost).await?;
        Ok(Response::new(ListDesiredResponse {
            deployments: desired.into_iter().map(desired_message).collect(),
        }))
    }

    async fn get_artifacts(
        &self,
        request: Request<GetArtifactsRequest>,
    ) -> Result<Response<GetArtifactsResponse>, Status> {
        let GetArtifactsRequest { gateway_id, deployment_ids, api_id } = request.into_inner();
        at_most("deploymentIds", deployment_ids.len(), ARTIFACTS)?;
        let found = if deployment_ids.is_empty() {
            self.deployments.newest_artifact(&gateway_id, &api_id).await?.into_iter().collect()
        } else {
            self.deployments.artifacts(&gateway_id, &deployment_ids).await?
        };
        let message = |artifact: domain::Artifact| Artifact {
            api_id: artifact.api_id,
            deployment_id: artifact.deployment_id,
            yaml: artifact.yaml.into_bytes(),
        };
        Ok(Response::new(GetArtifactsResponse { artifacts: found.into_iter().map(message).collect() }))
    }

    async fn import_artifacts(
        &self,
        request: Request<ImportArtifactsRequest>,
    ) -> Result<Response<ImportArtifactsResponse>, Status> {
        let ImportArtifactsRequest { organization_id, gateway_id, artifacts } = request.into_inner();
        at_most("artifacts", artifacts.len(), IMPORTS)?;
        let artifacts: Vec<_> = artifacts.into_iter().map(imports::artifact).collect();
        let answers = self.imports.import(&organization_id, &gateway_id, &artifacts).await?;
        let message = |(artifact, answer)| imports::message(artifact, answer);
        let artifacts = artifacts.into_iter().zip(answers).map(message).collect();
        Ok(Response::new(ImportArtifactsResponse { artifacts }))
    }

    async fn apis_exist(
        &self,
        request: Request<ApisExistRequest>,
    ) -> Result<Response<ApisExistResponse>, Status> {
        let request = request.into_inner();
        at_most("apiIds", request.api_ids.len(), APIS)?;
        let api_ids = self.deployments.existing(&request.organization_id, &request.api_ids).await?;
        Ok(Response::new(ApisExistResponse { api_ids }))
    }
}

fn at_most(field: &str, count: usize, most: usize) -> service_kit::Result<()> {
    Checks::new().that(count <= most, field, &format!("must have at most {most} entries")).done()
}

fn targets(messages: Vec<DeploymentTarget>) -> Vec<Target> {
    let target = |message: DeploymentTarget| Target {
        revision_id: message.revision_id,
        gateway_id: message.gateway_id,
        name: message.name,
        vhost: message.vhost,
        display_on_devportal: message.display_on_devportal,
    };
    messages.into_iter().map(target).collect()
}

fn messages(rows: Vec<Deployment>, counts: Counts) -> Vec<DeploymentMessage> {
    rows.into_iter().map(|row| message(row, counts)).collect()
}

fn message(row: Deployment, counts: Counts) -> DeploymentMessage {
    DeploymentMessage {
        status: status(row.status).into(),
        id: row.id,
        api_id: row.api_id,
        revision_id: row.revision_id,
        gateway_id: row.gateway_id,
        name: row.name,
        vhost: row.vhost,
        display_on_devportal: row.display_on_devportal,
        status_reason: row.status_reason,
        deployed_time: time(row.deployed_at),
        success_deployed_time: row.success_at.and_then(time),
        live_gateway_count: counts.live,
        deployed_gateway_count: counts.deployed,
        failed_gateway_count: counts.failed,
    }
}

fn desired_message(desired: Desired) -> DesiredDeployment {
    let Desired { deployment, event, on_its_way } = desired;
    DesiredDeployment {
        api_id: deployment.api_id,
        deployment_id: deployment.id,
        revision_id: deployment.revision_id,
        deployed: deployment.desired,
        requested_at: time(deployment.requested_at),
        event_type: event.r#type,
        payload_json: event.payload_json,
        event_id: event.id,
        on_its_way,
    }
}

fn status(status: domain::Status) -> DeploymentStatus {
    match status {
        domain::Status::Pending => DeploymentStatus::Pending,
        domain::Status::Delivered => DeploymentStatus::Delivered,
        domain::Status::Deployed => DeploymentStatus::Deployed,
        domain::Status::Failed => DeploymentStatus::Failed,
        domain::Status::Undeploying => DeploymentStatus::Undeploying,
        domain::Status::Undeployed => DeploymentStatus::Undeployed,
    }
}

/// A report that says something. One that does not is passed over: refusing it would hold up, for good,
/// all that its sender has behind it.
fn report(message: DeploymentReport) -> Option<Report> {
    let action = match message.action.as_str() {
        "deploy" => Some(domain::Action::Deploy),
        "undeploy" => Some(domain::Action::Undeploy),
        "delete" => Some(domain::Action::Delete),
        _ => None,
    };
    let status = domain::Status::parse(message.status().as_str_name());
    let (Some(action), Some(status)) = (action, status) else {
        tracing::warn!(deployment = message.deployment_id, "a report without an action or a status");
        return None;
    };
    Some(Report {
        reported_at: message.reported_at.map_or(0, |time| time.unix_ms()),
        deployment_id: message.deployment_id,
        gateway_id: message.gateway_id,
        action,
        status,
        reason: message.reason,
    })
}
