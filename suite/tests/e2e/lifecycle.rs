//! How the suite ends: what is under way finishes, what only waits is told to go, nothing takes long.

use std::time::Duration;

use futures_util::stream;
use proto::gateway::{
    GatewayFrame, Hello, PlatformFrame, gateway_frame, gateway_link_client::GatewayLinkClient, platform_frame,
};
use suite::{client::Client, grpc};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tonic::{Code, Request};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::support::{PATIENCE, Process, TestSuite, admin, client, config_file, wait_for};

/// Far below the 5 s after which the edge cuts connections, and the 20 s after which services give up.
const PROMPT: Duration = Duration::from_secs(4);

const JSON: &str = "[edge.telemetry]\nformat = \"json\"\n";

/// A request whose body has begun; the answer comes when [`finish`] sends the rest.
async fn held_open(client: &Client) -> impl AsyncRead + AsyncWrite + Unpin {
    let port = client.base().port().unwrap();
    let mut socket = client.trust().connect("localhost", port, "http/1.1").await.unwrap();
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
        expect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 25];
    timeout(PATIENCE, socket.read_exact(&mut status)).await.unwrap().unwrap();
    assert!(status.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&status));
    socket.write_all(b"{").await.unwrap();
    socket
}

async fn finish(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> String {
    socket.write_all(b"}").await.unwrap();
    let mut answer = Vec::new();
    // How a connection ends is not what counts here.
    let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_shows_waits_for_requests_and_ends_with_a_second_signal() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), JSON);
    for patient in [true, false] {
        let process = Process::start(folder.path(), &config).await;
        let client = client(&process.url, &suite::ca_file(&folder.path().join("data")));
        let ports = process.admin_ports();
        assert_eq!(ports.len(), 4, "{ports:?}");
        for (service, port) in &ports {
            assert_eq!(admin(*port, "/livez").await.0, 200, "{service}");
            assert_eq!(admin(*port, "/readyz").await.0, 200, "{service}");
        }
        let edge = ports.iter().find(|(service, _)| service == "edge-proxy").unwrap().1;

        let socket = held_open(&client).await;
        process.signal().await;
        wait_for("the edge says that it drains", async || {
            let (status, body) = admin(edge, "/readyz").await;
            (status == 503 && body.contains("\"draining\"")).then_some(())
        })
        .await;
        assert_eq!(admin(edge, "/livez").await.0, 200);
        if patient {
            let answer = finish(socket).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
            assert_eq!(process.ended().await, Some(0));
        } else {
            process.signal().await;
            assert_eq!(timeout(PROMPT, process.ended()).await.expect("it ends at once"), Some(130));
            drop(socket);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_do_not_hold_up_the_end() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;

    // Both clients keep their half open: only the edge can end these streams.
    let (ask, asked) = mpsc::channel(1);
    let list = MessageRequest::ListServices(String::new());
    let list = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    ask.send(list).await.unwrap();
    let mut reflection = ServerReflectionClient::new(grpc::channel(&suite.client).unwrap());
    let mut answers = reflection.server_reflection_info(requests(asked)).await.unwrap().into_inner();
    assert!(timeout(PATIENCE, answers.message()).await.unwrap().unwrap().is_some());

    let (send, sent) = mpsc::channel(1);
    let hello = gateway_frame::Frame::Hello(Hello::default());
    send.send(GatewayFrame { frame: Some(hello) }).await.unwrap();
    let mut request = Request::new(requests(sent));
    request.metadata_mut().insert("api-key", gateway.token.parse().unwrap());
    let mut link = GatewayLinkClient::new(grpc::channel(&suite.client).unwrap());
    let mut link = link.connect(request).await.unwrap().into_inner();
    let first = timeout(PATIENCE, link.message()).await.unwrap().unwrap();
    let connected = matches!(first, Some(PlatformFrame { frame: Some(platform_frame::Frame::Connected(_)) }));
    assert!(connected, "{first:?}");

    timeout(PROMPT, suite.suite.shutdown()).await.expect("the suite ends promptly");
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(link.message().await.unwrap_err().code(), Code::Unavailable);
    drop((ask, send));
}

fn requests<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> + Send {
    stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}
