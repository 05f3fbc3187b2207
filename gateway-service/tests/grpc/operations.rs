//! What operators see and do: connections, failures, states, statistics, resync.

use proto::{
    gateway::{
        Connection, FailedDelivery, GetStatsRequest, ListArtifactStatesRequest, ListConnectionsRequest,
        ListFailedDeliveriesRequest, RegisterGatewayRequest, ResyncRequest, SendEventRequest, Stats,
    },
    time::Timestamp,
};
use tonic::{Code, Status};

use crate::{
    gateway::{TestGateway, payload, performed_at},
    harness::{ADMIN, World, fields, quick, until, worlds},
};

const VIEWER: &str = "01890000-0000-7000-8000-00000000000b";
const STRANGER: &str = "01890000-0000-7000-8000-00000000000c";
const HOUR: i64 = 3_600_000;

async fn connections(world: &World, request: ListConnectionsRequest) -> (Vec<Connection>, u32) {
    let answer = world.operations().list_connections(world.by(ADMIN, request)).await.unwrap().into_inner();
    assert_eq!(answer.count as usize, answer.list.len());
    (answer.list, answer.pagination.unwrap().total)
}

async fn of_gateway(world: &World, gateway_id: &str) -> Vec<Connection> {
    let request =
        ListConnectionsRequest { gateway_id: gateway_id.into(), ..ListConnectionsRequest::default() };
    connections(world, request).await.0
}

async fn failures(
    world: &World,
    request: ListFailedDeliveriesRequest,
) -> Result<(Vec<FailedDelivery>, u32), Status> {
    let answer = world.operations().list_failed_deliveries(world.by(ADMIN, request)).await?.into_inner();
    Ok((answer.list, answer.pagination.unwrap().total))
}

async fn stats(world: &World, user: &str) -> Stats {
    world.operations().get_stats(world.by(user, GetStatsRequest {})).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_017_and_fr_018_connections_are_listed_with_their_health() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (other, other_token) = world.gateway("edge-2").await;
        assert_eq!(connections(&world, ListConnectionsRequest::default()).await, (vec![], 0));
        let one = TestGateway::connect(&world, &token.token).await;
        let two = TestGateway::connect(&world, &token.token).await;
        let third = TestGateway::connect(&world, &other_token.token).await;

        let (all, total) = connections(&world, ListConnectionsRequest::default()).await;
        let ids: Vec<&str> = all.iter().map(|one| one.id.as_str()).collect();
        let wanted = [&third, &two, &one].map(|link| link.connected.connection_id.as_str());
        assert_eq!((ids, total), (wanted.to_vec(), 3), "newest first");
        let newest = &all[0];
        assert_eq!((newest.gateway_id.as_str(), newest.gateway_name.as_str()), (&*other.id, "edge-2"));
        assert_eq!(
            (newest.organization_id.as_str(), newest.health.as_str()),
            (&*world.organization, "connected")
        );
        assert_eq!((newest.transport.as_str(), newest.version.as_str(), newest.lag), ("grpc", "1.2.0", 0));
        assert_eq!(newest.connected_at, third.connected.timestamp);
        assert!(newest.last_heartbeat >= newest.connected_at && !newest.node.is_empty());

        let page = ListConnectionsRequest { limit: Some(1), offset: 1, ..ListConnectionsRequest::default() };
        let (second, total) = connections(&world, page).await;
        assert_eq!((second[0].id.as_str(), total), (wanted[1], 3));
        assert_eq!(of_gateway(&world, &gateway.id).await.len(), 2);

        // What is not acknowledged is its lag.
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        assert_eq!(
            of_gateway(&world, &gateway.id).await.iter().map(|one| one.lag).collect::<Vec<_>>(),
            [1, 1]
        );
        drop((one, two));
        until("both are gone", async || of_gateway(&world, &gateway.id).await.is_empty()).await;
        assert_eq!(connections(&world, ListConnectionsRequest::default()).await.1, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_says_nothing_is_stale_before_it_is_given_up() {
    for mut world in worlds().await {
        // A sign of life is due each 100 ms; nobody is given up for want of one.
        world.end().await;
        (world.link.heartbeat_ms, world.link.silence_ms) = (100, 600_000);
        world.begin().await;
        let (gateway, token) = world.gateway("edge-1").await;
        let link = TestGateway::connect(&world, &token.token).await;
        until("it is stale", async || of_gateway(&world, &gateway.id).await[0].health == "stale").await;
        let status = &stats(&world, ADMIN).await.gateway_connections.unwrap().connections[0].status;
        assert_eq!(status, "stale");
        drop(link);
    }
    assert_eq!(quick().heartbeat_ms, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_seen_does_not_exist() {
    for world in worlds().await {
        world.project.join(VIEWER, &world.organization, "viewer");
        let (gateway, token) = world.gateway("edge-1").await;
        let link = TestGateway::connect(&world, &token.token).await;
        let mut operations = world.operations();
        let by_gateway =
            ListConnectionsRequest { gateway_id: gateway.id.clone(), ..ListConnectionsRequest::default() };
        let failed = ListFailedDeliveriesRequest {
            gateway_id: gateway.id.clone(),
            ..ListFailedDeliveriesRequest::default()
        };
        let states = ListArtifactStatesRequest {
            gateway_id: gateway.id.clone(),
            ..ListArtifactStatesRequest::default()
        };
        let resync = ResyncRequest { gateway_id: gateway.id.clone(), ..ResyncRequest::default() };
        let event = SendEventRequest {
            gateway_id: gateway.id.clone(),
            r#type: "custom.x".into(),
            payload: Some(proto::Struct::default()),
            ..SendEventRequest::default()
        };
        for hidden in [
            operations.list_connections(world.by(STRANGER, by_gateway.clone())).await.err(),
            operations.list_failed_deliveries(world.by(STRANGER, failed.clone())).await.err(),
            operations.list_artifact_states(world.by(STRANGER, states.clone())).await.err(),
            operations.resync(world.by(STRANGER, resync.clone())).await.err(),
            operations.send_event(world.by(STRANGER, event.clone())).await.err(),
        ] {
            let hidden = hidden.unwrap();
            assert_eq!((hidden.code(), hidden.message()), (Code::NotFound, "no such gateway"));
        }
        let of_organization = ListConnectionsRequest {
            organization_id: world.organization.clone(),
            ..ListConnectionsRequest::default()
        };
        let hidden = operations.list_connections(world.by(STRANGER, of_organization)).await.unwrap_err();
        assert_eq!((hidden.code(), hidden.message()), (Code::NotFound, "no such organization"));
        let nothing =
            operations.list_connections(world.by(STRANGER, ListConnectionsRequest::default())).await;
        assert_eq!(nothing.unwrap().into_inner().pagination.unwrap().total, 0);
        assert_eq!(stats(&world, STRANGER).await.gateway_connections.unwrap().total_active, 0);

        // A viewer sees everything and changes nothing.
        operations.list_connections(world.by(VIEWER, by_gateway.clone())).await.unwrap();
        operations.list_failed_deliveries(world.by(VIEWER, failed)).await.unwrap();
        operations.list_artifact_states(world.by(VIEWER, states)).await.unwrap();
        assert_eq!(stats(&world, VIEWER).await.gateway_connections.unwrap().total_active, 1);
        for denied in [
            operations.resync(world.by(VIEWER, resync)).await.err(),
            operations.send_event(world.by(VIEWER, event)).await.err(),
        ] {
            assert_eq!(denied.unwrap().code(), Code::PermissionDenied);
        }

        // The gateway of one organization, asked for as one of another.
        let other = world.ids.next();
        world.project.join(ADMIN, &other, "admin");
        let odd = ListConnectionsRequest { organization_id: other, ..by_gateway };
        let status = operations.list_connections(world.by(ADMIN, odd)).await.unwrap_err();
        assert_eq!(fields(&status), ["organizationId"]);
        drop(link);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_019_failed_deliveries_are_found_in_their_time_window() {
    for mut world in worlds().await {
        let now = service_kit::Clock::system().now_ms();
        let (gateway, token) = world.gateway("edge-1").await;
        let link = TestGateway::connect(&world, &token.token).await;
        let mut link = link;
        let refused = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![refused.clone()]).await;
        let event = link.event().await;
        link.ack(&event, Some("GATEWAY_PROCESSING_ERROR")).await;
        let asked = || ListFailedDeliveriesRequest {
            gateway_id: gateway.id.clone(),
            ..ListFailedDeliveriesRequest::default()
        };
        until("the failure is kept", async || failures(&world, asked()).await.unwrap().1 == 1).await;
        let (list, _) = failures(&world, asked()).await.unwrap();
        let failure = &list[0];
        assert_eq!((failure.gateway_id.as_str(), failure.revision), (&*gateway.id, 1));
        assert_eq!(
            (&failure.artifact_id, &failure.deployment_id),
            (&refused.artifact_id, &refused.deployment_id)
        );
        let (event_type, reason) = (failure.event_type.as_str(), failure.reason.as_str());
        assert_eq!((event_type, reason), ("api.deployed", "GATEWAY_PROCESSING_ERROR"));
        let failed_at = failure.failed_at.unwrap();
        assert!(failed_at.unix_ms() >= now);

        // It survives a restart, and so do the statistics.
        let before = stats(&world, ADMIN).await.event_delivery.unwrap();
        assert_eq!((before.total_events_sent, before.failed_deliveries), (1, 1));
        assert_eq!(before.last_failure_reason, "GATEWAY_PROCESSING_ERROR");
        drop(link);
        world.end().await;
        world.begin().await;
        assert_eq!(failures(&world, asked()).await.unwrap().0, list);
        assert_eq!(stats(&world, ADMIN).await.event_delivery.unwrap(), before);

        // One of three days ago is in no window that does not reach so far.
        world
            .execute(
                "INSERT INTO failed_deliveries (id, gateway_id, organization_id, instance_id, revision, type,
                   artifact_id, deployment_id, reason, detail, failed_at)
                 SELECT 'old', gateway_id, organization_id, 'i', revision, type, artifact_id, deployment_id,
                   'OLD', 'd', failed_at - 259200000 FROM failed_deliveries",
            )
            .await;
        let at = |ms: i64| Some(Timestamp::from_unix_ms(ms));
        let found = async |from: Option<Timestamp>, to: Option<Timestamp>| -> Vec<String> {
            let request = ListFailedDeliveriesRequest { from, to, ..ListFailedDeliveriesRequest::default() };
            let (list, total) = failures(&world, request).await.unwrap();
            assert_eq!(list.len(), total as usize);
            list.into_iter().map(|failure| failure.reason).collect()
        };
        assert_eq!(found(None, None).await, ["GATEWAY_PROCESSING_ERROR"], "the last day");
        let at_once = failed_at.unix_ms();
        assert_eq!(found(at(at_once - 73 * HOUR), None).await, ["GATEWAY_PROCESSING_ERROR", "OLD"]);
        assert_eq!(found(None, at(at_once - 71 * HOUR)).await, ["OLD"], "a day before its end");
        assert_eq!(found(None, at(at_once)).await, Vec::<String>::new(), "the end is not in it");
        assert_eq!(found(at(at_once), at(at_once + 1)).await, ["GATEWAY_PROCESSING_ERROR"]);

        for (from, to, field) in [
            (at(now), at(now), "from"),
            (at(now + HOUR), None, "from"),
            (at(now - 32 * 24 * HOUR), None, "from"),
            (Some(Timestamp { seconds: i64::MAX, nanos: 0 }), None, "from"),
            (None, Some(Timestamp { seconds: i64::MIN, nanos: 0 }), "to"),
        ] {
            let status =
                failures(&world, ListFailedDeliveriesRequest { from, to, ..asked() }).await.unwrap_err();
            assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.to_owned()]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_of_what_the_caller_may_see() {
    for world in worlds().await {
        let other = world.ids.next();
        world.project.join(STRANGER, &other, "admin");
        let request = RegisterGatewayRequest { organization_id: other, ..world.registration("theirs") };
        world.registry().register_gateway(world.by(STRANGER, request)).await.unwrap();
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let event = link.event().await;
        link.ack(&event, None).await;
        until("it is counted", async || {
            stats(&world, ADMIN).await.event_delivery.unwrap().total_events_sent == 1
        })
        .await;
        let seen = stats(&world, ADMIN).await.gateway_connections.unwrap();
        assert_eq!((seen.total_active, seen.connections.len()), (1, 1));
        let connection = &seen.connections[0];
        assert_eq!(
            (&connection.gateway_id, &connection.connection_id),
            (&gateway.id, &link.connected.connection_id)
        );
        assert_eq!(connection.status, "connected");
        let hidden = stats(&world, STRANGER).await;
        assert_eq!(hidden.gateway_connections.unwrap().total_active, 0);
        let deliveries = hidden.event_delivery.unwrap();
        assert_eq!((deliveries.total_events_sent, deliveries.last_failure_time), (0, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_is_shown_beside_what_is_there() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let mut apis: Vec<String> = (0..3).map(|_| world.ids.next()).collect();
        apis.sort();
        let deployed: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
        let request = |only_drifted| ListArtifactStatesRequest {
            gateway_id: gateway.id.clone(),
            only_drifted,
            ..ListArtifactStatesRequest::default()
        };
        let list = async |only_drifted| {
            let request = world.by(ADMIN, request(only_drifted));
            world.operations().list_artifact_states(request).await.unwrap().into_inner().list
        };
        assert!(list(false).await.is_empty());
        world.append(deployed.clone()).await;
        let events = link.events(3).await;
        link.ack(&events[0], None).await;
        link.ack(&events[1], Some("DEPLOYMENT_ID_MISMATCH")).await;
        until("two are answered", async || {
            let list = list(false).await;
            let status: Vec<&str> = list.iter().map(|state| state.status.as_str()).collect();
            status == ["DEPLOYED", "FAILED", "DELIVERED"]
        })
        .await;
        let all = list(false).await;
        assert_eq!(all[1].reason, "DEPLOYMENT_ID_MISMATCH");
        for (state, wanted) in all.iter().zip(&deployed) {
            assert_eq!(
                (&state.artifact_id, &state.deployment_id),
                (&wanted.artifact_id, &wanted.deployment_id)
            );
            assert_eq!((state.desired.as_str(), state.drifted), ("DEPLOYED", false), "not yet");
        }
        assert!(list(true).await.is_empty());

        // Ten minutes later what is not there has drifted.
        world.execute("UPDATE gateway_events SET created_at = created_at - 600000").await;
        world.execute("UPDATE gateway_reported SET reported_at = reported_at - 600000").await;
        let drifted: Vec<u64> = list(true).await.iter().map(|state| state.revision).collect();
        assert_eq!(drifted, [2, 3]);
        assert!(list(true).await.iter().all(|state| state.drifted));

        // An end that is wanted, and an API that is gone for good.
        let end = world.event(&gateway.id, &apis[0], &deployed[0].deployment_id, "api.undeployed");
        let mut gone = world.event(&gateway.id, &apis[2], "", "api.deleted");
        gone.payload_json = format!(r#"{{"apiId":"{}"}}"#, apis[2]);
        world.append(vec![end, gone]).await;
        let all = list(false).await;
        assert_eq!(all.len(), 2, "what is deleted is not wanted");
        assert_eq!((all[0].desired.as_str(), all[0].status.as_str()), ("UNDEPLOYED", "UNDEPLOYING"));
        let event = link.event().await;
        assert_eq!(payload(&event)["apiId"], apis[0].as_str());
        link.ack(&event, None).await;
        until("it is gone", async || list(false).await[0].status == "UNDEPLOYED").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_sends_again_what_was_refused_and_in_full_all_that_runs() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let deployed: Vec<_> = (0..2).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(deployed.clone()).await;
        let events = link.events(2).await;
        link.ack(&events[0], None).await;
        link.ack(&events[1], Some("GATEWAY_PROCESSING_ERROR")).await;
        let failed = ListFailedDeliveriesRequest::default();
        until("one failed", async || failures(&world, failed.clone()).await.unwrap().1 == 1).await;

        let resync = async |artifact: &str, full: bool| {
            let (gateway_id, artifact_id) = (gateway.id.clone(), artifact.to_owned());
            let request = world.by(ADMIN, ResyncRequest { gateway_id, artifact_id, full });
            world.operations().resync(request).await.map(|answer| {
                let answer = answer.into_inner();
                (answer.events, answer.head_revision)
            })
        };
        assert_eq!(resync(&deployed[0].artifact_id, false).await.unwrap(), (0, 2), "all is well with it");
        assert_eq!(resync("", false).await.unwrap(), (1, 3));
        let again = link.event().await;
        assert_eq!((again.revision, payload(&again)["apiId"].as_str()), (3, Some(&*deployed[1].artifact_id)));
        assert_eq!(payload(&again)["deploymentId"], deployed[1].deployment_id.as_str());
        link.ack(&again, None).await;
        until("it is repaired", async || {
            let request = ListArtifactStatesRequest { gateway_id: gateway.id.clone(), ..Default::default() };
            let list = world.operations().list_artifact_states(world.by(ADMIN, request)).await.unwrap();
            list.into_inner().list.iter().all(|state| state.status == "DEPLOYED")
        })
        .await;
        assert_eq!(resync("", false).await.unwrap(), (0, 3));
        world.want(&deployed);
        assert_eq!(resync("", true).await.unwrap(), (2, 5));
        let full = link.events(2).await;
        assert!(
            performed_at(&full[0]) > performed_at(&events[0])
                && performed_at(&full[1]) > performed_at(&again)
        );

        let unknown = resync(&world.ids.next(), false).await.unwrap_err();
        assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "no such artifact on this gateway"));
        assert_eq!(fields(&resync("x", false).await.unwrap_err()), ["artifactId"]);
    }
}
