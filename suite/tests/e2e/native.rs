//! Native gRPC through the edge: reflection in development, and a gateway that speaks the link's stream
//! itself instead of a WebSocket.

use futures_util::stream;
use http::uri::PathAndQuery;
use proto::{
    Contract,
    auth::TokenPair,
    gateway::{
        DeploymentAck, GatewayFrame, Hello, PlatformFrame, gateway_frame,
        gateway_link_client::GatewayLinkClient, platform_frame,
    },
};
use serde_json::Value;
use suite::grpc;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Request, Streaming, client::Grpc};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{PATIENCE, TestSuite};

#[tokio::test(flavor = "multi_thread")]
async fn reflection_shows_every_service() {
    let suite = TestSuite::start().await;
    let mut client = ServerReflectionClient::new(grpc::channel(&suite.client).unwrap());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(stream::iter([ask])).await.unwrap().into_inner();
    let answer = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list: {answer:?}")
    };
    let listed: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in Contract::get().pool().services() {
        let name = service.full_name();
        assert!(!name.starts_with("tollgate.") || listed.iter().any(|one| one == name), "{name} is missing");
    }
    suite.suite.shutdown().await;
}

/// A `LoginRequest` whose text is none.
#[derive(Clone, PartialEq, prost::Message)]
struct Unreadable {
    #[prost(bytes = "vec", tag = "1")]
    email: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_none_is_the_callers_fault() {
    let suite = TestSuite::start().await;
    let mut client = Grpc::new(grpc::channel(&suite.client).unwrap());
    client.ready().await.unwrap();
    let codec = ProstCodec::<Unreadable, TokenPair>::default();
    let path = PathAndQuery::from_static("/tollgate.auth.v1.AuthService/Login");
    let request = Request::new(Unreadable { email: vec![0xff, 0xfe] });
    let refused = client.unary(request, path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let error = service_kit::Error::from(refused);
    assert_eq!(error.reason(), "MALFORMED_MESSAGE");
    assert_eq!(error.violations()[0].field, "email");
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_speak_grpc_instead() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let api = account.api("native").await;
    let deployment = account.deploy(&api, &gateway.id).await.unwrap();

    let (sender, receiver) = mpsc::channel(4);
    sender.send(frame(gateway_frame::Frame::Hello(Hello::default()))).await.unwrap();
    let frames = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let mut request = Request::new(frames);
    request.metadata_mut().insert("api-key", gateway.token.parse().unwrap());
    let mut client = GatewayLinkClient::new(grpc::channel(&suite.client).unwrap());
    let mut link = client.connect(request).await.unwrap().into_inner();

    let platform_frame::Frame::Connected(connected) = next(&mut link).await else { panic!("not connected") };
    assert_eq!(connected.gateway_id, gateway.id);
    let platform_frame::Frame::Event(event) = next(&mut link).await else { panic!("not an event") };
    let payload: Value = serde_json::from_str(&event.payload_json).unwrap();
    assert_eq!((event.r#type.as_str(), &payload["deploymentId"]), ("api.deployed", &deployment.into()));
    let text = |name: &str| payload[name].as_str().unwrap().to_owned();
    let ack = DeploymentAck {
        deployment_id: text("deploymentId"),
        artifact_id: text("apiId"),
        resource_type: "api".to_owned(),
        action: "deploy".to_owned(),
        status: "success".to_owned(),
        performed_at: text("performedAt"),
        error_code: String::new(),
    };
    sender.send(frame(gateway_frame::Frame::DeploymentAck(ack))).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    suite.suite.shutdown().await;
}

fn frame(frame: gateway_frame::Frame) -> GatewayFrame {
    GatewayFrame { frame: Some(frame) }
}

/// The next frame that is not a sign of life.
async fn next(link: &mut Streaming<PlatformFrame>) -> platform_frame::Frame {
    loop {
        let frame = timeout(PATIENCE, link.message()).await.expect("a frame in time").unwrap();
        match frame.expect("the stream goes on").frame.expect("a frame with content") {
            platform_frame::Frame::Heartbeat(_) => {}
            other => return other,
        }
    }
}
