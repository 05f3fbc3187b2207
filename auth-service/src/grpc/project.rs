//! project-service, asked over gRPC.

use proto::project::{
    CheckRequest, PutServiceAccountRequest, RemoveServiceAccountRequest,
    access_service_client::AccessServiceClient, check_response,
};
use service_kit::{Error, Result, client::Upstream};
use tonic::async_trait;

use crate::domain::organizations::{Decision, Organizations};

/// The project-service behind a channel.
#[derive(Debug, Clone)]
pub(crate) struct RemoteOrganizations(AccessServiceClient<Upstream>);

impl RemoteOrganizations {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self(AccessServiceClient::new(upstream))
    }
}

#[async_trait]
impl Organizations for RemoteOrganizations {
    async fn check(&self, user_id: &str, organization_id: &str, permission: &str) -> Result<Decision> {
        let request = CheckRequest {
            user_id: user_id.to_owned(),
            organization_id: organization_id.to_owned(),
            permission: permission.to_owned(),
        };
        let answer = self.0.clone().check(request).await.map_err(Error::from)?.into_inner();
        Ok(match answer.decision() {
            check_response::Decision::Allowed => Decision::Allowed(answer.role),
            check_response::Decision::Denied => Decision::Denied(answer.role),
            check_response::Decision::Hidden | check_response::Decision::Unspecified => Decision::Hidden,
        })
    }

    async fn put_service_account(&self, organization_id: &str, id: &str, role: &str) -> Result<()> {
        let request = PutServiceAccountRequest {
            organization_id: organization_id.to_owned(),
            service_account_id: id.to_owned(),
            role: role.to_owned(),
        };
        self.0.clone().put_service_account(request).await.map_err(Error::from)?;
        Ok(())
    }

    async fn remove_service_account(&self, organization_id: &str, id: &str) -> Result<()> {
        let request = RemoveServiceAccountRequest {
            organization_id: organization_id.to_owned(),
            service_account_id: id.to_owned(),
        };
        self.0.clone().remove_service_account(request).await.map_err(Error::from)?;
        Ok(())
    }
}
