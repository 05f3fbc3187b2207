//! The gRPC stream to gateway-service that stands behind a socket.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderValue, uri::PathAndQuery};
use proto::{
    buffers::SmallBuffers,
    gateway::{Connected, GatewayFrame, Hello, PlatformFrame, gateway_frame, platform_frame},
};
use service_kit::{ClientInfo, Error, Kind, client_info::TRANSPORT};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    metadata::{Ascii, MetadataValue},
};

use super::refusal::Refusal;
use crate::upstream::Upstream;

/// The method behind a socket.
pub(super) const CONNECT: PathAndQuery =
    PathAndQuery::from_static("/tollgate.gateway.v1.GatewayLink/Connect");

/// How long gateway-service may take to admit a gateway. Controllers wait 10 s for the 101.
const ADMISSION: Duration = Duration::from_secs(5);

/// An event and what protobuf adds to it.
const MAX_FRAME: usize = 2 * 1024 * 1024;

/// The way to gateway-service. Boxed: an empty channel has room for 32 frames already.
pub(super) type ToPlatform = mpsc::Sender<Box<GatewayFrame>>;

/// A stream whose gateway is admitted. Dropping it ends the stream.
#[derive(Debug)]
pub(super) struct Link<S = Streaming<PlatformFrame>> {
    pub(super) connected: Connected,
    pub(super) to_platform: ToPlatform,
    pub(super) from_platform: S,
}

/// Opens a stream and waits until gateway-service has admitted the gateway.
pub(super) async fn open(
    upstream: &Upstream,
    key: MetadataValue<Ascii>,
    client: ClientInfo,
) -> Result<Link, Refusal> {
    match tokio::time::timeout(ADMISSION, admission(upstream, key, client)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(status)) => Err(refusal_of(status)),
        Err(_) => {
            tracing::warn!("gateway-service did not admit or refuse a gateway in time");
            Err(Refusal::Unavailable(None))
        }
    }
}

async fn admission(
    upstream: &Upstream,
    key: MetadataValue<Ascii>,
    client: ClientInfo,
) -> Result<Link, Status> {
    let (to_platform, frames) = mpsc::channel(16);
    let hello = Hello {
        remote_address: client.address_text(),
        transport: "websocket".to_owned(),
        ..Hello::default()
    };
    // There is room: the channel is new.
    let _ = to_platform.try_send(Box::new(GatewayFrame { frame: Some(gateway_frame::Frame::Hello(hello)) }));
    let mut request = tonic::Request::new(ReceiverStream::new(frames).map(|frame: Box<GatewayFrame>| *frame));
    request.metadata_mut().insert("api-key", key);
    let headers = request.metadata_mut().as_mut();
    client.write(headers);
    headers.insert(TRANSPORT, HeaderValue::from_static("websocket"));
    let mut client = tonic::client::Grpc::new(upstream.clone()).max_decoding_message_size(MAX_FRAME);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut from_platform = client.streaming(request, CONNECT, SmallBuffers::default()).await?.into_inner();
    match from_platform.message().await? {
        Some(PlatformFrame { frame: Some(platform_frame::Frame::Connected(connected)) }) => {
            Ok(Link { connected, to_platform, from_platform })
        }
        other => Err(Status::unavailable(format!("the first frame is not `connected`: {other:?}"))),
    }
}

/// Only what gateway-service itself says of the token counts against it: a status without
/// `google.rpc` details comes from the transport.
fn refusal_of(status: Status) -> Refusal {
    let code = status.code();
    let error = Error::from(status);
    match error.kind() {
        Kind::Unauthenticated => Refusal::Unauthorized,
        _ => {
            tracing::warn!(?code, %error, "a gateway cannot connect");
            Refusal::Unavailable(error.retry_delay())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use service_kit::{Error, Kind};
    use tonic::{Code, Status};

    use super::{Refusal, refusal_of};

    #[test]
    fn only_proof_is_unauthorized() {
        assert_eq!(refusal_of(Error::unauthenticated("no such token").into()), Refusal::Unauthorized);
        // The same code without details is not gateway-service's word.
        assert_eq!(refusal_of(Status::unauthenticated("proxy")), Refusal::Unavailable(None));
        for code in 1..=16 {
            let code = Code::from_i32(code);
            assert_eq!(refusal_of(Status::new(code, "")), Refusal::Unavailable(None), "{code:?}");
        }
        let full = Error::new(Kind::ResourceExhausted, "CONNECTION_LIMIT", "1000 connections")
            .retry_after(Duration::from_secs(30));
        assert_eq!(refusal_of(full.into()), Refusal::Unavailable(Some(Duration::from_secs(30))));
        for error in [Error::not_found("gateway"), Error::permission_denied("no"), Error::field("a", "b")] {
            assert_eq!(refusal_of(error.into()), Refusal::Unavailable(None));
        }
    }
}
