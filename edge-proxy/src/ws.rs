//! The WebSocket skin of the gateway link: one socket of a gateway controller is one gRPC stream
//! `GatewayLink.Connect` of gateway-service.
//!
//! It translates frames and watches over the socket; it knows no event type and keeps nothing. A
//! controller ends for good on 401, 403, 404, 409 and 422: only a token that gateway-service has proven
//! bad gets a 401, and every doubt is a 503. Refusals have the body that the link's contract gives them,
//! which is why they do not pass `rescue`.

mod activity;
mod crowd;
mod end;
pub(crate) mod handshake;
mod link;
mod proof;
mod refusal;
mod session;
mod wire;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proto::{Contract, gateway::PlatformFrame};
use tokio::time::Instant;
use tonic::{
    Streaming,
    metadata::{Ascii, MetadataValue},
};

use crate::{
    Client, Edge,
    layers::{Request, Response},
};
pub(crate) use activity::{Activity, Watched};
pub(crate) use crowd::Crowd;
pub(crate) use end::{End, GOODBYE, end_of, say_goodbye};
use refusal::Refusal;
pub(crate) use session::Writer;
use session::{Session, Timing};

/// The path that controllers connect to.
pub(crate) const PATH: &str = "/api/internal/v1/ws/gateways/connect";

/// How long a client may take to read the 101.
const UPGRADE: Duration = Duration::from_secs(10);

/// Answers 101 when gateway-service has taken the connection, and serves the socket from then on.
pub(crate) async fn connect(edge: &Arc<Edge>, request: Request) -> Response {
    match open(edge, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(),
    }
}

async fn open(edge: &Arc<Edge>, mut request: Request) -> Result<Response, Refusal> {
    let accept = handshake::check(&request)?;
    let client = request.extensions().get::<Client>().cloned().ok_or(Refusal::Unavailable(None))?;
    let policy = Contract::get().method(link::CONNECT.as_str()).ok_or(Refusal::Unavailable(None))?;
    let live = edge.live.load_full();
    let class = live.switches.class(policy).map_err(|_| Refusal::Unavailable(None))?;
    live.limits.arrive(class, client.address).await?;
    drop(live);
    let key = api_key(request.headers())?;
    if edge.tasks.stopping().is_cancelled() {
        return Err(Refusal::Unavailable(None));
    }
    let info = client.info(request.headers());
    let remote = info.address_text();
    let upstream = edge.upstreams.of(policy).ok_or(Refusal::Unavailable(None))?;
    let link = Box::pin(link::open(upstream, key, info)).await?;
    let session = Box::new(Session::new(link, Timing::of(&edge.config.gateway_link)));
    let upgrade = hyper::upgrade::on(&mut request);
    // Boxed, as everything large on this path: what lives as long as a socket counts a thousandfold.
    edge.tasks.spawn_short(Box::pin(serve(edge.clone(), upgrade, session, client, remote)));
    Ok(handshake::switching_protocols(accept))
}

/// The token as it came. What cannot be a token is as bad as a wrong one.
fn api_key(headers: &HeaderMap) -> Result<MetadataValue<Ascii>, Refusal> {
    let mut values = headers.get_all("api-key").iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => value,
        _ => return Err(Refusal::Unauthorized),
    };
    MetadataValue::try_from(value.as_bytes()).map_err(|_| Refusal::Unauthorized)
}

async fn serve(
    edge: Arc<Edge>,
    upgrade: OnUpgrade,
    session: Box<Session<Streaming<PlatformFrame>>>,
    client: Client,
    remote: String,
) {
    let (gateway, connection) = (session.gateway_id().to_owned(), session.connection_id().to_owned());
    let upgraded = match tokio::time::timeout(UPGRADE, upgrade).await {
        Ok(Ok(upgraded)) => TokioIo::new(upgraded),
        Ok(Err(error)) => {
            return tracing::debug!(gateway, connection, %error, "the client left before the 101");
        }
        Err(_) => return tracing::debug!(gateway, connection, "the client did not take the 101"),
    };
    let place = edge.gateways.enter();
    let started = Instant::now();
    tracing::info!(gateway, connection, remote, "gateway connected");
    let end = session.run(upgraded, Box::pin(place.farewell(edge.tasks.stopping()))).await;
    let seconds = started.elapsed().as_secs();
    tracing::info!(gateway, connection, remote, %end, seconds, "gateway disconnected");
    // The connection counts until now.
    drop((place, client));
}
