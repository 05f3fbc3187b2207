//! Reconciliation: what project-service wants is in the log, whatever became of its events.

use std::sync::atomic::Ordering;

use proto::{gateway::NewEvent, project::DesiredDeployment};
use service_kit::testing::TestDatabase;

use crate::{
    gateway::{TestGateway, payload, performed_at},
    harness::{World, quick, until},
};

/// Worlds that reconcile often.
async fn hasty() -> Vec<World> {
    let mut worlds = Vec::new();
    for database in TestDatabase::both() {
        worlds.push(
            World::start(
                database,
                gateway_service::LinkConfig { reconcile_ms: 200, silence_ms: 600_000, ..quick() },
            )
            .await,
        );
    }
    worlds
}

impl World {
    /// Waits for so many more looks that begin from now on.
    async fn looks(&self, count: usize) {
        let listed = || self.project.listed.load(Ordering::SeqCst);
        let from = listed();
        until("it is looked again", async || listed() > from + count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_log_is_filled_once() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let lost = world.deploy(&gateway.id, &world.ids.next());
        let kept = world.deploy(&gateway.id, &world.ids.next());
        world.want(&[lost.clone(), kept.clone()]);
        world.append(vec![lost.clone(), kept]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let events = link.events(2).await;
        for event in &events {
            link.ack(event, None).await;
        }
        world.looks(2).await;
        world.execute("DELETE FROM gateway_events WHERE revision = 1").await;
        let again = link.event().await;
        assert_eq!(payload(&again)["deploymentId"], lost.deployment_id.as_str());
        assert_eq!(again.revision, 3, "nothing that should have been the same was touched");
        assert!(performed_at(&again) > performed_at(&events[0]));
        world.looks(2).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_lost_on_its_way_is_found_and_is_not_doubled_when_it_comes() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let coming = world.deploy(&gateway.id, &world.ids.next());
        *world.project.desired.lock().unwrap() =
            vec![DesiredDeployment { on_its_way: true, ..world.wants(&coming) }];
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.looks(2).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 0, "it comes by itself");
        world.want(std::slice::from_ref(&coming));
        let event = link.event().await;
        assert_eq!(payload(&event)["deploymentId"], coming.deployment_id.as_str());
        assert_eq!(payload(&event)["environment"], "production", "with the whole payload");
        world.append(vec![coming]).await;
        world.looks(2).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wanted_any_more_is_removed() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let apis: Vec<String> = (0..3).map(|_| world.ids.next()).collect();
        let deployed: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
        world.want(&deployed);
        world.append(deployed.clone()).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        for event in link.events(3).await {
            link.ack(&event, None).await;
        }
        let gone = world.event(&gateway.id, &apis[0], &deployed[0].deployment_id, "api.undeployed");
        world.want(&[gone.clone(), deployed[1].clone()]);
        let events = link.events(2).await;
        assert_eq!((events[0].r#type.as_str(), events[1].r#type.as_str()), ("api.undeployed", "api.deleted"));
        assert_eq!(payload(&events[0])["deploymentId"], gone.deployment_id.as_str());
        assert_eq!(payload(&events[1]), serde_json::json!({ "apiId": apis[2] }));
        world.looks(2).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 5, "each once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_says_something_else_after_the_event_gets_it_again() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let (first, second) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &api));
        world.append(vec![first.clone(), second]).await;
        // A backup of project-service brought the first one back.
        world.want(std::slice::from_ref(&first));
        let mut link = TestGateway::connect(&world, &token.token).await;
        let last = loop {
            let event = link.event().await;
            if event.revision == 3 {
                break event;
            }
        };
        assert_eq!(payload(&last)["deploymentId"], first.deployment_id.as_str());
        world.looks(2).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_that_go_on_meanwhile_are_not_doubled() {
    const COUNT: i64 = 30;
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let _link = TestGateway::connect(&world, &token.token).await;
        let api = world.ids.next();
        for _ in 0..COUNT {
            let event = world.deploy(&gateway.id, &api);
            // Without the sign that it is on its way: each look takes it for lost.
            world.want(std::slice::from_ref(&event));
            world.append(vec![event]).await;
        }
        world.looks(2).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, COUNT);
        assert_eq!(world.count("SELECT MAX(revision) FROM gateway_events").await, COUNT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_repair_one_log_once() {
    const COUNT: usize = 40;
    for mut world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let other = world.instance().await;
        world.turn_to(other.addr);
        let _second = TestGateway::connect(&world, &token.token).await;
        for round in 1..=3 {
            let events: Vec<_> = (0..COUNT).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
            let mut wanted = world.project.desired.lock().unwrap().clone();
            wanted.extend(events.iter().map(|event| world.wants(event)));
            *world.project.desired.lock().unwrap() = wanted;
            let mut got: Vec<u64> = link.events(COUNT).await.iter().map(|event| event.revision).collect();
            got.sort_unstable();
            got.dedup();
            assert_eq!(got.len(), COUNT, "round {round}");
            world.looks(4).await;
        }
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 3 * COUNT as i64);
        other.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_service_that_lost_its_data_wipes_no_gateway() {
    const COUNT: usize = 12;
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let events: Vec<_> = (0..COUNT).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.want(&events);
        world.append(events.clone()).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        for event in link.events(COUNT).await {
            link.ack(&event, None).await;
        }
        let all = COUNT as i64;
        for wanted in [0, 1] {
            world.want(&events[..wanted]);
            world.looks(4).await;
            assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, all, "{wanted} wanted");
        }
        // Also when it says so in so many words.
        let undeployed = |event: &NewEvent| NewEvent { r#type: "api.undeployed".into(), ..event.clone() };
        world.want(&events.iter().map(undeployed).collect::<Vec<_>>());
        world.looks(4).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, all);
        // Ten are not too many, and nobody's mistake twice in a row.
        world.want(&events[..2]);
        for event in link.events(10).await {
            assert_eq!(event.r#type, "api.deleted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_project_service_nothing_happens() {
    for world in hasty().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let event = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![event.clone()]).await;
        let lost = world.deploy(&gateway.id, &world.ids.next());
        world.project.set_down(true);
        world.want(&[event, lost.clone()]);
        let mut link = TestGateway::connect(&world, &token.token).await;
        let first = link.event().await;
        link.ack(&first, None).await;
        let failed = world.project.refusals.load(Ordering::SeqCst);
        until("it is asked in vain", async || world.project.refusals.load(Ordering::SeqCst) > failed + 2)
            .await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events").await, 1);
        world.project.set_down(false);
        assert_eq!(payload(&link.event().await)["deploymentId"], lost.deployment_id.as_str());
    }
}
