//! Which part of the edge answers a request: by content type, then by path.

pub(crate) mod table;

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
};

use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use proto::{Access, Contract, MethodPolicy};

use crate::{
    Body, Edge, batch, composite,
    connect::{self, Format},
    health,
    layers::{Request, Response, trace::Noted},
    openapi,
    rescue::Refusal,
    sockets,
    transcode::{self, Input, Route},
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
    /// Connect, one message each way.
    Connect,
    /// Connect, in envelopes.
    ConnectStream(Format),
}

impl Protocol {
    /// For the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
            Self::GrpcWeb => "grpc-web",
            Self::Connect | Self::ConnectStream(_) => "connect",
        }
    }

    pub(crate) fn of<B>(request: &http::Request<B>) -> Self {
        let content_type =
            request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        match content_type.strip_prefix(b"application/grpc") {
            None if connect::is_rpc_path(request.uri().path()) => {
                let text = std::str::from_utf8(content_type).unwrap_or_default();
                match Format::of_type(text) {
                    Some((format, true)) => Self::ConnectStream(format),
                    _ => Self::Connect,
                }
            }
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
        insert(&mut table, policy)?;
    }
    Ok(table)
}

/// Adds the routes of a method.
pub(crate) fn insert(table: &mut RouteTable, policy: &'static MethodPolicy) -> anyhow::Result<()> {
    for binding in &policy.http {
        let variables = table::variables(&binding.template)?;
        for method in verbs(&binding.verb)? {
            table.insert(method, &binding.template, Route::plan(policy, binding, &variables)?)?;
        }
    }
    Ok(())
}

/// The HTTP methods of a binding; `custom` with `*` is any.
fn verbs(verb: &str) -> anyhow::Result<Vec<Method>> {
    if verb == "*" {
        return Ok(vec![Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE]);
    }
    Ok(vec![Method::from_bytes(verb.as_bytes())?])
}

/// Answers a request.
///
/// What each protocol waits for is boxed: a request is as large as its own protocol needs, not as the largest.
pub(crate) fn dispatch(
    edge: &Arc<Edge>,
    protocol: Protocol,
    request: Request,
) -> Pin<Box<dyn Future<Output = Result<Response, Refusal>> + Send + '_>> {
    match protocol {
        Protocol::Grpc => match crate::grpc::native(request) {
            Ok(request) => Box::pin(crate::grpc::serve(edge, request)),
            Err(refusal) => Box::pin(ready(Err(refusal))),
        },
        Protocol::GrpcWeb => Box::pin(crate::grpc_web::serve(edge.clone(), request)),
        Protocol::Connect if sockets::is_upgrade(&request) => Box::pin(sockets::connect(edge, request)),
        Protocol::Connect | Protocol::ConnectStream(_) => Box::pin(connect::serve(edge, request)),
        Protocol::Rest => match own_path(request.uri().path()) {
            Some(own) => Box::pin(own_answer(edge, own, request)),
            None => {
                let (parts, body) = request.into_parts();
                Box::pin(rest(edge, parts, Input::Incoming(body)))
            }
        },
    }
}

/// The paths that are no RPC.
fn own_path(path: &str) -> Option<&'static str> {
    [health::PATH, openapi::PATH, ws::PATH, batch::PATH].into_iter().find(|own| *own == path)
}

async fn own_answer(edge: &Arc<Edge>, path: &'static str, request: Request) -> Result<Response, Refusal> {
    if path == batch::PATH {
        if request.method() != Method::POST {
            return other_methods(request.method(), &[Method::POST]).map_err(|refusal| refusal.at(path));
        }
        let mut response = batch::answer(edge, request).await.map_err(|refusal| refusal.at(path))?;
        response.extensions_mut().insert(Noted { route: Some(path), code: None });
        return Ok(response);
    }
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

/// Answers a REST request by its route, or a part of another by the same.
pub(crate) async fn rest(edge: &Edge, parts: Parts, body: Input) -> Result<Response, Refusal> {
    let head = parts.method == Method::HEAD;
    let method = if head { &Method::GET } else { &parts.method };
    let (route, values) = match edge.routes.find(method, parts.uri.path()) {
        Found::Route(route, values) => (route, values),
        Found::OtherMethods(methods) => return other_methods(&parts.method, &methods),
        Found::Nothing => {
            if !body.is_part()
                && let Some(composed) = Box::pin(composed(edge, &parts)).await
            {
                return composed;
            }
            return Err(Refusal::http(
                StatusCode::NOT_FOUND,
                "UNKNOWN_ROUTE",
                "there is nothing at this path",
            ));
        }
    };
    let template = route.template();
    if body.is_part() && route.is_stream() {
        let message = "a stream cannot be part of another call";
        return Err(Refusal::http(StatusCode::BAD_REQUEST, "STREAM_IN_PART", message).at(template));
    }
    let mut response =
        transcode::serve(edge, route, &values, &parts, body).await.map_err(|refusal| refusal.at(template))?;
    response.extensions_mut().insert(Noted { route: Some(template), code: Some(tonic::Code::Ok) });
    // The length stays: it is that of the answer to GET.
    Ok(if head { response.map(|_| Body::empty()) } else { response })
}

/// The answer of a composite read; `None` when the path is none.
async fn composed(edge: &Edge, parts: &Parts) -> Option<Result<Response, Refusal>> {
    let head = parts.method == Method::HEAD;
    let method = if head { &Method::GET } else { &parts.method };
    let (composite, values) = match edge.composites.find(method, parts.uri.path()) {
        Found::Route(composite, values) => (*composite, values),
        Found::OtherMethods(methods) => return Some(other_methods(&parts.method, &methods)),
        Found::Nothing => return None,
    };
    let answer = composite::serve(edge, composite, &values, parts).await;
    Some(answer.map_err(|refusal| refusal.at(&composite.path)).map(|mut response| {
        response.extensions_mut().insert(Noted { route: Some(&composite.path), code: None });
        if head { response.map(|_| Body::empty()) } else { response }
    }))
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
