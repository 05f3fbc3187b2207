//! Restarts, orderly and not: nothing is lost, nothing changes places.

use std::collections::BTreeSet;

use proto::project::DeploymentStatus;

use crate::{
    gateway::{TestGateway, payload, performed_at},
    harness::{World, listeners, until, worlds},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_goes_on_counting() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        world
            .append(vec![world.deploy(&gateway.id, &world.ids.next()), world.deploy(&gateway.id, &api)])
            .await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let first = link.events(2).await;
        link.ack(&first[0], None).await;
        let acked = payload(&first[0])["deploymentId"].as_str().unwrap().to_owned();
        until("it is acknowledged", async || world.project.reported(&acked).len() == 2).await;
        world.end().await;
        assert_eq!(link.closed().await.code, 1012);

        world.begin().await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let again = link.event().await;
        assert_eq!(again.revision, 2);
        assert!(performed_at(&again) > performed_at(&first[1]));
        world.append(vec![world.deploy(&gateway.id, &api)]).await;
        let new = link.event().await;
        assert_eq!(new.revision, 3);
        assert!(performed_at(&new) > performed_at(&again), "also across restarts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_cannot_be_kept_ends_the_connection_and_all_comes_again() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let first = link.event().await;
        world.execute("ALTER TABLE gateway_events RENAME TO elsewhere").await;
        link.ack(&first, None).await;
        assert_eq!(link.frame().await, None, "the stream ends");
        world.execute("ALTER TABLE elsewhere RENAME TO gateway_events").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        assert_eq!(link.event().await.revision, first.revision);
    }
}

/// A service in a runtime of its own, which can be torn down in the middle of anything.
pub(crate) struct Doomed(Option<tokio::runtime::Runtime>);

impl Doomed {
    pub(crate) async fn start(world: &mut World) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = world.config();
        let start = async move {
            let running = gateway_service::start(config, listeners().await).await.unwrap();
            let addr = running.addr;
            std::mem::forget(running);
            addr
        };
        world.turn_to(runtime.spawn(start).await.unwrap());
        Self(Some(runtime))
    }

    pub(crate) fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_deployments_every_one_arrives() {
    const COUNT: usize = 200;
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.end().await;
        // Each of its own API: none makes another needless.
        let events: Vec<_> = (0..COUNT).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        let mut seen = BTreeSet::new();
        for round in 0..4 {
            let doomed = Doomed::start(&mut world).await;
            let mut link = TestGateway::connect(&world, &token.token).await;
            // The relay of project-service sends again what it is not sure of.
            let upto = COUNT * (round + 1) / 4;
            world.append(events[upto.saturating_sub(60)..upto].to_vec()).await;
            for _ in 0..20 {
                let event = link.event().await;
                seen.insert(event.revision);
                link.ack(&event, None).await;
            }
            doomed.kill();
        }
        world.begin().await;
        world.append(events.clone()).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let done = |deployment: &str| {
            let reports = world.project.reported(deployment);
            reports.iter().filter(|report| report.0 == i32::from(DeploymentStatus::Deployed)).count()
        };
        let mut last = 0;
        while last < COUNT as u64 {
            let event = link.event().await;
            assert!(event.revision > last, "in order");
            last = event.revision;
            seen.insert(last);
            link.ack(&event, None).await;
        }
        assert_eq!(seen, (1..=COUNT as u64).collect(), "every event has arrived");
        for event in &events {
            until("every deployment is acknowledged", async || done(&event.deployment_id) >= 1).await;
        }
    }
}
