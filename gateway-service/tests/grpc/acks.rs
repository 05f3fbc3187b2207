//! Acknowledgements and what project-service hears of them.

use proto::{
    gateway::{DeleteGatewayRequest, DeploymentAck, Event, gateway_frame::Frame as From},
    project::DeploymentStatus as Status,
    time::Timestamp,
};
use service_kit::testing::TestDatabase;

use crate::{
    gateway::{TestGateway, ack_of, payload},
    harness::{ADMIN, World, quick, until, worlds},
};

/// What the reports of a deployment say, in order: status, action, reason.
fn reports(world: &World, deployment: &str) -> Vec<(Status, String, String)> {
    let status = |number: i32| Status::try_from(number).unwrap();
    world.project.reported(deployment).into_iter().map(|(s, a, r)| (status(s), a, r)).collect()
}

fn said(status: Status, action: &str, reason: &str) -> (Status, String, String) {
    (status, action.to_owned(), reason.to_owned())
}

fn deployment(event: &Event) -> String {
    payload(event)["deploymentId"].as_str().unwrap().to_owned()
}

/// Deployments of one API, each sent before the next is there: none makes another needless before that.
async fn deploy_one_by_one(world: &World, link: &mut TestGateway, api: &str, count: usize) -> Vec<Event> {
    let gateway_id = link.connected.gateway_id.clone();
    let mut events = Vec::new();
    for _ in 0..count {
        world.append(vec![world.deploy(&gateway_id, api)]).await;
        events.push(link.event().await);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn success_and_failure_are_reported_once() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let deploy = world.deploy(&gateway.id, &api);
        let undeploy = world.event(&gateway.id, &api, &deploy.deployment_id, "api.undeployed");
        let refused = world.deploy(&gateway.id, &world.ids.next());
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![deploy.clone()]).await;
        let mut events = link.events(1).await;
        world.append(vec![undeploy, refused.clone()]).await;
        events.extend(link.events(2).await);
        link.ack(&events[0], None).await;
        link.ack(&events[0], None).await;
        link.ack(&events[1], None).await;
        link.ack(&events[2], Some("GATEWAY_PROCESSING_ERROR")).await;
        link.ack(&events[2], Some("GATEWAY_PROCESSING_ERROR")).await;
        // Success after failure counts, failure after success does not.
        link.ack(&events[2], None).await;
        link.ack(&events[0], Some("DEPLOYMENT_ID_MISMATCH")).await;
        let expected = [
            said(Status::Delivered, "deploy", ""),
            said(Status::Delivered, "undeploy", ""),
            said(Status::Deployed, "deploy", ""),
            said(Status::Undeployed, "undeploy", ""),
        ];
        until("everything is reported", async || {
            reports(&world, &deploy.deployment_id).len() >= 4
                && reports(&world, &refused.deployment_id).len() >= 3
        })
        .await;
        link.only(&world, &gateway.id).await;
        assert_eq!(reports(&world, &deploy.deployment_id), expected);
        let expected = [
            said(Status::Delivered, "deploy", ""),
            said(Status::Failed, "deploy", "GATEWAY_PROCESSING_ERROR"),
            said(Status::Deployed, "deploy", ""),
        ];
        assert_eq!(reports(&world, &refused.deployment_id), expected);
        let reports = world.project.reports.lock().unwrap();
        assert!(reports.iter().all(|report| report.gateway_id == gateway.id && report.reported_at.is_some()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_changes_nothing_and_ends_nothing() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (_, stranger) = world.gateway("edge-2").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let event = link.event().await;
        let good = ack_of(&event, None);
        let later = Timestamp::parse_rfc3339(&good.performed_at).unwrap().unix_ms() + 1;
        let later = Timestamp::from_unix_ms(later).to_rfc3339().unwrap();
        for nonsense in [
            DeploymentAck::default(),
            DeploymentAck { deployment_id: world.ids.next(), ..good.clone() },
            DeploymentAck { deployment_id: "\0'".into(), ..good.clone() },
            DeploymentAck { action: "undeploy".into(), ..good.clone() },
            DeploymentAck { status: "perhaps".into(), ..good.clone() },
            DeploymentAck { resource_type: "teapot".into(), ..good.clone() },
            DeploymentAck { performed_at: "soon".into(), ..good.clone() },
            DeploymentAck { performed_at: later, ..good.clone() },
        ] {
            link.send(From::DeploymentAck(nonsense)).await;
        }
        let other = TestGateway::connect(&world, &stranger.token).await;
        other.send(From::DeploymentAck(good.clone())).await;
        link.only(&world, &gateway.id).await;
        let told = reports(&world, &deployment(&event));
        assert!(told.iter().all(|report| report.0 == Status::Delivered), "{told:?}");
        link.send(From::DeploymentAck(good)).await;
        until("the link still works", async || reports(&world, &deployment(&event)).len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_an_earlier_sending_counts() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut old = TestGateway::connect(&world, &token.token).await;
        let first = old.event().await;
        let mut new = TestGateway::connect(&world, &token.token).await;
        let again = new.event().await;
        assert!(crate::gateway::performed_at(&again) > crate::gateway::performed_at(&first));
        old.ack(&first, None).await;
        until("it is reported", async || reports(&world, &deployment(&first)).len() == 2).await;
        drop((old, new));
        let mut link = TestGateway::connect(&world, &token.token).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_event_is_not_sent_again_over_a_newer_one_that_is_done() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let mut link = TestGateway::connect(&world, &token.token).await;
        let events = deploy_one_by_one(&world, &mut link, &api, 3).await;
        link.ack(&events[1], None).await;
        until("it is reported", async || reports(&world, &deployment(&events[1])).len() == 2).await;
        drop(link);
        let mut link = TestGateway::connect(&world, &token.token).await;
        assert_eq!(link.event().await.revision, events[2].revision, "the first would undo the second");
        link.ack(&events[0], None).await;
        until("a late success counts", async || reports(&world, &deployment(&events[0])).len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_event_is_not_sent_again_over_a_newer_one_that_failed() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let mut link = TestGateway::connect(&world, &token.token).await;
        let events = deploy_one_by_one(&world, &mut link, &api, 2).await;
        link.ack(&events[1], Some("GATEWAY_PROCESSING_ERROR")).await;
        until("it is reported", async || reports(&world, &deployment(&events[1])).len() == 2).await;
        drop(link);
        let mut link = TestGateway::connect(&world, &token.token).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_failed_is_tried_again() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (api, id) = (world.ids.next(), world.ids.next());
        let undeploy = || world.event(&gateway.id, &api, &id, "api.undeployed");
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![undeploy()]).await;
        let first = link.event().await;
        link.ack(&first, Some("GATEWAY_PROCESSING_ERROR")).await;
        until("the failure is reported", async || reports(&world, &id).len() == 2).await;
        world.append(vec![undeploy()]).await;
        let second = link.event().await;
        // An answer to the first that comes twice is none to the second.
        link.ack(&first, Some("GATEWAY_PROCESSING_ERROR")).await;
        link.ack(&second, None).await;
        until("the success is reported", async || reports(&world, &id).len() == 4).await;
        let last = reports(&world, &id).into_iter().map(|report| report.0).collect::<Vec<_>>();
        assert_eq!(last, [Status::Delivered, Status::Failed, Status::Delivered, Status::Undeployed]);
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deployments_of_a_deleted_gateway_are_reported() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (api, other) = (world.ids.next(), world.ids.next());
        let old = world.deploy(&gateway.id, &api);
        let (new, waiting) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &other));
        let mut link = TestGateway::connect(&world, &token.token).await;
        for event in [&old, &new] {
            world.append(vec![event.clone()]).await;
            let event = link.event().await;
            link.ack(&event, None).await;
        }
        until("it runs", async || reports(&world, &new.deployment_id).len() == 2).await;
        drop(link);
        world.append(vec![waiting.clone()]).await;
        let request = DeleteGatewayRequest { gateway_id: gateway.id.clone() };
        world.registry().delete_gateway(world.by(ADMIN, request)).await.unwrap();
        for id in [&new.deployment_id, &waiting.deployment_id] {
            let gone = said(Status::Failed, "delete", "GATEWAY_DELETED");
            until("its end is reported", async || reports(&world, id).last() == Some(&gone)).await;
        }
        assert_eq!(reports(&world, &old.deployment_id).len(), 2, "only what was current");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_wait_for_a_project_service_that_is_down() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.project.set_down(true);
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let event = link.event().await;
        link.ack(&event, None).await;
        link.only(&world, &gateway.id).await;
        assert!(reports(&world, &deployment(&event)).is_empty());
        world.project.set_down(false);
        until("they arrive", async || reports(&world, &deployment(&event)).len() == 2).await;
        assert_eq!(reports(&world, &deployment(&event))[1].0, Status::Deployed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_registered_any_more_cannot_acknowledge() {
    // Nobody looks by himself: what happens here happens because of the acknowledgement.
    let mut limits = quick();
    limits.poll_ms = 20_000;
    for database in TestDatabase::both() {
        let world = World::start(database, limits).await;
        let (gateway, token) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut old = TestGateway::connect(&world, &token.token).await;
        let event = old.event().await;
        world.execute("DELETE FROM connections").await;
        old.ack(&event, None).await;
        assert_eq!(old.closed().await.code, 4409);
        let mut new = TestGateway::connect(&world, &token.token).await;
        let again = new.event().await;
        assert_eq!(again.revision, event.revision, "nothing was acknowledged");
        new.ack(&again, None).await;
        until("it is reported", async || reports(&world, &deployment(&event)).len() == 2).await;
    }
}
