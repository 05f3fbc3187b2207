//! Calls the public API in the two forms that are not REST: native gRPC, and gRPC-Web with a frame made
//! by hand, as a browser's library would make it.

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper_util::rt::TokioIo;
use prost::Message;
use reqwest::Method;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::client::Client;

/// The media type of gRPC-Web with protobuf messages.
const GRPC_WEB: &str = "application/grpc-web+proto";

/// The flag of the frame that holds the trailers.
const TRAILERS: u8 = 0x80;

/// A channel to the suite for generated gRPC clients. Connects when first used.
pub fn channel(client: &Client) -> anyhow::Result<Channel> {
    let base = client.base();
    let host = base.host_str().context("the suite's URL has no host")?.to_owned();
    let port = base.port_or_known_default().context("the suite's URL has no port")?;
    let trust = client.trust().clone();
    // The endpoint's `http` says only that tonic adds no TLS of its own.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))?;
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (host, trust) = (host.clone(), trust.clone());
        async move { trust.connect(&host, port, "h2").await.map(TokioIo::new) }
    })))
}

/// A request with the client's access token in its metadata.
pub fn authorized<T>(client: &Client, message: T) -> anyhow::Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = client.token() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    Ok(request)
}

/// One unary call in gRPC-Web.
///
/// # Errors
/// When the answer is not a gRPC-Web answer, or its status is not 0.
pub async fn web_call<A: Message, B: Message + Default>(
    client: &Client,
    path: &str,
    message: &A,
) -> anyhow::Result<B> {
    let reply = client.send(Method::POST, path, GRPC_WEB, frame(message)).await?;
    anyhow::ensure!(reply.status == 200, "{}: {} {}", reply.request, reply.status, reply.text());
    let media_type = reply.header("content-type");
    anyhow::ensure!(media_type.starts_with("application/grpc-web"), "{path}: answered {media_type}");
    let (messages, trailers) = unframe(reply.body.clone())?;
    // A refusal may stand in the headers, with no frame at all.
    let status = trailer(&trailers, "grpc-status").unwrap_or_else(|| reply.header("grpc-status"));
    let problem = trailer(&trailers, "grpc-message").unwrap_or_else(|| reply.header("grpc-message"));
    anyhow::ensure!(status == "0", "{path}: gRPC status {status}: {problem}");
    let message = messages.first().with_context(|| format!("{path}: an answer without a message"))?;
    Ok(B::decode(message.clone())?)
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

fn unframe(mut body: Bytes) -> anyhow::Result<(Vec<Bytes>, String)> {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while body.has_remaining() {
        anyhow::ensure!(body.remaining() >= 5, "half a frame");
        let flag = body.get_u8();
        let length = usize::try_from(body.get_u32())?;
        anyhow::ensure!(body.remaining() >= length, "a frame that ends early");
        let content = body.copy_to_bytes(length);
        if flag & TRAILERS == 0 {
            messages.push(content);
        } else {
            trailers = String::from_utf8(content.to_vec()).context("trailers that are not text")?;
        }
    }
    Ok((messages, trailers))
}

fn trailer<'a>(trailers: &'a str, name: &str) -> Option<&'a str> {
    trailers.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::project::GetApiRequest;

    use super::{frame, trailer, unframe};

    #[test]
    fn frames_are_read_as_they_are_written() {
        let message = frame(&GetApiRequest { api_id: "x".to_owned() });
        assert_eq!(message.as_ref(), [0, 0, 0, 0, 3, 10, 1, b'x']);
        let mut body = message.to_vec();
        body.extend_from_slice(&[0x80, 0, 0, 0, 16]);
        body.extend_from_slice(b"grpc-status: 5\r\n");
        let (messages, trailers) = unframe(Bytes::from(body.clone())).unwrap();
        assert_eq!(messages, [Bytes::from_static(&[10, 1, b'x'])]);
        assert_eq!(trailer(&trailers, "grpc-status"), Some("5"));
        body.pop();
        assert!(unframe(Bytes::from(body)).is_err());
    }
}
