//! `GatewayOperationsService`.

use async_trait::async_trait;
use proto::{
    Struct, Value as PbValue,
    gateway::{self as pb, gateway_operations_service_server::GatewayOperationsService},
    value::Kind,
};
use serde_json::{Map, Number, Value};
use service_kit::{AuthContext, Error, Result, page::Page};
use tonic::{Request, Response, Status};

use super::{count, time};
use crate::domain::{
    operations::{FailedDelivery, Live, Operations, OperatorEvent, Window},
    states::{ArtifactState, Reported},
};

/// Up to here every integer is a floating number too.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The face of operations.
#[derive(Debug)]
pub(crate) struct OperationsApi {
    pub(crate) operations: Operations,
}

#[async_trait]
impl GatewayOperationsService for OperationsApi {
    async fn list_connections(
        &self,
        request: Request<pb::ListConnectionsRequest>,
    ) -> Result<Response<pb::ListConnectionsResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let page = Page::of(asked.limit, asked.offset)?;
        let (list, total) =
            self.operations.connections(&caller, &asked.gateway_id, &asked.organization_id, page).await?;
        Ok(Response::new(pb::ListConnectionsResponse {
            count: count(list.len()),
            list: list.into_iter().map(connection).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn list_failed_deliveries(
        &self,
        request: Request<pb::ListFailedDeliveriesRequest>,
    ) -> Result<Response<pb::ListFailedDeliveriesResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let page = Page::of(asked.limit, asked.offset)?;
        let window = Window { from: asked.from.map(|at| at.unix_ms()), to: asked.to.map(|at| at.unix_ms()) };
        let (gateway, organization) = (&asked.gateway_id, &asked.organization_id);
        let (list, total) = self.operations.failures(&caller, gateway, organization, window, page).await?;
        Ok(Response::new(pb::ListFailedDeliveriesResponse {
            count: count(list.len()),
            list: list.into_iter().map(failure).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn list_artifact_states(
        &self,
        request: Request<pb::ListArtifactStatesRequest>,
    ) -> Result<Response<pb::ListArtifactStatesResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let page = Page::of(asked.limit, asked.offset)?;
        let (list, total) =
            self.operations.artifacts(&caller, &asked.gateway_id, asked.only_drifted, page).await?;
        Ok(Response::new(pb::ListArtifactStatesResponse {
            count: count(list.len()),
            list: list.into_iter().map(artifact).collect(),
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn resync(
        &self,
        request: Request<pb::ResyncRequest>,
    ) -> Result<Response<pb::ResyncResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let (events, head) =
            self.operations.resync(&caller, &asked.gateway_id, &asked.artifact_id, asked.full).await?;
        Ok(Response::new(pb::ResyncResponse { events: count(events), head_revision: number(head) }))
    }

    async fn send_event(
        &self,
        request: Request<pb::SendEventRequest>,
    ) -> Result<Response<pb::SendEventResponse>, Status> {
        let caller = AuthContext::of(&request)?;
        let asked = request.into_inner();
        let event = OperatorEvent {
            gateway_id: asked.gateway_id,
            event_type: asked.r#type,
            payload: asked.payload.map(object).transpose()?,
            about: asked.key,
            id: asked.event_id,
        };
        let (event_id, connected) = self.operations.send(&caller, event).await?;
        Ok(Response::new(pb::SendEventResponse { event_id, connected }))
    }

    async fn get_stats(&self, request: Request<pb::GetStatsRequest>) -> Result<Response<pb::Stats>, Status> {
        let caller = AuthContext::of(&request)?;
        let stats = self.operations.stats(&caller).await?;
        let (last_failure_time, last_failure_reason) = match stats.deliveries.last_failure {
            Some((at, reason)) => (time(at), reason),
            None => (None, String::new()),
        };
        Ok(Response::new(pb::Stats {
            gateway_connections: Some(pb::ConnectionStats {
                total_active: u32::try_from(stats.active).unwrap_or(u32::MAX),
                connections: stats.connections.into_iter().map(connection_stat).collect(),
            }),
            event_delivery: Some(pb::DeliveryStats {
                total_events_sent: number(stats.deliveries.sent),
                failed_deliveries: number(stats.deliveries.failed),
                last_failure_time,
                last_failure_reason,
            }),
        }))
    }
}

fn connection(live: Live) -> pb::Connection {
    let health = health(&live);
    let connection = live.connection;
    pb::Connection {
        id: connection.id,
        gateway_id: connection.gateway_id,
        gateway_name: live.gateway_name,
        organization_id: connection.organization_id,
        instance_id: connection.instance_id,
        transport: connection.transport,
        version: connection.version,
        remote_address: connection.remote_address,
        connected_at: time(connection.connected_at),
        last_heartbeat: time(connection.heard_at),
        health,
        sent_revision: number(connection.sent_revision),
        lag: number(live.lag),
        node: connection.node_id,
    }
}

fn connection_stat(live: Live) -> pb::ConnectionStat {
    pb::ConnectionStat {
        status: health(&live),
        gateway_id: live.connection.gateway_id,
        connection_id: live.connection.id,
        connected_at: time(live.connection.connected_at),
        last_heartbeat: time(live.connection.heard_at),
    }
}

fn health(live: &Live) -> String {
    if live.stale { "stale" } else { "connected" }.to_owned()
}

fn failure(failure: FailedDelivery) -> pb::FailedDelivery {
    pb::FailedDelivery {
        id: failure.id,
        gateway_id: failure.gateway_id,
        instance_id: failure.instance_id,
        revision: number(failure.revision),
        event_type: failure.event_type,
        artifact_id: failure.artifact_id,
        deployment_id: failure.deployment_id,
        reason: failure.reason,
        detail: failure.detail,
        failed_at: time(failure.failed_at),
    }
}

fn artifact(state: ArtifactState) -> pb::ArtifactState {
    pb::ArtifactState {
        desired: state.desired_name().to_owned(),
        status: state.status().to_owned(),
        artifact_id: state.artifact_id,
        deployment_id: state.deployment_id,
        revision: number(state.revision),
        desired_at: time(state.desired_at),
        reason: state.reason,
        drifted: state.drifted,
        reported: state.reported.into_iter().map(reported).collect(),
    }
}

fn reported(reported: Reported) -> pb::ReportedState {
    pb::ReportedState {
        instance_id: reported.instance_id,
        deployment_id: reported.deployment_id,
        revision: number(reported.revision),
        rejected_revision: number(reported.rejected_revision),
        reason: reported.reason,
        reported_at: time(reported.reported_at),
    }
}

/// A number of the store, which is never negative.
fn number(of_store: i64) -> u64 {
    u64::try_from(of_store).unwrap_or(0)
}

/// A payload as JSON. Whole numbers are written as such: on the wire all are floating.
fn object(payload: Struct) -> Result<Value> {
    let fields = payload.fields.into_iter().map(|(name, value)| Ok((name, json(value)?)));
    Ok(Value::Object(fields.collect::<Result<Map<_, _>>>()?))
}

fn json(value: PbValue) -> Result<Value> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(whole)) if whole.fract() == 0.0 && whole.abs() < EXACT => {
            Value::from(whole as i64)
        }
        Some(Kind::NumberValue(number)) => Number::from_f64(number).map(Value::Number).ok_or_else(|| {
            Error::field("payload", "must hold no numbers that are infinite or not a number")
        })?,
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(json).collect::<Result<_>>()?)
        }
        Some(Kind::StructValue(part)) => object(part)?,
    })
}
