//! `GatewayService`.

use async_trait::async_trait;
use proto::gateway::{self as pb, gateway_service_server::GatewayService};
use secrecy::ExposeSecret as _;
use service_kit::{AuthContext, page::Page};
use tonic::{Request, Response, Status};

use super::{count, time};
use crate::{
    domain::{
        gateways::{Details, Gateway, Gateways, Registration},
        tokens::{Token, Tokens},
    },
    link::Hub,
};

const STORE_IT: &str =
    "Store the token now: it is not shown again. The gateway sends it in the header `api-key`.";

/// The registry's face.
#[derive(Debug)]
pub(crate) struct GatewayApi {
    pub(crate) gateways: Gateways,
    pub(crate) tokens: Tokens,
    pub(crate) hub: Hub,
}

impl GatewayApi {
    async fn gateway(&self, gateway: Gateway) -> Result<pb::Gateway, Status> {
        Ok(self.gateways_of(vec![gateway]).await?.remove(0))
    }

    async fn gateways_of(&self, gateways: Vec<Gateway>) -> Result<Vec<pb::Gateway>, Status> {
        let ids: Vec<String> = gateways.iter().map(|gateway| gateway.id.clone()).collect();
        let connected = self.hub.connected(&ids).await?;
        Ok(gateways.into_iter().map(|gateway| shown(connected.contains(&gateway.id), gateway)).collect())
    }
}

fn shown(is_active: bool, gateway: Gateway) -> pb::Gateway {
    pb::Gateway {
        is_active,
        id: gateway.id,
        organization_id: gateway.organization_id,
        name: gateway.name,
        display_name: gateway.details.display_name,
        description: gateway.details.description,
        vhost: gateway.details.vhost,
        endpoints: gateway.details.endpoints,
        functionality_type: gateway.functionality.name().to_owned(),
        is_critical: gateway.details.is_critical,
        version: gateway.version,
        created_at: time(gateway.created_at),
        updated_at: time(gateway.updated_at),
    }
}

fn token(token: Token) -> pb::GatewayToken {
    pb::GatewayToken {
        id: token.id,
        status: if token.revoked_at.is_some() { "revoked" } else { "active" }.to_owned(),
        created_at: time(token.created_at),
        revoked_at: token.revoked_at.and_then(time),
        last_used_at: token.last_used_at.and_then(time),
    }
}

#[async_trait]
impl GatewayService for GatewayApi {
    async fn register_gateway(
        &self,
        request: Request<pb::RegisterGatewayRequest>,
    ) -> Result<Response<pb::Gateway>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let registration = Registration {
            organization_id: asked.organization_id,
            name: asked.name,
            functionality: asked.functionality_type,
            details: Details {
                display_name: asked.display_name,
                description: asked.description,
                vhost: asked.vhost,
                endpoints: asked.endpoints,
                is_critical: asked.is_critical,
            },
        };
        let gateway = self.gateways.register(&caller, registration).await?;
        Ok(Response::new(self.gateway(gateway).await?))
    }

    async fn list_gateways(
        &self,
        request: Request<pb::ListGatewaysRequest>,
    ) -> Result<Response<pb::ListGatewaysResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let page = Page::of(asked.limit, asked.offset)?;
        let (gateways, total) = self.gateways.list(&caller, &asked.organization_id, page).await?;
        Ok(Response::new(pb::ListGatewaysResponse {
            count: count(gateways.len()),
            list: self.gateways_of(gateways).await?,
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn get_gateway(
        &self,
        request: Request<pb::GetGatewayRequest>,
    ) -> Result<Response<pb::Gateway>, Status> {
        let caller = AuthContext::of(&request)?;
        let gateway =
            self.gateways.permitted(&caller, &request.get_ref().gateway_id, "gateways:read").await?;
        Ok(Response::new(self.gateway(gateway).await?))
    }

    async fn update_gateway(
        &self,
        request: Request<pb::UpdateGatewayRequest>,
    ) -> Result<Response<pb::Gateway>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let details = Details {
            display_name: asked.display_name,
            description: asked.description,
            vhost: asked.vhost,
            endpoints: asked.endpoints,
            is_critical: asked.is_critical,
        };
        let gateway = self.gateways.update(&caller, &asked.gateway_id, details).await?;
        Ok(Response::new(self.gateway(gateway).await?))
    }

    async fn delete_gateway(
        &self,
        request: Request<pb::DeleteGatewayRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = AuthContext::of(&request)?;
        self.gateways.delete(&caller, &request.get_ref().gateway_id).await?;
        Ok(Response::new(()))
    }

    async fn rotate_token(
        &self,
        request: Request<pb::RotateTokenRequest>,
    ) -> Result<Response<pb::RotateTokenResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let gateway_id = request.into_inner().gateway_id;
        let (token, secret) = self.tokens.rotate(&caller, &gateway_id).await?;
        Ok(Response::new(pb::RotateTokenResponse {
            id: token.id,
            gateway_id,
            token: secret.expose_secret().to_owned(),
            created_at: time(token.created_at),
            message: STORE_IT.to_owned(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let tokens = self.tokens.list(&caller, &request.get_ref().gateway_id).await?;
        Ok(Response::new(pb::ListTokensResponse {
            count: count(tokens.len()),
            list: tokens.into_iter().map(token).collect(),
        }))
    }

    async fn revoke_token(&self, request: Request<pb::RevokeTokenRequest>) -> Result<Response<()>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        self.tokens.revoke(&caller, &asked.gateway_id, &asked.token_id).await?;
        Ok(Response::new(()))
    }
}
