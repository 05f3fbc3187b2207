//! What clients do that they should not: bodies broken off, bad input, garbage, wrong tokens.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use proto::project::{GetApiRequest, api_service_client::ApiServiceClient};
use reqwest::Method;
use suite::grpc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    calls::GET_API,
    hands::{Hands, answer, http},
};

/// So long garbage waits for the edge to end it.
const WAIT: Duration = Duration::from_millis(200);
/// The first part of a body.
const PART: usize = 64 * 1024;
/// What looks like the beginning of a TLS handshake.
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7, 7];

/// A body that breaks off after its first part.
struct Broken(bool);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let is_first = !std::mem::replace(&mut self.0, true);
        Poll::Ready(Some(if is_first {
            Ok(Frame::data(Bytes::from(vec![b' '; PART])))
        } else {
            Err(std::io::Error::other("broken off"))
        }))
    }
}

impl Hands {
    fn large(&mut self) -> String {
        match self.dice.below(4) {
            0 => GET_API.to_owned(),
            1 => "/api/v1/batch".to_owned(),
            2 => "/api/v1/apis".to_owned(),
            _ => format!("/api/v1/apis/import?projectId={}", self.world.project),
        }
    }

    /// A part of the body, and then nobody.
    pub(crate) async fn broken_h1(&mut self) -> anyhow::Result<String> {
        let path = self.large();
        let mut stream = self.world.trust.connect("localhost", self.world.port, "http/1.1").await?;
        let length = ["content-length: 200000", "transfer-encoding: chunked"][self.dice.below(2)];
        let (port, token) = (self.world.port, &self.world.token);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost:{port}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\n{length}\r\n\r\n{:X}\r\n",
            PART * 2
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&vec![b' '; PART]).await?;
        stream.flush().await?;
        if self.dice.below(2) == 0 {
            // With a goodbye of TLS.
            stream.shutdown().await?;
        }
        Ok("left".to_owned())
    }

    pub(crate) async fn broken_h2(&mut self) -> anyhow::Result<String> {
        let path = self.large();
        let media_type =
            ["application/json", "application/grpc", "application/grpc-web", "application/proto"]
                [self.dice.below(4)];
        let request = self.request(&self.h2, Method::POST, &path).header("content-type", media_type);
        match answer(request.body(reqwest::Body::wrap(Broken(false)))).await {
            Ok(answer) => Ok(format!("before the end: {}", answer.status)),
            Err(_) => Ok("left".to_owned()),
        }
    }

    pub(crate) async fn bad_input(&mut self) -> anyhow::Result<String> {
        // Of HTTP/1.1 a new connection: the edge ends one whose body it has not read.
        let http = if self.dice.below(2) == 0 { http(&self.world, "http/1.1") } else { self.h2.clone() };
        let at = self.dice.below(10);
        let (path, media_type, body, wanted): (&str, &str, Vec<u8>, &[u16]) = match at {
            0 => ("/api/v1/apis", "application/json", b"{\"name\":".to_vec(), &[400]),
            1 => ("/api/v1/apis", "application/json", b"{\"nmae\":1}".to_vec(), &[400]),
            2 => ("/api/v1/apis", "text/plain", b"x".to_vec(), &[400, 415]),
            3 => ("/nowhere", "application/json", b"{}".to_vec(), &[404]),
            4 => ("/api/v1/auth/login", "application/json", vec![b' '; 2 * 1024 * 1024], &[413]),
            5 => (GET_API, "application/json", b"{\"apiId\":5}".to_vec(), &[400]),
            6 => (GET_API, "application/proto", b"\x0a\xff".to_vec(), &[400]),
            7 => (GET_API, "application/grpc-web", b"\0\xff\xff\xff\xff".to_vec(), &[200]),
            8 => (GET_API, "application/connect+json", b"\0\0\0\0\x09{}".to_vec(), &[200, 415]),
            _ => ("/api/v1/batch", "application/json", b"{\"requests\":[{}]}".to_vec(), &[400]),
        };
        let request = self.request(&http, Method::POST, path).header("content-type", media_type);
        match answer(request.body(body)).await {
            Ok(answer) => answer.expect(wanted),
            // The edge does not read to its end what is too large.
            Err(_) if at == 4 => Ok("cut".to_owned()),
            Err(error) => Err(error.context(format!("bad input {at}"))),
        }
    }

    /// Bytes that are no HTTP, and connections that come to nothing.
    pub(crate) async fn garbage(&mut self) -> anyhow::Result<String> {
        let (port, at) = (self.world.port, self.dice.below(6));
        if at < 2 {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
            if at == 1 {
                socket.write_all(HALF_A_HELLO).await?;
            }
            return Ok("no handshake".to_owned());
        }
        let protocol = if at < 4 { "http/1.1" } else { "h2" };
        let bytes: &[u8] = match at {
            2 => b"GARBAGE\r\n\r\n",
            3 => b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            4 => b"GET / HTTP/1.1\r\n\r\n",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        };
        let mut stream = self.world.trust.connect("localhost", port, protocol).await?;
        stream.write_all(bytes).await?;
        let mut rest = Vec::new();
        // The edge waits for more of some; a close without a goodbye is an end too.
        let ended = timeout(WAIT, stream.read_to_end(&mut rest)).await.is_ok();
        Ok(format!("{}, {protocol}", if ended { "ended" } else { "left" }))
    }

    pub(crate) async fn wrong_token(&mut self) -> anyhow::Result<String> {
        let token = match self.dice.below(3) {
            0 => "tgpat_0000000000000000000000000000000000000000".to_owned(),
            1 => format!("{}x", self.world.token),
            _ => "none.of.them".to_owned(),
        };
        if self.dice.below(2) == 0 {
            let stranger = self.client.with_token(&token);
            let request = grpc::authorized(&stranger, GetApiRequest { api_id: self.api().to_owned() })?;
            let channel = self.channel.clone();
            return match ApiServiceClient::new(channel).get_api(request).await {
                Err(status) if status.code() == tonic::Code::Unauthenticated => Ok("gRPC 16".to_owned()),
                other => anyhow::bail!("a wrong token: {other:?}"),
            };
        }
        let fresh = http(&self.world, "h2");
        let http = [&self.h1, &fresh][self.dice.below(2)];
        let url = format!("{}/api/v1/apis/{}", self.world.url, self.api());
        let reply = answer(http.get(url).bearer_auth(token)).await?;
        anyhow::ensure!(!reply.headers.contains_key("set-cookie"), "a cookie for a stranger");
        reply.expect(&[401])
    }
}
