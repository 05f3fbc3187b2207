//! `grpc.health.v1` of the edge itself. There is one thing to ask about, the edge as a whole, which serves until it
//! ends. (What its services are like, `GET /health` tells.)

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

/// Answers for the edge.
#[derive(Debug)]
pub(crate) struct Own {
    stop: CancellationToken,
}

type Answers = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

impl Own {
    /// Of an edge that ends with this.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { stop }
    }

    /// `None` for what nobody knows.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        let status =
            if self.stop.is_cancelled() { ServingStatus::NotServing } else { ServingStatus::Serving };
        service.is_empty().then_some(status)
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Own {
    type WatchStream = Answers;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.status(&request.get_ref().service);
        let status =
            status.ok_or_else(|| Status::not_found("only the edge as a whole is known: name no service"))?;
        Ok(Response::new(answer(status)))
    }

    /// Other than `Check`, this is not refused for what nobody knows: it might come to be.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Answers>, Status> {
        let status = self.status(&request.get_ref().service);
        let first = stream::iter([Ok(answer(status.unwrap_or(ServingStatus::ServiceUnknown)))]);
        let changes =
            (status == Some(ServingStatus::Serving)).then_some(Ok(answer(ServingStatus::NotServing)));
        let last = changes.into_iter().chain([Err(Status::unavailable("the edge ends"))]);
        let rest =
            stream::once(self.stop.clone().cancelled_owned()).flat_map(move |()| stream::iter(last.clone()));
        Ok(Response::new(Box::pin(first.chain(rest))))
    }
}
