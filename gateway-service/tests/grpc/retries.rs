//! What a gateway refused comes again by itself, and a removal finds what is there.

use proto::{
    gateway::{Event, NewEvent},
    project::DeploymentStatus as Status,
};
use service_kit::testing::TestDatabase;

use crate::{
    gateway::{TestGateway, payload},
    harness::{World, quick, until},
};

/// Worlds that repeat at once what was refused, and reconcile often.
async fn hasty() -> Vec<World> {
    let mut worlds = Vec::new();
    for database in TestDatabase::both() {
        let link = gateway_service::LinkConfig {
            redeliver_ms: 400,
            refused_retries: 10,
            reconcile_ms: 200,
            ..quick()
        };
        worlds.push(World::start(database, link).await);
    }
    worlds
}

impl World {
    fn undeploy(&self, deployed: &NewEvent) -> NewEvent {
        self.event(&deployed.gateway_id, &deployed.artifact_id, &deployed.deployment_id, "api.undeployed")
    }

    /// Waits for the newest report of a deployment.
    async fn told(&self, deployment_id: &str, status: Status) {
        let wanted = i32::from(status);
        until("it is reported", async || {
            self.project.reported(deployment_id).last().is_some_and(|(status, ..)| *status == wanted)
        })
        .await;
    }
}

fn said(event: &Event) -> (String, String) {
    (event.r#type.clone(), payload(event)["deploymentId"].as_str().unwrap().to_owned())
}

fn undeployed(deployment_id: &str) -> (String, String) {
    ("api.undeployed".to_owned(), deployment_id.to_owned())
}

/// Appends the event, and answers it.
async fn tell(world: &World, link: &mut TestGateway, event: &NewEvent, failure: Option<&str>) {
    world.want(std::slice::from_ref(event));
    world.append(vec![event.clone()]).await;
    let got = link.event().await;
    assert_eq!(said(&got), (event.r#type.clone(), event.deployment_id.clone()));
    link.ack(&got, failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_what_was_refused_removes_what_runs_instead() {
    for world in worlds_without_retries().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let (runs, refused) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &api));
        let mut link = TestGateway::connect(&world, &token.token).await;
        tell(&world, &mut link, &runs, None).await;
        tell(&world, &mut link, &refused, Some("GATEWAY_PROCESSING_ERROR")).await;
        tell(&world, &mut link, &world.undeploy(&refused), Some("DEPLOYMENT_ID_MISMATCH")).await;
        let again = link.event().await;
        assert_eq!(said(&again), undeployed(&runs.deployment_id));
        assert_eq!(payload(&again)["environment"], "production", "with the whole payload");
        link.ack(&again, None).await;
        world.told(&refused.deployment_id, Status::Undeployed).await;
        let of_the_other = world.project.reported(&runs.deployment_id);
        assert_eq!(
            of_the_other.last().unwrap().0,
            i32::from(Status::Deployed),
            "nobody asked for its removal"
        );
        // Its row names what was removed last, whatever comes next.
        let other = world.deploy(&gateway.id, &api);
        tell(&world, &mut link, &other, Some("GATEWAY_PROCESSING_ERROR")).await;
        tell(&world, &mut link, &world.undeploy(&other), Some("DEPLOYMENT_ID_MISMATCH")).await;
        let again = link.event().await;
        assert_eq!(said(&again), undeployed(&runs.deployment_id));
        link.ack(&again, None).await;
        world.told(&other.deployment_id, Status::Undeployed).await;
        link.only(&world, &gateway.id).await;
    }
}

/// Worlds in which what was refused does not come again while a test runs.
async fn worlds_without_retries() -> Vec<World> {
    let mut worlds = Vec::new();
    for database in TestDatabase::both() {
        let link = gateway_service::LinkConfig { reconcile_ms: 200, ..quick() };
        worlds.push(World::start(database, link).await);
    }
    worlds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_names_nothing_that_is_there_tries_each_once() {
    for world in worlds_without_retries().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let deployed: Vec<NewEvent> = (0..3).map(|_| world.deploy(&gateway.id, &api)).collect();
        let mut link = TestGateway::connect(&world, &token.token).await;
        for event in &deployed {
            tell(&world, &mut link, event, Some("GATEWAY_PROCESSING_ERROR")).await;
        }
        tell(&world, &mut link, &world.undeploy(&deployed[2]), Some("DEPLOYMENT_ID_MISMATCH")).await;
        for event in [&deployed[1], &deployed[0]] {
            let again = link.event().await;
            assert_eq!(said(&again), undeployed(&event.deployment_id));
            link.ack(&again, Some("DEPLOYMENT_ID_MISMATCH")).await;
        }
        world.told(&deployed[2].deployment_id, Status::Failed).await;
        link.only(&world, &gateway.id).await;
    }
}

/// The next event that was not there before. Where things are repeated at once, an event may come twice before its
/// answer has been read.
async fn new_event(link: &mut TestGateway, last: &mut u64) -> Event {
    loop {
        let event = link.event().await;
        if event.revision > *last {
            *last = event.revision;
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_could_not_do_comes_again_by_itself() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let deploy = world.deploy(&gateway.id, &world.ids.next());
        let mut last = 0;
        world.want(std::slice::from_ref(&deploy));
        world.append(vec![deploy.clone()]).await;
        for failure in [Some("GATEWAY_PROCESSING_ERROR"), Some("GATEWAY_PROCESSING_ERROR"), None] {
            let again = new_event(&mut link, &mut last).await;
            assert_eq!(said(&again), (deploy.r#type.clone(), deploy.deployment_id.clone()));
            link.ack(&again, failure).await;
        }
        world.told(&deploy.deployment_id, Status::Deployed).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 3, "each once, and no more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_will_never_do_and_what_is_not_wanted_any_more_does_not_come_again() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let (never, api) = (world.deploy(&gateway.id, &world.ids.next()), world.ids.next());
        let (old, new) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &api));
        world.want(&[never.clone(), old.clone()]);
        world.append(vec![never.clone(), old]).await;
        let mut last = 0;
        let events = [new_event(&mut link, &mut last).await, new_event(&mut link, &mut last).await];
        // Before the failure: else the old one may come again while it is still the newest.
        world.want(&[never.clone(), new.clone()]);
        world.append(vec![new.clone()]).await;
        link.ack(&events[0], Some("NO_SUCH_POLICY")).await;
        link.ack(&events[1], Some("GATEWAY_PROCESSING_ERROR")).await;
        let newest = new_event(&mut link, &mut last).await;
        assert_eq!(said(&newest).1, new.deployment_id);
        link.ack(&newest, None).await;
        world.told(&new.deployment_id, Status::Deployed).await;
        // What was on its way before all that was recorded has come by now.
        let marker = world.deploy(&gateway.id, &world.ids.next());
        world.want(&[never, new, marker.clone()]);
        world.append(vec![marker.clone()]).await;
        let event = new_event(&mut link, &mut last).await;
        assert_eq!(said(&event).1, marker.deployment_id);
        link.ack(&event, None).await;
        world.told(&marker.deployment_id, Status::Deployed).await;
        // Longer than any pause so far.
        tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_missed_a_deployment_and_its_removal_stops_what_it_ran_before() {
    for world in worlds_without_retries().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let (runs, missed) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &api));
        let mut link = TestGateway::connect(&world, &token.token).await;
        tell(&world, &mut link, &runs, None).await;
        world.told(&runs.deployment_id, Status::Deployed).await;
        drop(link);
        let removal = world.undeploy(&missed);
        world.want(std::slice::from_ref(&removal));
        world.append(vec![missed.clone(), removal]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let removal = link.event().await;
        assert_eq!(said(&removal), undeployed(&missed.deployment_id), "nobody could fetch what it removes");
        link.ack(&removal, Some("DEPLOYMENT_ID_MISMATCH")).await;
        let again = link.event().await;
        assert_eq!(said(&again), undeployed(&runs.deployment_id));
        link.ack(&again, None).await;
        world.told(&missed.deployment_id, Status::Undeployed).await;
        link.only(&world, &gateway.id).await;
    }
}
