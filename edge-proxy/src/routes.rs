//! Which part of the edge answers a request: by content type, then by path.

pub(crate) mod table;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use proto::{Access, Contract};

use crate::{
    Body, Edge, health,
    layers::{Request, Response, trace::Noted},
    openapi,
    rescue::Refusal,
    transcode::{self, Route},
    ws,
};
use table::{Found, Table};

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// JSON, or whatever a route says.
    Rest,
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web, binary or text.
    GrpcWeb,
}

impl Protocol {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        match content_type.strip_prefix(b"application/grpc") {
            None => Self::Rest,
            Some(rest) if rest.starts_with(b"-web") => Self::GrpcWeb,
            Some(_) => Self::Grpc,
        }
    }
}

/// The table of REST routes.
pub(crate) type RouteTable = Table<Route>;

/// Reads the routes from the contract. SERVICE methods, and methods without a policy, have none.
pub(crate) fn of_contract() -> anyhow::Result<RouteTable> {
    let mut table = Table::default();
    for policy in Contract::get().methods() {
        if matches!(policy.access, Access::Unspecified | Access::Service) {
            continue;
        }
        for binding in &policy.http {
            let method = Method::from_bytes(binding.verb.as_bytes())?;
            let variables = table::variables(&binding.template)?;
            table.insert(method, &binding.template, Route::plan(policy, binding, &variables)?)?;
        }
    }
    Ok(table)
}

/// Answers a request.
pub(crate) async fn dispatch(edge: Arc<Edge>, request: Request) -> Result<Response, Refusal> {
    match Protocol::of(request.headers()) {
        Protocol::Grpc => crate::grpc::native(&edge, request).await,
        Protocol::GrpcWeb => crate::grpc_web::serve(edge, request).await,
        Protocol::Rest => match own_path(request.uri().path()) {
            Some(own) => own_answer(&edge, own, request).await,
            None => rest(&edge, request).await,
        },
    }
}

/// The paths that are no RPC.
fn own_path(path: &str) -> Option<&'static str> {
    [health::PATH, openapi::PATH, ws::PATH].into_iter().find(|own| *own == path)
}

async fn own_answer(edge: &Arc<Edge>, path: &'static str, request: Request) -> Result<Response, Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return other_methods(request.method(), &[Method::GET]).map_err(|refusal| refusal.at(path));
    }
    let mut response = match path {
        health::PATH => edge.health.answer(&edge.upstreams.all()).await,
        openapi::PATH => openapi::answer(),
        _ => ws::connect(edge, request).await,
    };
    response.extensions_mut().insert(Noted { route: Some(path), code: None });
    Ok(response)
}

async fn rest(edge: &Edge, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let method = if head { &Method::GET } else { &parts.method };
    let (route, values) = match edge.routes.find(method, parts.uri.path()) {
        Found::Route(route, values) => (route, values),
        Found::OtherMethods(methods) => return other_methods(&parts.method, &methods),
        Found::Nothing => {
            return Err(Refusal::http(
                StatusCode::NOT_FOUND,
                "UNKNOWN_ROUTE",
                "there is nothing at this path",
            ));
        }
    };
    let template = route.template();
    let mut response =
        transcode::serve(edge, route, &values, &parts, body).await.map_err(|refusal| refusal.at(template))?;
    response.extensions_mut().insert(Noted { route: Some(template), code: Some(tonic::Code::Ok) });
    // The length stays: it is that of the answer to GET.
    Ok(if head { response.map(|_| Body::empty()) } else { response })
}

/// 405, or the answer to OPTIONS; both say what is allowed.
fn other_methods(asked: &Method, methods: &[Method]) -> Result<Response, Refusal> {
    let mut allow: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if allow.contains(&"GET") {
        allow.push("HEAD");
    }
    allow.push("OPTIONS");
    allow.sort_unstable();
    let allow = HeaderValue::try_from(allow.join(", ")).map_err(service_kit::Error::internal)?;
    if asked == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, allow);
        return Ok(response);
    }
    Err(Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "this path has other methods")
        .with_header(header::ALLOW, allow))
}
