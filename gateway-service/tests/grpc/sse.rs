//! The link in one direction: a stream out, reports in, at whatever instance they arrive.

use std::time::Duration;

use proto::{
    gateway::{
        Connected, DeploymentAck, Event, EventAck, Heartbeat, PlatformFrame, ReportRequest,
        RevokeTokenRequest, SubscribeRequest, gateway_link_client::GatewayLinkClient,
        platform_frame::Frame as To,
    },
    project::DeploymentStatus,
};
use service_kit::testing::TestDatabase;
use tonic::{Code, Status, Streaming};

use crate::{
    gateway::{TestGateway, ack_of, payload},
    harness::{ADMIN, PATIENCE, World, fields, quick, reason, until, with_key, worlds},
    instance::able,
};

/// A gateway on a stream that only goes out.
struct Subscriber {
    connected: Connected,
    token: String,
    stream: Streaming<PlatformFrame>,
}

async fn subscribe(
    world: &World,
    token: &str,
    request: SubscribeRequest,
) -> Result<Streaming<PlatformFrame>, Status> {
    let mut client = GatewayLinkClient::new(world.upstream("edge-proxy"));
    Ok(client.subscribe(with_key(token, request)).await?.into_inner())
}

async fn report(world: &World, token: &str, report: ReportRequest) -> Result<u64, Status> {
    let mut client = GatewayLinkClient::new(world.upstream("edge-proxy"));
    Ok(client.report(with_key(token, report)).await?.into_inner().head_revision)
}

impl Subscriber {
    async fn open(world: &World, token: &str, request: SubscribeRequest) -> Self {
        let mut stream = subscribe(world, token, request).await.unwrap();
        let first = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        let Some(To::Connected(connected)) = first.frame else { panic!("not first: {first:?}") };
        Self { connected, token: token.to_owned(), stream }
    }

    async fn plain(world: &World, token: &str) -> Self {
        Self::open(world, token, SubscribeRequest::default()).await
    }

    async fn frame(&mut self) -> Option<To> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("a frame in time");
        next.unwrap_or(None).and_then(|frame| frame.frame)
    }

    async fn event(&mut self) -> Event {
        loop {
            match self.frame().await {
                Some(To::Event(event)) => return event,
                Some(To::Heartbeat(_)) => {}
                other => panic!("no event: {other:?}"),
            }
        }
    }

    /// The code with which the stream ends.
    async fn closed(&mut self) -> u32 {
        loop {
            match self.frame().await {
                Some(To::Close(close)) => {
                    assert_eq!(self.frame().await, None, "nothing follows a close");
                    return close.code;
                }
                Some(_) => {}
                None => panic!("the stream ended without a close"),
            }
        }
    }

    fn saying(&self) -> ReportRequest {
        ReportRequest { connection_id: self.connected.connection_id.clone(), ..ReportRequest::default() }
    }

    fn done(&self, events: &[&Event]) -> ReportRequest {
        let deployment_acks = events.iter().map(|event| ack_of(event, None)).collect();
        ReportRequest { deployment_acks, ..self.saying() }
    }

    async fn report(&self, world: &World, request: ReportRequest) -> u64 {
        report(world, &self.token, request).await.unwrap()
    }
}

/// Waits until project-service knows that these events were performed.
async fn deployed(world: &World, events: &[&Event]) {
    for event in events {
        let deployment = payload(event)["deploymentId"].as_str().unwrap().to_owned();
        until("the deployment is reported", async || {
            let reports = world.project.reported(&deployment);
            reports.last().is_some_and(|(status, _, _)| *status == i32::from(DeploymentStatus::Deployed))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_out_and_reports_come_in() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = Subscriber::plain(&world, &token.token).await;
        assert_eq!(link.connected.gateway_id, gateway.id);
        assert!(world.is_active(&gateway.id).await);
        world.append((0..2).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect()).await;
        let (first, second) = (link.event().await, link.event().await);
        assert_eq!((first.revision, second.revision), (1, 2));
        assert_eq!(link.report(&world, link.done(&[&first, &second])).await, 2);
        deployed(&world, &[&first, &second]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_reported_comes_again() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = Subscriber::plain(&world, &token.token).await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let lost = link.event().await;
        let old = link.saying();
        drop(link);
        let mut link = Subscriber::plain(&world, &token.token).await;
        let again = link.event().await;
        assert_eq!(again.revision, lost.revision);
        assert_ne!(again.correlation_id, lost.correlation_id);
        // The old connection is over, whatever is said of it.
        until("the old one is forgotten", async || {
            let said = report(&world, &token.token, old.clone()).await;
            said.is_err_and(|status| reason(&status) == "NOT_CONNECTED")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_may_arrive_at_any_instance() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = Subscriber::plain(&world, &token.token).await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let event = link.event().await;
        let other = world.instance().await;
        world.turn_to(other.addr);
        assert_eq!(link.report(&world, link.done(&[&event])).await, 1);
        deployed(&world, &[&event]).await;
        other.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_resumes_answers_events_and_snapshots() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let request = SubscribeRequest {
            instance_id: "i-1".into(),
            capabilities: able(),
            ..SubscribeRequest::default()
        };
        let mut link = Subscriber::open(&world, &token.token, request.clone()).await;
        let Some(To::Snapshot(snapshot)) = link.frame().await else {
            panic!("a new one gets the whole state")
        };
        let ack = |revision, nonce: &str| EventAck { revision, nonce: nonce.into(), ..EventAck::default() };
        let event_acks = vec![ack(snapshot.revision, &snapshot.nonce)];
        link.report(&world, ReportRequest { event_acks, ..link.saying() }).await;
        world.append((0..3).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect()).await;
        let events = [link.event().await, link.event().await, link.event().await];
        // Through another instance, which knows nothing of what is on its way.
        let other = world.instance().await;
        world.turn_to(other.addr);
        let event_acks = events.iter().map(|event| ack(event.revision, &event.correlation_id)).collect();
        let applied = events[2].revision;
        let heartbeat = Some(Heartbeat { revision: applied, state_hash: String::new() });
        link.report(&world, ReportRequest { event_acks, heartbeat, ..link.saying() }).await;
        deployed(&world, &[&events[0], &events[1], &events[2]]).await;
        // It goes on where it was: nothing comes twice.
        let mut link =
            Subscriber::open(&world, &token.token, SubscribeRequest { applied_revision: applied, ..request })
                .await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        assert!(link.event().await.revision > applied);
        other.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_keep_a_stream_alive_and_silence_ends_it() {
    let mut limits = quick();
    (limits.heartbeat_ms, limits.silence_ms, limits.poll_ms) = (100, 2_000, 50);
    for database in TestDatabase::both() {
        let world = World::start(database, limits).await;
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = Subscriber::plain(&world, &token.token).await;
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(4) {
            link.report(&world, link.saying()).await;
            assert!(matches!(link.frame().await, Some(To::Heartbeat(_))), "the stream lives");
        }
        assert_eq!(link.closed().await, 4408);
        until("it is not connected", async || !world.is_active(&gateway.id).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_gateway_itself_reports_and_what_it_says_makes_sense() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let (_, stranger) = world.gateway("edge-2").await;
        let link = Subscriber::plain(&world, &token.token).await;
        let stream = TestGateway::connect(&world, &token.token).await;
        let nowhere = ReportRequest { connection_id: world.ids.next(), ..ReportRequest::default() };
        let other =
            ReportRequest { connection_id: stream.connected.connection_id.clone(), ..nowhere.clone() };
        for (token, said) in
            [(&stranger.token, link.saying()), (&token.token, nowhere), (&token.token, other)]
        {
            let refused = report(&world, token, said).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert_eq!(reason(&refused), "NOT_CONNECTED");
        }
        assert_eq!(report(&world, "nobody", link.saying()).await.unwrap_err().code(), Code::Unauthenticated);
        let bad = ReportRequest {
            deployment_acks: vec![DeploymentAck::default(); 101],
            event_acks: vec![EventAck::default()],
            ..ReportRequest::default()
        };
        let refused = report(&world, &token.token, bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(
            fields(&refused)[..3],
            ["connectionId", "deploymentAcks", "deploymentAcks[0].deploymentId"]
        );
        let bad = SubscribeRequest { capabilities: able(), ..SubscribeRequest::default() };
        let mut stream = subscribe(&world, &token.token, bad).await.unwrap();
        assert_eq!(stream.message().await.unwrap_err().code(), Code::InvalidArgument, "no instance id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_and_a_shutdown_end_the_stream() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let other = world.rotate(&gateway.id).await.unwrap();
        let mut revoked = Subscriber::plain(&world, &token.token).await;
        let mut kept = Subscriber::plain(&world, &other.token).await;
        let request = RevokeTokenRequest { gateway_id: gateway.id.clone(), token_id: token.id.clone() };
        world.registry().revoke_token(world.by(ADMIN, request)).await.unwrap();
        assert_eq!(revoked.closed().await, 4401);
        world.end().await;
        assert_eq!(kept.closed().await, 1012);
    }
}
