//! `GatewayInternalService`: what gateways call. Their token names them, nothing else does.

use async_trait::async_trait;
use proto::{
    gateway::{self as pb, gateway_internal_service_server::GatewayInternalService},
    google::api::HttpBody,
};
use service_kit::Error;
use tonic::{Request, Response, Status};

use super::{accept, authenticate_gateway, count, time};
use crate::domain::{
    artifacts::{Artifacts, Form, Listed},
    imports::{Imports, Taken},
    manifests::Manifests,
    tokens::Tokens,
};

/// What gateways ask for in `Accept`.
const TAR_GZ: &str = "application/x-tar+gzip";
const ZIP: &str = "application/zip";
const YAML: [&str; 3] = ["application/yaml", "application/x-yaml", "text/yaml"];

/// The kinds of artifacts that may have API keys, as paths name them.
const KEY_COLLECTIONS: [&str; 6] =
    ["", "apis", "websub-apis", "webbroker-apis", "llm-providers", "llm-proxies"];

/// The face for gateways.
#[derive(Debug)]
pub(crate) struct InternalApi {
    pub(crate) tokens: Tokens,
    pub(crate) artifacts: Artifacts,
    pub(crate) imports: Imports,
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
        accept::choose(request.metadata(), &[((), &[TAR_GZ])])?;
        let data = self.artifacts.batch(&bearer, request.into_inner().deployment_ids).await?;
        Ok(body(TAR_GZ, data))
    }

    async fn fetch_api(&self, request: Request<pb::FetchApiRequest>) -> Result<Response<HttpBody>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let form = accept::choose(request.metadata(), &[(Form::Zip, &[ZIP]), (Form::Yaml, &YAML)])?;
        let data = self.artifacts.api(&bearer, &request.get_ref().api_id, form).await?;
        Ok(body(if form == Form::Zip { ZIP } else { YAML[0] }, data))
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

    // The platform has no secrets, plans, subscriptions and API keys yet: there is none to list. The lists come with
    // the subscriptions of project-service.

    async fn list_secrets(
        &self,
        request: Request<pb::ListSecretsRequest>,
    ) -> Result<Response<pb::ListSecretsResponse>, Status> {
        authenticate_gateway(&self.tokens, request.metadata()).await?;
        Ok(Response::new(pb::ListSecretsResponse::default()))
    }

    async fn get_secret_value(
        &self,
        request: Request<pb::GetSecretValueRequest>,
    ) -> Result<Response<pb::SecretValue>, Status> {
        authenticate_gateway(&self.tokens, request.metadata()).await?;
        Err(Error::not_found("secret").into())
    }

    async fn list_subscription_plans(
        &self,
        request: Request<pb::ListSubscriptionPlansRequest>,
    ) -> Result<Response<pb::ListSubscriptionPlansResponse>, Status> {
        authenticate_gateway(&self.tokens, request.metadata()).await?;
        Ok(Response::new(pb::ListSubscriptionPlansResponse::default()))
    }

    async fn list_api_subscriptions(
        &self,
        request: Request<pb::ListApiSubscriptionsRequest>,
    ) -> Result<Response<pb::ListApiSubscriptionsResponse>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        self.artifacts.associated(&bearer, &request.get_ref().api_id).await?;
        Ok(Response::new(pb::ListApiSubscriptionsResponse::default()))
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<Response<pb::ListApiKeysResponse>, Status> {
        authenticate_gateway(&self.tokens, request.metadata()).await?;
        if !KEY_COLLECTIONS.contains(&request.get_ref().collection.as_str()) {
            return Err(Error::not_found("collection with API keys").into());
        }
        Ok(Response::new(pb::ListApiKeysResponse::default()))
    }

    async fn import_gateway_artifacts(
        &self,
        request: Request<pb::ImportGatewayArtifactsRequest>,
    ) -> Result<Response<pb::ImportGatewayArtifactsResponse>, Status> {
        let bearer = authenticate_gateway(&self.tokens, request.metadata()).await?;
        let form = request.into_inner().form.unwrap_or_default();
        let imported = self.imports.import(&bearer, &form.content_type, form.data.into()).await?;
        let failed = imported.values().filter(|artifact| artifact.is_err()).count();
        Ok(Response::new(pb::ImportGatewayArtifactsResponse {
            total: count(imported.len()),
            success: count(imported.len() - failed),
            failed: count(failed),
            artifacts: imported.into_iter().map(|(dpid, taken)| (dpid, artifact(taken))).collect(),
        }))
    }
}

fn artifact(taken: Result<Taken, String>) -> pb::ImportedGatewayArtifact {
    let origin = "gateway_api".to_owned();
    match taken {
        Ok(Taken { api_id, event, created_at, updated_at }) => pb::ImportedGatewayArtifact {
            id: api_id,
            status: if event.deployed { "deployed" } else { "undeployed" }.to_owned(),
            origin,
            created_at: time(created_at),
            updated_at: time(updated_at),
            deployed_at: time(event.performed_at),
            deployed_version: Some(event.deployment_id),
            error: None,
        },
        Err(error) => pb::ImportedGatewayArtifact {
            status: "failed".to_owned(),
            origin,
            error: Some(error),
            ..pb::ImportedGatewayArtifact::default()
        },
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
