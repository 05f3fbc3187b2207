//! Calls with streams over WebSocket, for browsers: a socket at `/package.Service/Method` is one call.
//!
//! The framing is Connect's, and the socket stands for the two bodies of HTTP; docs/websocket.md is the page for
//! those who write clients. The call is one of `grpc::serve`, admitted like any other, before the upgrade is
//! answered. The gateways' own socket is `ws`.

mod offer;
mod records;
mod session;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proto::{Access, MethodPolicy};
use service_kit::{Error, Kind};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    Body, Client, Edge, access,
    connect::{self, Codecs},
    cookies, grpc,
    layers::{Request, Response, trace::Noted},
    rescue::Refusal,
    ws::handshake,
};
use offer::Offer;
use session::{Call, Frames, Session, Timing};

/// How long a client may take to read the 101.
const UPGRADE: Duration = Duration::from_secs(10);

/// Whether a request wants to become a socket.
pub(crate) fn is_upgrade(request: &Request) -> bool {
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && handshake::has_token(request.headers(), header::UPGRADE, "websocket")
}

/// Answers 101 once the call is admitted, and carries it from then on.
pub(crate) async fn connect(edge: &Arc<Edge>, request: Request) -> Result<Response, Refusal> {
    let policy = access::known(request.uri().path()).ok_or_else(access::unknown_method)?;
    let mut response = open(edge, policy, request).await.map_err(|refusal| refusal.at(&policy.path))?;
    response.extensions_mut().insert(Noted { route: Some(&policy.path), code: None });
    Ok(response)
}

async fn open(
    edge: &Arc<Edge>,
    policy: &'static MethodPolicy,
    mut request: Request,
) -> Result<Response, Refusal> {
    let method = &policy.descriptor;
    if !method.is_client_streaming() && !method.is_server_streaming() {
        let message = "this method has no stream: it is a POST";
        return Err(Refusal::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
            .with_header(header::ALLOW, HeaderValue::from_static("OPTIONS, POST")));
    }
    let accept = handshake::check(&request).map_err(|refusal| refusal.plainly())?;
    let client = Client::of(request.extensions())?.clone();
    check_origin(edge, &client, &request)?;
    let offer = Offer::read(request.headers())?;
    if edge.tasks.stopping().is_cancelled() {
        return Err(draining().into());
    }

    let upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, _) = request.into_parts();
    offer.move_token(&mut parts.headers)?;
    let expires = expiry(edge, policy, &parts.headers);
    let (to_service, frames) = mpsc::channel::<Bytes>(1);
    let (body, begun) = Frames::new(frames);
    let call = connect::call(policy, parts, Body::new(body))?;
    let mut answer: session::Opening = {
        let edge = edge.clone();
        Box::pin(async move { grpc::serve(&edge, call).await })
    };
    // A refusal is an answer of HTTP; whoever asks for the body has let the call in.
    let call = tokio::select! {
        biased;
        Ok(()) = begun => Call::Opening(answer),
        answer = &mut answer => Call::of(answer?),
    };
    let session = Session::new(call, to_service, Codecs::of(policy, offer.format)?, offer.format, policy);
    let timing = Timing::of(&edge.config.sockets, &edge.config.limits, expires.await);
    let socket = Carried { edge: edge.clone(), policy, client };
    edge.tasks.spawn_short(Box::pin(socket.serve(upgrade, session, timing)));
    let mut response = handshake::switching_protocols(accept);
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, offer.framing());
    Ok(response)
}

/// Browsers let every page open a socket: those of others have no business here.
fn check_origin(edge: &Edge, client: &Client, request: &Request) -> Result<(), Refusal> {
    if !request.headers().contains_key(header::ORIGIN)
        || cookies::is_trusted(request, client.secure, &edge.config.cors.allowed_origins)
    {
        return Ok(());
    }
    Err(Refusal::http(StatusCode::FORBIDDEN, "CROSS_SITE", "the page's origin is neither ours nor allowed"))
}

fn draining() -> Error {
    Error::new(Kind::Unavailable, "DRAINING", "this edge is being restarted")
}

/// When the caller's access token ends, and the socket with it. That of an opaque token is ours to renew.
fn expiry(
    edge: &Arc<Edge>,
    policy: &MethodPolicy,
    headers: &HeaderMap,
) -> impl Future<Output = Option<Instant>> + Send + use<> {
    let edge = edge.clone();
    let token =
        (policy.access == Access::User).then(|| headers.get(header::AUTHORIZATION).cloned()).flatten();
    async move {
        let value = token?;
        let (_, token) = value.to_str().ok()?.split_once(' ')?;
        let claims = edge.verifier.verify(token.trim()).await.ok()?;
        let ms = claims.exp.saturating_mul(1_000).saturating_sub(edge.verifier.now_ms());
        Some(Instant::now() + Duration::from_millis(u64::try_from(ms).unwrap_or_default()))
    }
}

/// What belongs to the HTTP of an upgrade and is no metadata.
const OF_UPGRADES: [HeaderName; 5] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_ACCEPT,
];

/// A socket on its way.
struct Carried {
    edge: Arc<Edge>,
    policy: &'static MethodPolicy,
    /// The connection counts as long as this is there.
    client: Client,
}

impl Carried {
    async fn serve(self, upgrade: OnUpgrade, session: Session, timing: Timing) {
        let (method, client) = (self.policy.path.as_str(), self.client.address);
        let upgraded = match tokio::time::timeout(UPGRADE, upgrade).await {
            Ok(Ok(upgraded)) => TokioIo::new(upgraded),
            Ok(Err(error)) => return tracing::debug!(method, %error, "the client left before the 101"),
            Err(_) => return tracing::debug!(method, "the client did not take the 101"),
        };
        let started = Instant::now();
        metrics::gauge!("edge_call_sockets").increment(1.0);
        let (end, code) = session.run(upgraded, timing, self.edge.tasks.stopping()).await;
        metrics::gauge!("edge_call_sockets").decrement(1.0);
        let seconds = started.elapsed().as_secs();
        let grpc = code.map(|code| code as i32);
        tracing::info!(target: "access", method, %client, grpc, %end, seconds, "socket closed");
    }
}
