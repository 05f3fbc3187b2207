//! What operators ask the edge on its admin port, besides health and metrics: `/config`, `/routes`, `/load`,
//! `/held` and `/reload`. Never public, and never with a secret in it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use proto::{Access, Contract, MethodPolicy};
use serde_json::{Value, json};

use crate::{
    Edge,
    held::Held,
    reload::{Reload, Status},
};

/// The routes of the admin port that are the edge's own.
pub(crate) fn router(edge: &Arc<Edge>, reload: &Arc<Reload>) -> Router {
    let settings = Router::new()
        .route("/config", get(config))
        .route("/reload", get(status).post(again))
        .with_state(reload.clone());
    let calls = Router::new()
        .route("/routes", get(routes))
        .route("/load", get(load))
        .route("/held", get(held))
        .with_state(edge.clone());
    settings.merge(calls)
}

/// The settings that run, as TOML.
async fn config(State(reload): State<Arc<Reload>>) -> Response {
    match reload.config() {
        Ok(text) => ([("content-type", "application/toml")], text).into_response(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the settings cannot be shown");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn status(State(reload): State<Arc<Reload>>) -> Json<Status> {
    Json(reload.status())
}

/// Reads the settings again, at once.
async fn again(State(reload): State<Arc<Reload>>) -> Response {
    match tokio::task::spawn_blocking(move || reload.again(true)).await {
        Ok(status) => Json(status).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Every method that can be called from outside, and what holds for it at the moment.
async fn routes(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let is_outside = |policy: &&MethodPolicy| !matches!(policy.access, Access::Unspecified | Access::Service);
    let mut methods: Vec<&MethodPolicy> = Contract::get().methods().filter(is_outside).collect();
    methods.sort_by(|one, other| one.path.cmp(&other.path));
    let live = edge.live.load();
    let shown = methods.into_iter().map(|policy| {
        let (disabled, class) = live.switches.shown(policy);
        let http: Vec<String> =
            policy.http.iter().map(|binding| format!("{} {}", binding.verb, binding.template)).collect();
        json!({
            "method": policy.path.trim_start_matches('/'),
            "service": edge.upstreams.of(policy).map(crate::upstream::Upstream::service),
            "http": http,
            "access": policy.access.as_str_name(),
            "permission": policy.permission,
            "class": class,
            "disabled": disabled,
        })
    });
    Json(Value::Array(shown.collect()))
}

/// What each service has to do at the moment.
async fn load(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let figures = edge.load.figures().map(|(service, (inflight, limit, waiting))| {
        (service.to_owned(), json!({"inflight": inflight, "limit": limit, "waiting": waiting}))
    });
    Json(Value::Object(figures.collect()))
}

/// What is remembered of clients, counted.
async fn held(State(edge): State<Arc<Edge>>) -> Json<Held> {
    Json(Held::by(&edge))
}
