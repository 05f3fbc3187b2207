//! `GatewayInternalService`: what gateways call. Their token names them, nothing else does.

use async_trait::async_trait;
use proto::{
    gateway::{self as pb, gateway_internal_service_server::GatewayInternalService},
    google::api::HttpBody,
};
use tonic::{Request, Response, Status};

use super::{authenticate_gateway, time};
use crate::domain::{
    artifacts::{Artifacts, Listed},
    manifests::Manifests,
    tokens::Tokens,
};

/// What gateways ask for in `Accept`.
const TAR_GZ: &str = "application/x-tar+gzip";
const ZIP: &str = "application/zip";

/// The face for gateways.
#[derive(Debug)]
pub(crate) struct InternalApi {
    pub(crate) tokens: Tokens,
    pub(crate) artifacts: Artifacts,
    pub(crate) manifests: Manifests,
}

#[async_trait]
impl GatewayInternalService for InternalApi {
    async fn list_gateway_deployments(
        &self,
        request: Request<pb::ListGatewayDeploymentsRequest>,
    ) -> Result<Response<pb::ListGatewayDeploymentsResponse>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let since = request.get_ref().since.map(|time| time.unix_ms());
        let listed = self.artifacts.list(&bearer, since).await?;
        let deployments = listed.into_iter().map(deployment).collect();
        Ok(Response::new(pb::ListGatewayDeploymentsResponse { deployments }))
    }

    async fn fetch_batch(
        &self,
        request: Request<pb::FetchBatchRequest>,
    ) -> Result<Response<HttpBody>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let data = self.artifacts.batch(&bearer, request.into_inner().deployment_ids).await?;
        Ok(body(TAR_GZ, data))
    }

    async fn fetch_api(&self, request: Request<pb::FetchApiRequest>) -> Result<Response<HttpBody>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let data = self.artifacts.api(&bearer, &request.get_ref().api_id).await?;
        Ok(body(ZIP, data))
    }

    async fn artifacts_exist(
        &self,
        request: Request<pb::ArtifactsExistRequest>,
    ) -> Result<Response<pb::ArtifactsExistResponse>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let found = self.artifacts.exist(&bearer, request.into_inner().artifact_ids).await?;
        let artifacts = found
            .into_iter()
            .map(|(artifact_id, exists)| pb::ArtifactExists { artifact_id, exists })
            .collect();
        Ok(Response::new(pb::ArtifactsExistResponse { artifacts }))
    }

    async fn put_manifest(&self, request: Request<pb::PutManifestRequest>) -> Result<Response<()>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let manifest = request.into_inner().manifest.unwrap_or_default();
        self.manifests.put(&bearer, &manifest.data).await?;
        Ok(Response::new(()))
    }
}

fn deployment(listed: Listed) -> pb::GatewayDeployment {
    pb::GatewayDeployment {
        artifact_id: listed.desired.api_id,
        deployment_id: listed.desired.deployment_id,
        kind: "RestApi".to_owned(),
        state: if listed.desired.deployed { "DEPLOYED" } else { "UNDEPLOYED" }.to_owned(),
        deployed_at: time(listed.deployed_at),
        etag: listed.etag,
    }
}

fn body(content_type: &str, data: Vec<u8>) -> Response<HttpBody> {
    Response::new(HttpBody { content_type: content_type.to_owned(), data })
}
