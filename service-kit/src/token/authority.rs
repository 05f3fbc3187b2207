//! Who is asked about tokens: auth-service, for its keys, for what it has revoked, and for single tokens
//! when that cannot be known.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use proto::auth::{
    GetJwksRequest, Jwks, RevocationUpdate, ValidateTokenRequest, WatchRevocationsRequest,
    identity_service_client::IdentityServiceClient, key_service_client::KeyServiceClient,
};

use tonic::{
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, StdError},
};

use super::{Claims, unreachable};
use crate::{client::Upstream, error::Result};

/// The feed of revocations.
pub type Feed = BoxStream<'static, Result<RevocationUpdate>>;

/// What a verifier asks.
#[async_trait]
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// The public keys as they are now.
    async fn jwks(&self) -> Result<Jwks>;
    /// Whether a token, whose signature and claims are good, is good now. Asked while the feed is lost.
    async fn is_active(&self, token: &str, claims: &Claims) -> Result<bool>;
    /// What was revoked after a position, and what will be.
    async fn revocations(&self, after: u64) -> Result<Feed>;
}

/// auth-service, asked over gRPC by any transport.
#[derive(Debug, Clone)]
pub struct RemoteAuthority<T = Upstream> {
    keys: KeyServiceClient<T>,
    identity: IdentityServiceClient<T>,
}

impl<T> RemoteAuthority<T>
where
    T: GrpcService<Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    /// Asks the auth-service behind `upstream`.
    pub fn new(upstream: T) -> Self {
        Self { keys: KeyServiceClient::new(upstream.clone()), identity: IdentityServiceClient::new(upstream) }
    }
}

// Whatever the reason of a failure: without an answer nothing is proven, which is no proof of a bad token.
#[async_trait]
impl<T> Authority for RemoteAuthority<T>
where
    T: GrpcService<Body> + fmt::Debug + Clone + Send + Sync + 'static,
    T::Error: Into<StdError>,
    T::Future: Send,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    async fn jwks(&self) -> Result<Jwks> {
        let answer = self.keys.clone().get_jwks(GetJwksRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(unreachable)
    }

    async fn is_active(&self, token: &str, _: &Claims) -> Result<bool> {
        let request = ValidateTokenRequest { access_token: token.to_owned() };
        let answer = self.identity.clone().validate_token(request).await;
        answer.map(|answer| answer.into_inner().active).map_err(unreachable)
    }

    async fn revocations(&self, after: u64) -> Result<Feed> {
        let answer = self.identity.clone().watch_revocations(WatchRevocationsRequest { after }).await;
        let stream = answer.map_err(unreachable)?.into_inner();
        Ok(stream.map(|update| update.map_err(unreachable)).boxed())
    }
}
