//! The link: who comes in, what is sent first, what comes again, how it ends.

use std::{collections::HashSet, time::Duration};

use proto::gateway::{
    DeleteGatewayRequest, DeploymentAck, Event, ListFailedDeliveriesRequest, RevokeTokenRequest,
    gateway_frame::Frame as From, platform_frame::Frame as To,
};
use service_kit::testing::TestDatabase;
use tonic::Code;

use crate::{
    gateway::{TestGateway, hello, open, payload, performed_at},
    harness::{ADMIN, PATIENCE, World, quick, reason, until, worlds},
};

fn revisions(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.revision).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_is_the_first_frame_and_the_registry_knows() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        assert!(!world.is_active(&gateway.id).await);
        let link = TestGateway::connect(&world, &token.token).await;
        assert_eq!(link.connected.gateway_id, gateway.id);
        assert!(service_kit::id::is_id(&link.connected.connection_id) && link.connected.timestamp.is_some());
        assert!(world.is_active(&gateway.id).await);
        drop(link);
        until("the registry knows that it left", async || !world.is_active(&gateway.id).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_gateway_gets_everything_in_order() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let events: Vec<_> = (0..3).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        for event in &events {
            world.append(vec![event.clone()]).await;
        }
        let mut link = TestGateway::connect(&world, &token.token).await;
        let got = link.events(3).await;
        assert_eq!(revisions(&got), [1, 2, 3]);
        for (got, sent) in got.iter().zip(&events) {
            let payload = payload(got);
            assert_eq!(payload["deploymentId"], sent.deployment_id.as_str());
            assert_eq!(payload["apiId"], sent.artifact_id.as_str());
            assert_eq!(payload["environment"], "production");
            assert_eq!(got.r#type, "api.deployed");
            assert!(got.timestamp.is_some());
        }
        // And live ones right away.
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_was_missed_only_the_newest_comes() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (changed, removed) = (world.ids.next(), world.ids.next());
        let mut events: Vec<_> = (0..100).map(|_| world.deploy(&gateway.id, &changed)).collect();
        events.extend([world.deploy(&gateway.id, &removed), world.deploy(&gateway.id, &removed)]);
        let last = events.last().unwrap().deployment_id.clone();
        events.push(world.event(&gateway.id, &removed, &last, "api.undeployed"));
        world.append(events).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let got = link.events(2).await;
        assert_eq!(revisions(&got), [100, 103]);
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_in_time_comes_again_on_the_same_link() {
    let mut limits = quick();
    (limits.redeliver_ms, limits.poll_ms) = (300, 50);
    for database in TestDatabase::both() {
        let world = World::start(database, limits).await;
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut last = link.event().await;
        for _ in 0..2 {
            let again = link.event().await;
            assert_eq!(again.revision, last.revision);
            assert!(performed_at(&again) > performed_at(&last));
            assert_ne!(again.correlation_id, last.correlation_id);
            last = again;
        }
        link.ack(&last, None).await;
        let deployment = payload(&last)["deploymentId"].as_str().unwrap().to_owned();
        until("it is reported", async || world.project.reported(&deployment).len() == 2).await;
        let request = ListFailedDeliveriesRequest {
            gateway_id: gateway.id.clone(),
            ..ListFailedDeliveriesRequest::default()
        };
        let failed = world.operations().list_failed_deliveries(world.by(ADMIN, request)).await.unwrap();
        let reasons: Vec<String> = failed.into_inner().list.into_iter().map(|one| one.reason).collect();
        assert_eq!(reasons, ["UNACKNOWLEDGED"], "once for all repeats");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_comes_again_newer_and_fresh() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let apis: Vec<String> = (0..3).map(|_| world.ids.next()).collect();
        world.append(apis.iter().map(|api| world.deploy(&gateway.id, api)).collect()).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let first = link.events(3).await;
        link.ack(&first[1], None).await;
        let acked = payload(&first[1])["deploymentId"].as_str().unwrap().to_owned();
        until("the acknowledgement is reported", async || world.project.reported(&acked).len() == 2).await;
        drop(link);

        let mut link = TestGateway::connect(&world, &token.token).await;
        let again = link.events(2).await;
        assert_eq!(revisions(&again), [1, 3]);
        for (old, new) in [(&first[0], &again[0]), (&first[2], &again[1])] {
            assert!(performed_at(new) > performed_at(old));
            assert_ne!(new.correlation_id, old.correlation_id);
            assert!(service_kit::id::is_id(&new.correlation_id));
        }
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_of_a_gateway_gets_the_same_sending() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let other = world.rotate(&gateway.id).await.unwrap();
        let mut one = TestGateway::connect(&world, &token.token).await;
        let mut two = TestGateway::connect(&world, &other.token).await;
        assert_ne!(one.connected.connection_id, two.connected.connection_id);
        // Who came while something was on its way gets that by itself; from then on they go together.
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        assert_eq!((one.event().await.revision, two.event().await.revision), (1, 1));
        for _ in 0..5 {
            world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        }
        let (first, second) = (one.events(5).await, two.events(5).await);
        assert_eq!(revisions(&first), [2, 3, 4, 5, 6]);
        for (a, b) in first.iter().zip(&second) {
            assert_eq!((&a.payload_json, &a.correlation_id), (&b.payload_json, &b.correlation_id));
        }
        // One of them says so: it is done for both, and nothing was sent twice.
        two.ack(&first[4], None).await;
        one.only(&world, &gateway.id).await;
        drop(two);
        assert!(world.is_active(&gateway.id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_nothing_answers_come_until_a_gateway_has_proven_that_it_read_them() {
    // Nobody is given up for silence meanwhile: the gateway of this test says something only now and then.
    let limits = gateway_service::LinkConfig { heartbeat_ms: 50, ..quick() };
    for database in TestDatabase::both() {
        let world = World::start(database, limits).await;
        let done = async |count: i64| {
            let sql = "SELECT COUNT(*) FROM gateway_events WHERE state = 'acked'";
            until("the log knows", async || world.count(sql).await == count).await;
        };
        let (gateway, token) = world.gateway("edge-1").await;
        let mut deleted = world.event(&gateway.id, &world.ids.next(), "", "api.deleted");
        deleted.payload_json = format!(r#"{{"apiId":"{}"}}"#, deleted.artifact_id);
        let mut config = world.event(&gateway.id, "", "", "gateway.config.updated");
        config.payload_json = r#"{"configType":"cors","action":"update"}"#.into();
        // The deletion makes it void.
        let void = world.deploy(&gateway.id, &deleted.artifact_id);
        world.append(vec![void, deleted.clone(), config.clone()]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let got = link.events(2).await;
        assert_eq!(got[0].payload_json, deleted.payload_json, "no performedAt");
        assert_eq!(
            (got[1].r#type.as_str(), &got[1].payload_json),
            ("gateway.config.updated", &config.payload_json)
        );
        // Signs of life prove nothing, however long the connection lasts: it may be busy with something else.
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(1) {
            link.heartbeat().await;
            assert!(
                matches!(link.frame().await, Some(To::Heartbeat(_))),
                "nothing comes twice on a connection"
            );
        }
        drop(link);
        let mut link = TestGateway::connect(&world, &token.token).await;
        let again = link.events(2).await;
        assert_eq!(revisions(&again), [2, 3]);
        assert_ne!(again[1].correlation_id, got[1].correlation_id);
        // It is done with the first of them.
        link.done_with(2).await;
        done(1).await;
        drop(link);
        let mut link = TestGateway::connect(&world, &token.token).await;
        assert_eq!(revisions(&link.events(1).await), [3]);
        link.done_with(u64::MAX).await;
        done(2).await;
        drop(link);
        let mut link = TestGateway::connect(&world, &token.token).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_wait_in_the_log_and_not_in_memory() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut fast = TestGateway::connect(&world, &token.token).await;
        let mut slow = TestGateway::connect(&world, &token.token).await;
        let payload = format!(r#"{{"x":"{}"}}"#, "x".repeat(700_000));
        for _ in 0..12 {
            let mut large = world.event(&gateway.id, "", "", "custom.large");
            large.payload_json.clone_from(&payload);
            world.append(vec![large]).await;
        }
        let all: Vec<u64> = (1..=12).collect();
        assert_eq!(revisions(&fast.events(12).await), all);
        assert_eq!(revisions(&slow.events(12).await), all);
        // All of it at once: each look takes what fits.
        drop((fast, slow));
        let mut late = TestGateway::connect(&world, &token.token).await;
        assert_eq!(revisions(&late.events(12).await), all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_and_deleting_close_live_connections() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let other = world.rotate(&gateway.id).await.unwrap();
        let mut revoked = TestGateway::connect(&world, &token.token).await;
        let mut kept = TestGateway::connect(&world, &other.token).await;
        let request = RevokeTokenRequest { gateway_id: gateway.id.clone(), token_id: token.id.clone() };
        world.registry().revoke_token(world.by(ADMIN, request)).await.unwrap();
        let close = revoked.closed().await;
        assert_eq!((close.code, close.reason.as_str()), (4401, "token revoked"));
        kept.only(&world, &gateway.id).await;
        let again = open(&world, &token.token, Some(hello())).await.unwrap_err();
        assert_eq!(again.code(), Code::Unauthenticated);

        let request = DeleteGatewayRequest { gateway_id: gateway.id.clone() };
        world.registry().delete_gateway(world.by(ADMIN, request)).await.unwrap();
        assert_eq!(kept.closed().await.code, 4404);
        let again = open(&world, &other.token, Some(hello())).await.unwrap_err();
        assert_eq!(again.code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_closes_open_streams_at_once() {
    for mut world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let mut links = Vec::new();
        for _ in 0..10 {
            links.push(TestGateway::connect(&world, &token.token).await);
        }
        // This one has not said hello yet.
        let (_frames, mut silent) = open(&world, &token.token, None).await.unwrap();
        let started = std::time::Instant::now();
        world.end().await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        for link in &mut links {
            let close = link.closed().await;
            assert_eq!(close.code, 1012);
            assert!(close.reason.contains("retry_after_ms="), "{}", close.reason);
        }
        assert_eq!(silent.message().await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_begins_with_hello_and_there_is_a_limit() {
    let first = From::DeploymentAck(DeploymentAck::default());
    // Who says something is not to be cut because it took a moment to be read.
    for (first, hello_ms, code) in
        [(None, 300, Code::DeadlineExceeded), (Some(first), quick().hello_ms, Code::InvalidArgument)]
    {
        let limits = gateway_service::LinkConfig { hello_ms, ..quick() };
        let world = World::start(TestDatabase::sqlite(), limits).await;
        let (_, token) = world.gateway("edge-1").await;
        let (_frames, mut stream) = open(&world, &token.token, first).await.unwrap();
        assert_eq!(stream.message().await.unwrap_err().code(), code);
    }
    let limits = gateway_service::LinkConfig { max_connections: 2, ..quick() };
    let world = World::start(TestDatabase::sqlite(), limits).await;
    let (_, token) = world.gateway("edge-1").await;
    let one = TestGateway::connect(&world, &token.token).await;
    let _two = TestGateway::connect(&world, &token.token).await;
    let status = open(&world, &token.token, Some(hello())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "CONNECTION_LIMIT"));
    drop(one);
    until("its place is free", async || open(&world, &token.token, Some(hello())).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_of_life_go_both_ways_and_silence_is_death() {
    let mut limits = quick();
    (limits.heartbeat_ms, limits.silence_ms, limits.poll_ms) = (100, 2_000, 50);
    let world = World::start(TestDatabase::sqlite(), limits).await;
    let (gateway, token) = world.gateway("edge-1").await;
    let mut link = TestGateway::connect(&world, &token.token).await;
    world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
    let started = std::time::Instant::now();
    let mut heads = HashSet::new();
    while started.elapsed() < Duration::from_millis(4_500) {
        if let Some(To::Heartbeat(beat)) = link.frame().await {
            heads.insert(beat.revision);
        }
        link.heartbeat().await;
    }
    assert!(heads.contains(&1), "{heads:?}");
    // From now on the gateway is silent.
    assert_eq!(link.closed().await.code, 4408);
    until("it is inactive", async || !world.is_active(&gateway.id).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_connection_only_hurts_itself() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut fast = TestGateway::connect(&world, &token.token).await;
        let mut slow = TestGateway::connect(&world, &token.token).await;
        let count = 400;
        let filler = "x".repeat(20_000);
        for _ in 0..count / 20 {
            let mut events: Vec<_> = (0..20).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
            for event in &mut events {
                let (api, deployment) = (&event.artifact_id, &event.deployment_id);
                event.payload_json =
                    format!(r#"{{"apiId":"{api}","deploymentId":"{deployment}","x":"{filler}"}}"#);
            }
            world.append(events).await;
        }
        // The slow one does not read: 8 MB fit neither into its window nor into its queue.
        let all: Vec<u64> = (1..=count).collect();
        assert_eq!(revisions(&fast.events(400).await), all);
        assert_eq!(revisions(&slow.events(400).await), all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_the_log_without_a_bus_between_them() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let other = world.instance().await;
        world.turn_to(other.addr);
        // Appended by the other instance: the poll finds it.
        let event = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![event.clone()]).await;
        let got = link.event().await;
        assert_eq!(payload(&got)["deploymentId"], event.deployment_id.as_str());
        // Revoked by the other instance.
        let request = RevokeTokenRequest { gateway_id: gateway.id.clone(), token_id: token.id };
        world.registry().revoke_token(world.by(ADMIN, request)).await.unwrap();
        let started = std::time::Instant::now();
        assert_eq!(link.closed().await.code, 4401);
        assert!(started.elapsed() < PATIENCE.min(Duration::from_secs(5)));
        other.shutdown().await;
    }
}
