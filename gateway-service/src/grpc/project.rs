//! What is asked of project-service, and the reports that it gets.

use async_trait::async_trait;
use prost::Message as _;
use proto::project::{
    self as pb, access_service_client::AccessServiceClient, check_response,
    desired_state_service_client::DesiredStateServiceClient,
};
use service_kit::{
    Error, Result,
    client::Upstream,
    outbox::{Entry, Sink},
};
use tonic::Status;

use crate::domain::{
    access::{AccessSource, Decision},
    artifacts::{Artifact, Desired, DesiredState, unix_ms},
};

/// Artifacts come in one message.
const MAX_ARTIFACTS: usize = 64 * 1024 * 1024;

/// project-service.
#[derive(Debug, Clone)]
pub(crate) struct ProjectClient {
    access: AccessServiceClient<Upstream>,
    desired: DesiredStateServiceClient<Upstream>,
}

impl ProjectClient {
    /// The project-service behind `upstream`.
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self {
            access: AccessServiceClient::new(upstream.clone()),
            desired: DesiredStateServiceClient::new(upstream).max_decoding_message_size(MAX_ARTIFACTS),
        }
    }

    async fn get_artifacts(&self, request: pb::GetArtifactsRequest) -> Result<Vec<Artifact>> {
        let answer = self.desired.clone().get_artifacts(request).await.map_err(unavailable)?;
        let artifact = |artifact: pb::Artifact| Artifact {
            api_id: artifact.api_id,
            deployment_id: artifact.deployment_id,
            yaml: artifact.yaml,
        };
        Ok(answer.into_inner().artifacts.into_iter().map(artifact).collect())
    }
}

/// Whatever the reason: without an answer nothing is proven, and a gateway takes a refusal as final.
fn unavailable(status: Status) -> Error {
    Error::unavailable("the projects cannot be asked right now", status)
}

#[async_trait]
impl AccessSource for ProjectClient {
    async fn check(&self, user_id: &str, organization_id: &str, permission: &str) -> Result<Decision> {
        let request = pb::CheckRequest {
            user_id: user_id.to_owned(),
            organization_id: organization_id.to_owned(),
            permission: permission.to_owned(),
        };
        let answer = self.access.clone().check(request).await.map_err(unavailable)?;
        match answer.into_inner().decision() {
            check_response::Decision::Allowed => Ok(Decision::Allowed),
            check_response::Decision::Denied => Ok(Decision::Denied),
            check_response::Decision::Hidden => Ok(Decision::Hidden),
            check_response::Decision::Unspecified => {
                Err(Error::internal(anyhow::anyhow!("project-service gave no decision")))
            }
        }
    }

    async fn organizations(&self, user_id: &str, permission: &str) -> Result<Vec<String>> {
        let request =
            pb::ListMembershipsRequest { user_id: user_id.to_owned(), permission: permission.to_owned() };
        let answer = self.access.clone().list_memberships(request).await.map_err(unavailable)?;
        Ok(answer.into_inner().organization_ids)
    }
}

#[async_trait]
impl DesiredState for ProjectClient {
    async fn desired(&self, gateway_id: &str) -> Result<Vec<Desired>> {
        let request = pb::ListDesiredRequest { gateway_id: gateway_id.to_owned() };
        let answer = self.desired.clone().list_desired(request).await.map_err(unavailable)?;
        let desired = |desired: pb::DesiredDeployment| Desired {
            api_id: desired.api_id,
            deployment_id: desired.deployment_id,
            deployed: desired.deployed,
            requested_at: unix_ms(desired.requested_at),
        };
        Ok(answer.into_inner().deployments.into_iter().map(desired).collect())
    }

    async fn artifacts(&self, gateway_id: &str, deployment_ids: Vec<String>) -> Result<Vec<Artifact>> {
        let gateway_id = gateway_id.to_owned();
        self.get_artifacts(pb::GetArtifactsRequest { gateway_id, deployment_ids, api_id: String::new() })
            .await
    }

    async fn artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<Artifact>> {
        let request = pb::GetArtifactsRequest {
            gateway_id: gateway_id.to_owned(),
            deployment_ids: Vec::new(),
            api_id: api_id.to_owned(),
        };
        Ok(self.get_artifacts(request).await?.into_iter().find(|artifact| artifact.api_id == api_id))
    }

    async fn existing(&self, organization_id: &str, api_ids: Vec<String>) -> Result<Vec<String>> {
        let request = pb::ApisExistRequest { organization_id: organization_id.to_owned(), api_ids };
        let answer = self.desired.clone().apis_exist(request).await.map_err(unavailable)?;
        Ok(answer.into_inner().api_ids)
    }
}

/// Delivers the outbox of reports.
#[async_trait]
impl Sink for ProjectClient {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        let reports = entries
            .iter()
            .map(|entry| pb::DeploymentReport::decode(entry.payload.as_slice()))
            .collect::<Result<_, _>>()
            .map_err(Error::internal)?;
        let request = pb::ReportDeploymentsRequest { reports };
        self.desired.clone().report_deployments(request).await.map_err(unavailable)?;
        Ok(())
    }
}
