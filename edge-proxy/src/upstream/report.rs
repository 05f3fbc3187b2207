//! `GET /upstreams` of the admin port: the services as the edge sees them.

use std::sync::Arc;

use axum::{Json, Router, routing::get};
use serde::Serialize;

use super::{Upstream, instance::Instance};
use crate::Edge;

#[derive(Serialize)]
struct Report {
    upstreams: Vec<ServiceReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceReport {
    service: &'static str,
    address: String,
    breaker: &'static str,
    retries_left: i64,
    instances: Vec<InstanceReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceReport {
    address: Arc<str>,
    state: &'static str,
    ejected_for_ms: u128,
    failures_in_a_row: u32,
    calls: PoolReport,
    streams: PoolReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct PoolReport {
    connections: usize,
    open: usize,
}

/// The route.
pub(crate) fn routes(edge: &Arc<Edge>) -> Router {
    let edge = Arc::downgrade(edge);
    let answer = move || {
        let edge = edge.upgrade();
        let upstreams = edge.iter().flat_map(|edge| edge.upstreams.all()).map(Upstream::report).collect();
        std::future::ready(Json(Report { upstreams }))
    };
    Router::new().route("/upstreams", get(answer))
}

impl Upstream {
    fn report(&self) -> ServiceReport {
        let service = &self.0;
        ServiceReport {
            service: service.name,
            address: service.config.address.clone(),
            breaker: service.breaker.name(),
            retries_left: service.retries.left(),
            instances: service.instances().iter().map(|instance| instance.report()).collect(),
        }
    }
}

impl Instance {
    fn report(&self) -> InstanceReport {
        let pool = |streams| {
            let pool = self.pool(streams);
            PoolReport { connections: pool.connections(), open: pool.open() }
        };
        let ejected = self.outlier.rest();
        let state = match (self.is_away(), ejected) {
            (true, _) => "away",
            (_, Some(_)) => "ejected",
            _ if self.is_ill() => "ill",
            _ if self.pool(false).connections() == 0 => "connecting",
            _ => "well",
        };
        InstanceReport {
            address: self.address.clone(),
            state,
            ejected_for_ms: ejected.map_or(0, |rest| rest.as_millis()),
            failures_in_a_row: self.outlier.in_a_row(),
            calls: pool(false),
            streams: pool(true),
            error: self.pool(false).error(),
        }
    }
}
