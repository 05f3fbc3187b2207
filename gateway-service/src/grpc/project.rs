//! What is asked of project-service, and the reports that it gets.

use async_trait::async_trait;
use prost::Message as _;
use proto::{
    project::{
        self as pb, access_service_client::AccessServiceClient, check_response,
        desired_state_service_client::DesiredStateServiceClient,
    },
    time::Timestamp,
};
use service_kit::{
    Error, Result,
    client::Upstream,
    outbox::{Entry, Sink},
};
use tonic::Status;

use crate::{
    domain::{
        access::{AccessSource, Decision},
        artifacts::{Artifact, Desired, DesiredState, unix_ms},
        imports::{Adopted, Handed, Imported, Taken},
        reconcile::{Wanted, WantedState},
        tokens::Bearer,
    },
    events,
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
        let request = pb::ListDesiredRequest { gateway_id: gateway_id.to_owned(), ..Default::default() };
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

    async fn import(&self, bearer: &Bearer, artifacts: Vec<Handed>) -> Result<Imported> {
        let artifact = |handed: Handed| pb::ImportedArtifact {
            dpid: handed.dpid,
            configuration_json: handed.configuration,
            deployed: handed.deployed,
            deployed_at: Some(Timestamp::from_unix_ms(handed.deployed_at)),
        };
        let request = pb::ImportArtifactsRequest {
            organization_id: bearer.organization_id.clone(),
            gateway_id: bearer.gateway_id.clone(),
            artifacts: artifacts.into_iter().map(artifact).collect(),
        };
        let answer = self.desired.clone().import_artifacts(request).await.map_err(unavailable)?;
        Ok(answer.into_inner().artifacts.into_iter().map(taken).collect())
    }
}

fn taken(import: pb::ArtifactImport) -> (String, Result<Taken, String>) {
    if import.api_id.is_empty() || !import.error.is_empty() {
        return (import.dpid, Err(import.error));
    }
    let event = Adopted {
        artifact_id: import.api_id.clone(),
        deployment_id: import.deployment_id,
        deployed: import.event_type == events::API_DEPLOYED,
        event_type: import.event_type,
        payload_json: import.payload_json,
        performed_at: unix_ms(import.performed_at),
    };
    let (created_at, updated_at) = (unix_ms(import.created_at), unix_ms(import.updated_at));
    (import.dpid, Ok(Taken { api_id: import.api_id, event, created_at, updated_at }))
}

#[async_trait]
impl WantedState for ProjectClient {
    async fn wanted(&self, gateway_id: &str, vhost: &str) -> Result<Vec<Wanted>> {
        let request = pb::ListDesiredRequest { gateway_id: gateway_id.to_owned(), vhost: vhost.to_owned() };
        let answer = self.desired.clone().list_desired(request).await.map_err(unavailable)?;
        let wanted = |desired: pb::DesiredDeployment| Wanted {
            artifact_id: desired.api_id,
            deployment_id: desired.deployment_id,
            event_id: desired.event_id,
            event_type: desired.event_type,
            payload_json: desired.payload_json,
            on_its_way: desired.on_its_way,
        };
        Ok(answer.into_inner().deployments.into_iter().map(wanted).collect())
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
