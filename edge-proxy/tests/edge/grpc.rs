use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use proto::project::{Api, GetApiRequest};
use service_kit::Error;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{
    client::frame,
    harness::{Options, Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const CONNECT: &str = "/tollgate.gateway.v1.GatewayLink/Connect";

fn request() -> Vec<u8> {
    GetApiRequest { api_id: "a1".into() }.encode_to_vec()
}

#[tokio::test]
async fn messages_pass_unread_and_trailers_come_last() {
    let world = World::start(|_| ok(&Api { id: "a1".into(), ..Api::default() })).await;
    let bearer = world.bearer();
    let headers = [
        ("authorization", bearer.as_str()),
        ("api-key", "somebody's"),
        ("cookie", "a=b"),
        ("x-user-id", "forged"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-custom", "kept"),
        ("x-custom-bin", "AAEC"),
        ("x-request-id", "mine"),
        ("grpc-timeout", "99999999S"),
    ];
    let answer = world.grpc(GET_API, &headers, &[&request()]).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/grpc"));
    assert_eq!(answer.trailers.get("grpc-status").unwrap(), "0", "{answer:?}");
    assert_eq!(Api::decode(answer.messages().remove(0)).unwrap().id, "a1");
    let call = world.call();
    assert_eq!(call.decode::<GetApiRequest>().api_id, "a1");
    assert_eq!(call.header("authorization"), Some(bearer.as_str()));
    assert_eq!((call.header("x-custom"), call.header("x-custom-bin")), (Some("kept"), Some("AAEC")));
    for gone in ["api-key", "cookie", "x-user-id", "x-forwarded-for", "x-request-id"] {
        assert_eq!(call.header(gone), None, "{gone}");
    }
    assert_eq!(call.header("tollgate-client-request"), Some(answer.header("x-request-id")));
    assert_ne!(answer.header("x-request-id"), "mine");
    // The policy's deadline caps the client's, and the service is told what is left of it.
    let rest = call.header("grpc-timeout").unwrap().strip_suffix('m').unwrap().parse::<u32>().unwrap();
    assert!((10_000..=15_000).contains(&rest), "{rest}");
}

#[tokio::test]
async fn errors_keep_their_details() {
    let world = World::start(|_| Reply::Fail(Error::field("name", "is required").into())).await;
    let answer = world.grpc(GET_API, &[("authorization", &world.bearer())], &[&request()]).await;
    assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "3"));
    let status = Status::from_header_map(&answer.headers).unwrap();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "name");

    // Errors of the edge look the same.
    let answer = world.grpc(GET_API, &[], &[&request()]).await;
    assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "16"));
    let status = Status::from_header_map(&answer.headers).unwrap();
    assert_eq!(status.get_details_error_info().unwrap().reason, "UNAUTHENTICATED");
}

#[tokio::test]
async fn what_is_not_for_outside_is_not_there() {
    let world = World::start(|call| panic!("{} must not be reached", call.path)).await;
    let bearer = world.bearer();
    for policy in proto::Contract::get().methods().filter(|method| method.access == proto::Access::Service) {
        let answer = world.grpc(&policy.path, &[("authorization", &bearer), ("api-key", "k")], &[b""]).await;
        assert_eq!(answer.grpc_status(), "12", "{}", policy.path);
    }
    for path in ["/tollgate.project.v1.ApiService/Nothing", "/x", "/"] {
        assert_eq!(world.grpc(path, &[], &[b""]).await.grpc_status(), "12", "{path}");
    }
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(world.grpc(reflection, &[], &[b""]).await.grpc_status(), "12");
    let answer = world.get(GET_API).header("content-type", "application/grpc").send("").await;
    assert_eq!(answer.grpc_status(), "12");
    let answer = world.post(GET_API).h1().header("content-type", "application/grpc").send("").await;
    assert_eq!(answer.grpc_status(), "12");
    let answer = world.post(GET_API).header("content-type", "application/grpc+json").send("").await;
    assert_eq!(answer.grpc_status(), "3");
}

#[tokio::test]
async fn health_and_reflection_are_the_edges_own() {
    let world = World::with(Options::default().set("reflection", true), |_| Reply::Hang).await;
    let answer = world.grpc("/grpc.health.v1.Health/Check", &[], &[b""]).await;
    assert_eq!((answer.grpc_status(), &answer.messages()[0][..]), ("0", &b"\x08\x01"[..]));
    // list_services of the reflection protocol is field 7.
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answer = world.grpc(path, &[], &[b"\x3a\x01*"]).await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.grpc_status() == "0" && text.contains("tollgate.project.v1.ApiService"), "{answer:?}");
}

#[tokio::test]
async fn streams_flow_in_both_directions_as_they_come() {
    let world = World::start(|_| Reply::Echo).await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let frames = tokio_stream::StreamExt::map(UnboundedReceiverStream::new(receiver), |data| {
        Ok::<_, hyper::Error>(http_body::Frame::data(data))
    });
    sender.send(frame(b"one")).unwrap();
    let ask = world.post(CONNECT).header("content-type", "application/grpc").header("api-key", "k");
    let mut response = ask.open(StreamBody::new(frames).boxed_unsync()).await;
    assert_eq!(response.status(), StatusCode::OK);
    // Each echo comes before the next message is sent.
    for message in [&b"two"[..], b"three"] {
        let echo = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(echo.starts_with(&[0, 0, 0, 0]));
        sender.send(frame(message)).unwrap();
    }
    drop(sender);
    let rest = super::client::read(response).await;
    assert_eq!(
        (rest.body, rest.trailers.get("grpc-status").unwrap().to_str().unwrap()),
        (frame(b"three"), "0")
    );
    let call = world.call();
    assert_eq!((call.header("api-key"), call.header("grpc-timeout")), (Some("k"), None));
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_it() {
    let world = World::start(|_| Reply::Stall(b"hello".to_vec())).await;
    let ask = world.post(CONNECT).header("content-type", "application/grpc").header("api-key", "k");
    let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = ask.open(body).await;
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    drop(response);
    world.given_up(1).await;
}

#[tokio::test]
async fn a_stream_always_ends_with_a_status() {
    let headers = [("api-key", "k")];
    let status = Status::failed_precondition("enough");
    let world =
        World::start(move |_| Reply::Stream(vec![b"a".to_vec(), b"b".to_vec()], status.clone())).await;
    let answer = world.grpc(CONNECT, &headers, &[b""]).await;
    assert_eq!((answer.messages().len(), answer.grpc_status()), (2, "9"));

    // The service breaks off.
    let world = World::start(|_| Reply::Abort(b"a".to_vec())).await;
    let answer = world.grpc(CONNECT, &headers, &[b""]).await;
    assert_eq!((answer.complete, answer.grpc_status()), (true, "14"), "{answer:?}");

    // The client's deadline passes, before the answer and within it.
    for reply in [|| Reply::Hang, || Reply::Stall(b"a".to_vec())] {
        let world = World::start(move |_| reply()).await;
        let started = Instant::now();
        let headers = [("api-key", "k"), ("grpc-timeout", "1000m")];
        let answer = world.grpc(CONNECT, &headers, &[b""]).await;
        assert_eq!((answer.complete, answer.grpc_status()), (true, "4"), "{answer:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        world.given_up(1).await;
    }
    let answer = world.grpc(CONNECT, &[("api-key", "k"), ("grpc-timeout", "soon")], &[b""]).await;
    assert_eq!(answer.grpc_status(), "3");
}

#[tokio::test]
async fn a_service_that_is_gone_is_unavailable() {
    let mut world = World::start(|_| ok(&Api::default())).await;
    let bearer = world.bearer();
    world.grpc(GET_API, &[("authorization", &bearer)], &[&request()]).await;
    world.stop_services().await;
    let answer = world.grpc(GET_API, &[("authorization", &bearer)], &[&request()]).await;
    assert_eq!((answer.status, answer.grpc_status()), (StatusCode::OK, "14"), "{answer:?}");
}

#[tokio::test]
async fn messages_are_bounded() {
    let world = World::start(|_| ok(&Api::default())).await;
    let bearer = world.bearer();
    let answer = world.grpc(GET_API, &[("authorization", &bearer)], &[&vec![b'x'; 1024 * 1024 + 1]]).await;
    assert_eq!(answer.grpc_status(), "8", "{answer:?}");
    // A USER method over REST and over gRPC has the same bound, which is not reached by exactly that size.
    let fits = GetApiRequest { api_id: "x".repeat(1024 * 1024 - 4) }.encode_to_vec();
    assert_eq!(fits.len(), 1024 * 1024);
    let answer = world.grpc(GET_API, &[("authorization", &bearer)], &[&fits]).await;
    assert_eq!(answer.grpc_status(), "0", "{answer:?}");
}

#[tokio::test]
async fn draining_ends_streams_and_finishes_calls() {
    let world = World::start(|_| Reply::Stall(b"hello".to_vec())).await;
    let ask = world.post(CONNECT).header("content-type", "application/grpc").header("api-key", "k");
    let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    let response = ask.open(body).await;
    let addr = world.edge.addr;
    let started = Instant::now();
    let (answer, ()) = tokio::join!(super::client::read(response), world.edge.shutdown());
    assert_eq!((answer.complete, answer.grpc_status()), (true, "14"), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn health_is_watched_and_goes_before_the_edge_does() {
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const WATCH: &str = "/grpc.health.v1.Health/Watch";
    let world = World::start(|_| Reply::Hang).await;
    // "x", which nobody knows: one refuses it, the other would tell when it comes to be.
    assert_eq!(world.grpc(CHECK, &[], &[b"\x0a\x01x"]).await.grpc_status(), "5");
    let watch = async |message: &'static [u8]| {
        let ask = world.post(WATCH).header("content-type", "application/grpc").header("te", "trailers");
        let body = http_body_util::Full::new(frame(message)).map_err(|never| match never {});
        let mut response = ask.open(body.boxed_unsync()).await;
        let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        (response, first)
    };
    let (unknown, first) = watch(b"\x0a\x01x").await;
    assert_eq!(first, frame(b"\x08\x03"), "SERVICE_UNKNOWN");
    let (known, first) = watch(b"").await;
    assert_eq!(first, frame(b"\x08\x01"), "SERVING");
    let (unknown, known, ()) =
        tokio::join!(super::client::read(unknown), super::client::read(known), world.edge.shutdown());
    assert_eq!((unknown.body.len(), unknown.grpc_status()), (0, "14"), "{unknown:?}");
    assert_eq!((&known.body, known.grpc_status()), (&frame(b"\x08\x02"), "14"), "NOT_SERVING: {known:?}");
}
