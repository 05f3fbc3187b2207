//! Resumable instances: where they go on, what they get, what they do not get again.

use proto::{gateway::Event, project::DeploymentStatus as Status};

use crate::{
    gateway::{TestGateway, payload, performed_at},
    harness::{World, until, worlds},
    instance::{Instance, answer, beating, frame_or_beat, snapshot},
};

fn revisions(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.revision).collect()
}

fn statuses(world: &World, deployment: &str) -> Vec<Status> {
    world.project.reported(deployment).into_iter().map(|(s, ..)| Status::try_from(s).unwrap()).collect()
}

/// Waits until everything that was answered so far is recorded.
async fn recorded(world: &World, deployment: &str, status: Status) {
    until("the answer is recorded", async || statuses(world, deployment).contains(&status)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_away_gets_the_newest_event_of_each_key_and_nothing_else() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let apis: Vec<String> = (0..4).map(|_| world.ids.next()).collect();
        let first: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
        world.append(first.clone()).await;
        for event in link.events(4).await {
            assert!(
                payload(&event)["performedAt"].is_string() && service_kit::id::is_id(&event.correlation_id)
            );
            instance.perform(&link, &event).await;
        }
        recorded(&world, &first[3].deployment_id, Status::Deployed).await;
        assert_eq!(statuses(&world, &first[3].deployment_id), [Status::Delivered, Status::Deployed]);
        drop(link);

        // Revisions 5 to 12: two APIs change several times, one is undeployed, one stays.
        let mut away = Vec::new();
        for _ in 0..3 {
            away.extend([world.deploy(&gateway.id, &apis[0]), world.deploy(&gateway.id, &apis[1])]);
        }
        away.push(world.event(&gateway.id, &apis[2], &first[2].deployment_id, "api.undeployed"));
        let mut alone = world.event(&gateway.id, "", "", "gateway.config.updated");
        alone.payload_json = r#"{"configType":"routing","action":"reload"}"#.into();
        away.push(alone);
        world.append(away.clone()).await;
        let mut link = instance.connect(&world).await;
        assert_eq!(link.connected.head_revision, 12);
        let got = link.events(4).await;
        assert_eq!(revisions(&got), [9, 10, 11, 12]);
        for event in &got {
            instance.perform(&link, event).await;
        }
        link.only(&world, &gateway.id).await;
        let newest = [&away[4], &away[5]];
        assert_eq!(instance.running[&apis[0]], newest[0].deployment_id);
        assert_eq!(instance.running.get(&apis[2]), None);
        for (deployment, status) in
            [(&newest[1].deployment_id, Status::Deployed), (&first[2].deployment_id, Status::Undeployed)]
        {
            recorded(&world, deployment, status).await;
        }
        // What nobody got before something newer came is not delivered to others either.
        drop(link);
        let mut plain = TestGateway::connect(&world, &token.token).await;
        assert_eq!(plain.event().await.revision, 13, "the marker, which nobody answered");
        plain.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_and_not_answered_comes_again() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let events: Vec<_> = (0..3).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events.clone()).await;
        let got = link.events(3).await;
        instance.perform(&link, &got[0]).await;
        recorded(&world, &events[0].deployment_id, Status::Deployed).await;
        // It gets the second, and dies before it does anything.
        drop(link);
        let mut link = instance.connect(&world).await;
        let again = link.events(2).await;
        assert_eq!(revisions(&again), [2, 3]);
        assert_ne!(again[0].correlation_id, got[1].correlation_id);
        assert_eq!(performed_at(&again[0]), performed_at(&got[1]), "the time of an event is one for all");
        instance.perform(&link, &again[0]).await;
        recorded(&world, &events[1].deployment_id, Status::Deployed).await;

        // The service restarts meanwhile.
        world.end().await;
        world.begin().await;
        let mut link = instance.connect(&world).await;
        assert_eq!(revisions(&link.events(1).await), [3]);
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_proves_by_its_hash_what_it_could_not_answer() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let events: Vec<_> = (0..2).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events.clone()).await;
        // It applies both, and the answers are lost.
        for event in link.events(2).await {
            instance.apply(&event);
        }
        drop(link);
        let mut link = instance.connect(&world).await;
        link.only(&world, &gateway.id).await;
        for event in &events {
            recorded(&world, &event.deployment_id, Status::Deployed).await;
        }
        drop(link);
        // Without a hash its word is not enough to call it done: it is asked again.
        let more = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![more.clone()]).await;
        instance.says_hash = false;
        instance.applied = 4;
        let mut link = instance.connect(&world).await;
        assert_eq!(revisions(&link.events(2).await), [3, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_comes_again_only_when_it_changes() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let good = world.deploy(&gateway.id, &api);
        world.append(vec![good.clone()]).await;
        let event = link.event().await;
        instance.perform(&link, &event).await;
        let bad = world.deploy(&gateway.id, &api);
        world.append(vec![bad.clone()]).await;
        let event = link.event().await;
        instance.refuses.insert(api.clone());
        instance.perform(&link, &event).await;
        recorded(&world, &bad.deployment_id, Status::Failed).await;
        let reason = world.project.reported(&bad.deployment_id).pop().unwrap().2;
        assert_eq!(reason, "BAD_ARTIFACT");
        drop(link);

        let mut link = instance.connect(&world).await;
        link.only(&world, &gateway.id).await;
        assert_eq!(instance.running[&api], good.deployment_id, "the last good one stays");
        drop(link);
        let better = world.deploy(&gateway.id, &api);
        world.append(vec![better.clone()]).await;
        instance.refuses.clear();
        let mut link = instance.connect(&world).await;
        let got = link.events(2).await;
        assert_eq!(revisions(&got), [3, 4], "the marker and the change");
        for event in &got {
            instance.perform(&link, event).await;
        }
        recorded(&world, &better.deployment_id, Status::Deployed).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_256_events_wait_for_answers() {
    for world in beating().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let events: Vec<_> = (0..300).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events.clone()).await;
        let got = link.events(256).await;
        // The next events are there for a plain connection, which marks them: the window holds.
        let mut plain = TestGateway::connect(&world, &token.token).await;
        plain.events(300).await;
        for _ in 0..3 {
            assert_eq!(frame_or_beat(&mut link).await, None, "more than 256 wait");
        }
        for event in &got {
            instance.perform(&link, event).await;
        }
        let rest = link.events(44).await;
        assert_eq!(revisions(&rest), (257..=300).collect::<Vec<_>>());
        for event in &rest {
            instance.perform(&link, event).await;
        }
        recorded(&world, &events[299].deployment_id, Status::Deployed).await;
        assert_eq!(instance.running.len(), 300);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_on_its_own_connection_with_its_own_nonce() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let before = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![before.clone()]).await;
        let event = link.event().await;
        instance.perform(&link, &event).await;
        recorded(&world, &before.deployment_id, Status::Deployed).await;
        let events: Vec<_> = (0..3).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events.clone()).await;
        let old = link.events(3).await;
        drop(link);
        let mut link = instance.connect(&world).await;
        let new = link.events(3).await;
        let mut wrong = new[0].clone();
        wrong.correlation_id = new[1].correlation_id.clone();
        for event in [&old[0], &wrong] {
            link.send(answer(event, "")).await;
        }
        // Out of order: for itself only.
        link.send(answer(&new[2], "")).await;
        recorded(&world, &events[2].deployment_id, Status::Deployed).await;
        assert_eq!(statuses(&world, &events[0].deployment_id), [Status::Delivered]);
        let applied = "SELECT applied_revision FROM gateway_instances";
        assert_eq!(world.count(applied).await, 1, "nothing before the third is answered");
        link.send(answer(&new[0], "")).await;
        link.send(answer(&new[1], "")).await;
        recorded(&world, &events[1].deployment_id, Status::Deployed).await;
        assert_eq!(world.count(applied).await, 4);
        // Twice is once.
        link.send(answer(&new[1], "TOO_LATE")).await;
        link.only(&world, &gateway.id).await;
        assert_eq!(statuses(&world, &events[1].deployment_id), [Status::Delivered, Status::Deployed]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_resumable_connections_are_served_side_by_side() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.begin(&world).await;
        let mut plain = TestGateway::connect(&world, &token.token).await;
        let events: Vec<_> = (0..5).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events.clone()).await;
        let (one, two) = (link.events(5).await, plain.events(5).await);
        assert_eq!((revisions(&one), revisions(&two)), (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]));
        // The first success counts for the gateway; the failure of the other one changes nothing there.
        plain.ack(&two[0], None).await;
        recorded(&world, &events[0].deployment_id, Status::Deployed).await;
        link.send(answer(&one[0], "BAD_ARTIFACT")).await;
        link.send(answer(&one[1], "BAD_ARTIFACT")).await;
        recorded(&world, &events[1].deployment_id, Status::Failed).await;
        plain.ack(&two[1], None).await;
        recorded(&world, &events[1].deployment_id, Status::Deployed).await;
        assert_eq!(statuses(&world, &events[0].deployment_id), [Status::Delivered, Status::Deployed]);
        assert_eq!(
            world.count("SELECT COUNT(*) FROM gateway_reported WHERE instance_id = 'i-1' AND rejected_revision > 0")
                .await,
            2
        );
        // What one has done is not sent again to the other kind when it comes anew.
        for event in &one[2..] {
            instance.perform(&link, event).await;
        }
        recorded(&world, &events[4].deployment_id, Status::Deployed).await;
        drop(plain);
        let mut plain = TestGateway::connect(&world, &token.token).await;
        plain.only(&world, &gateway.id).await;
        let mut other = Instance::new("i-2", &token.token).connect(&world).await;
        assert_eq!(snapshot(&mut other).await[0].events.len(), 6, "another instance needs it all");
    }
}
