//! `DeviceService`.

use proto::{
    auth::{
        DecideDeviceAuthorizationRequest, DeviceAuthorization, DeviceRequest, ExchangeDeviceCodeRequest,
        GetDeviceAuthorizationRequest, StartDeviceAuthorizationRequest, TokenPair,
        device_service_server::DeviceService,
    },
    time::Timestamp,
};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo};
use tonic::{Request, Response, async_trait};

use super::{Answer, sessions::answer};
use crate::domain::{
    devices::{Authorization, Devices},
    sessions::Outcome,
};

/// `tollgate.auth.v1.DeviceService`.
#[derive(Debug)]
pub(crate) struct DeviceApi {
    pub(crate) devices: Devices,
}

#[async_trait]
impl DeviceService for DeviceApi {
    async fn start_device_authorization(
        &self,
        request: Request<StartDeviceAuthorizationRequest>,
    ) -> Answer<DeviceAuthorization> {
        let client = ClientInfo::of(&request);
        let StartDeviceAuthorizationRequest { client_id, scope } = request.into_inner();
        Ok(Response::new(encode(&self.devices.start(&client_id, &scope, &client).await?)))
    }

    async fn get_device_authorization(
        &self,
        request: Request<GetDeviceAuthorizationRequest>,
    ) -> Answer<DeviceRequest> {
        let caller = AuthContext::of(&request)?;
        let found = self.devices.get(&caller, &request.get_ref().user_code).await?;
        Ok(Response::new(DeviceRequest {
            client_id: found.client_id,
            scope: found.scope,
            address: found.address,
            created_at: Some(Timestamp::from_unix_ms(found.created_at)),
            expires_at: Some(Timestamp::from_unix_ms(found.expires_at)),
        }))
    }

    async fn decide_device_authorization(
        &self,
        request: Request<DecideDeviceAuthorizationRequest>,
    ) -> Answer<()> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let DecideDeviceAuthorizationRequest { user_code, approve } = request.into_inner();
        self.devices.decide(&caller, &user_code, approve, &client).await?;
        Ok(Response::new(()))
    }

    async fn exchange_device_code(&self, request: Request<ExchangeDeviceCodeRequest>) -> Answer<TokenPair> {
        let client = ClientInfo::of(&request);
        let device_code = SecretString::from(request.into_inner().device_code);
        let pair = self.devices.exchange(&device_code, &client).await?;
        Ok(answer(&Outcome::Pair(pair), false))
    }
}

fn encode(authorization: &Authorization) -> DeviceAuthorization {
    let Authorization { device_code, user_code, verification_uri, expires_in, interval } = authorization;
    DeviceAuthorization {
        device_code: device_code.expose_secret().to_owned(),
        user_code: user_code.clone(),
        verification_uri: verification_uri.clone(),
        verification_uri_complete: format!("{verification_uri}?user_code={user_code}"),
        expires_in: *expires_in,
        interval: *interval,
    }
}
