//! Snapshots: who gets one, what is in it, what an answer to it means.

use std::collections::BTreeMap;

use proto::{gateway::gateway_frame::Frame as From, project::DeploymentStatus as Status};

use crate::{
    gateway::payload,
    harness::{World, until, worlds},
    instance::{Instance, answer, answer_all, contents, snapshot},
};

async fn recorded(world: &World, deployment: &str, status: Status) {
    until("the answer is recorded", async || {
        world.project.reported(deployment).last().is_some_and(|report| report.0 == i32::from(status))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_gets_what_is_to_run_in_parts_and_then_what_comes_after() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let apis: Vec<String> = (0..250).map(|_| world.ids.next()).collect();
        let mut wanted = BTreeMap::new();
        for _ in 0..2 {
            let events: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
            wanted.extend(events.iter().map(|e| (e.artifact_id.clone(), e.deployment_id.clone())));
            world.append(events).await;
        }
        let (gone, deleted) = (&apis[7], &apis[8]);
        let removed = [wanted.remove(gone).unwrap(), wanted.remove(deleted).unwrap()];
        let mut delete = world.event(&gateway.id, deleted, "", "api.deleted");
        delete.payload_json = format!(r#"{{"apiId":"{deleted}"}}"#);
        world.append(vec![world.event(&gateway.id, gone, &removed[0], "api.undeployed"), delete]).await;

        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.connect(&world).await;
        let parts = snapshot(&mut link).await;
        assert_eq!(parts.iter().map(|part| part.events.len()).collect::<Vec<_>>(), [100, 100, 48]);
        assert_eq!(parts.iter().filter(|part| part.last).count(), 1);
        assert_eq!((parts[0].revision, contents(&parts)), (502, wanted.clone()));
        // What comes meanwhile comes after it.
        let after = world.deploy(&gateway.id, &apis[0]);
        world.append(vec![after.clone()]).await;
        instance.apply_all(&link, &parts).await;
        let event = link.event().await;
        assert_eq!(event.revision, 503);
        instance.perform(&link, &event).await;
        wanted.insert(apis[0].clone(), after.deployment_id.clone());
        assert_eq!(instance.running, wanted);
        recorded(&world, &after.deployment_id, Status::Deployed).await;
        recorded(&world, &removed[0], Status::Undeployed).await;
        recorded(&world, &wanted[&apis[249]], Status::Deployed).await;
        let open = "SELECT COUNT(*) FROM gateway_events WHERE state IN ('pending', 'delivered')";
        assert_eq!(world.count(open).await, 0, "who has the whole state has done everything");
        link.send(instance.beat()).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_make_parts_of_at_most_one_mebibyte() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let filler = "x".repeat(300_000);
        for at in 0..7 {
            let mut event = world.event(&gateway.id, "", "", "gateway.config.updated");
            event.payload_json = format!(r#"{{"configType":"part-{at}","action":"update","x":"{filler}"}}"#);
            world.append(vec![event]).await;
        }
        let mut link = Instance::new("i-1", &token.token).connect(&world).await;
        let parts = snapshot(&mut link).await;
        assert_eq!(parts.iter().map(|part| part.events.len()).collect::<Vec<_>>(), [3, 3, 1]);
    }
}

/// An instance that runs two APIs, as it says and as is believed; it is away.
async fn settled(world: &World, gateway_id: &str, token: &str) -> Instance {
    let mut instance = Instance::new("i-1", token);
    let mut link = instance.begin(world).await;
    let events: Vec<_> = (0..2).map(|_| world.deploy(gateway_id, &world.ids.next())).collect();
    world.append(events.clone()).await;
    for event in link.events(2).await {
        instance.perform(&link, &event).await;
    }
    recorded(world, &events[1].deployment_id, Status::Deployed).await;
    instance
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_go_on_gets_the_whole_state() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = settled(&world, &gateway.id, &token.token).await;
        let wanted = instance.running.clone();
        // It goes on as long as it may.
        let mut link = instance.connect(&world).await;
        link.only(&world, &gateway.id).await;
        drop(link);

        // It runs something else than it should.
        let stranger = world.ids.next();
        instance.running.insert(stranger, world.ids.next());
        let mut link = instance.connect(&world).await;
        let parts = snapshot(&mut link).await;
        assert_eq!(parts[0].events.len(), 3, "with the marker");
        instance.apply_all(&link, &parts).await;
        assert!(wanted.iter().all(|entry| instance.running.get(entry.0) == Some(entry.1)));
        assert_eq!(instance.running.len(), 3);
        drop(link);

        // It comes from the future.
        instance.applied = 1_000;
        let mut link = instance.connect(&world).await;
        let parts = snapshot(&mut link).await;
        assert_eq!(parts[0].revision, 3);
        instance.apply_all(&link, &parts).await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let event = link.event().await;
        instance.perform(&link, &event).await;
        until("it is recorded", async || {
            world.count("SELECT applied_revision FROM gateway_instances").await == 4
        })
        .await;
        drop(link);

        // What it has not seen is gone from the log.
        world.execute("UPDATE gateways SET floor = 5, head = 5").await;
        let mut link = instance.connect(&world).await;
        assert_eq!(snapshot(&mut link).await[0].revision, 5);
        drop(link);

        // Nothing is known of this one.
        let mut other = Instance::new("i-2", &token.token);
        (other.applied, other.says_hash) = (5, false);
        let mut link = other.connect(&world).await;
        assert_eq!(snapshot(&mut link).await[0].events.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_on_a_living_link_is_mended_once_a_minute() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = settled(&world, &gateway.id, &token.token).await;
        let mut link = instance.connect(&world).await;
        link.send(instance.beat()).await;
        link.only(&world, &gateway.id).await;
        drop(link);
        let mut link = instance.connect(&world).await;
        let event = link.event().await;
        instance.perform(&link, &event).await;
        let wanted = instance.running.clone();

        let lost = instance.running.pop_first().unwrap();
        link.send(instance.beat()).await;
        let parts = snapshot(&mut link).await;
        assert_eq!(contents(&parts), wanted);
        instance.apply_all(&link, &parts).await;
        assert_eq!(instance.running[&lost.0], lost.1);
        // Again within the minute: it waits. The event afterwards shows that the sign of life was seen.
        instance.running.pop_first();
        link.send(instance.beat()).await;
        let next = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![next.clone()]).await;
        let event = link.event().await;
        assert_eq!(payload(&event)["deploymentId"], next.deployment_id.as_str());
        instance.perform(&link, &event).await;
        recorded(&world, &next.deployment_id, Status::Deployed).await;
        link.send(instance.beat()).await;
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_replaces_what_was_reported_and_refusals_stay_refused() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let apis: Vec<String> = (0..3).map(|_| world.ids.next()).collect();
        let events: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
        world.append(events.clone()).await;
        let mut instance = Instance::new("i-1", &token.token);
        instance.refuses.insert(apis[1].clone());
        let mut link = instance.begin(&world).await;
        recorded(&world, &events[1].deployment_id, Status::Failed).await;
        recorded(&world, &events[2].deployment_id, Status::Deployed).await;
        let rows = "SELECT COUNT(*) FROM gateway_reported WHERE instance_id = 'i-1' AND deployment_id <> ''";
        until("it is recorded", async || world.count(rows).await == 2).await;
        // It says what is believed: there is no drift.
        link.send(instance.beat()).await;
        link.only(&world, &gateway.id).await;
        drop(link);
        let mut link = instance.connect(&world).await;
        assert_eq!(link.event().await.revision, 4, "the marker only");
        drop(link);

        // Another snapshot leaves out what it has refused without running any other.
        instance.running.clear();
        let mut link = instance.connect(&world).await;
        let parts = snapshot(&mut link).await;
        let marker = payload(&parts[0].events[2])["apiId"].as_str().unwrap().to_owned();
        assert_eq!(
            contents(&parts).keys().cloned().collect::<Vec<_>>(),
            [apis[0].clone(), apis[2].clone(), marker]
        );
        instance.apply_all(&link, &parts).await;
        until("it is recorded", async || world.count(rows).await == 3).await;
        drop(link);
        // One that begins anew gets everything again.
        instance.refuses.clear();
        (instance.applied, instance.running) = (0, BTreeMap::new());
        let link = instance.begin(&world).await;
        assert_eq!(instance.running.len(), 4);
        recorded(&world, &events[1].deployment_id, Status::Deployed).await;
        drop(link);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_or_unanswered_snapshot_changes_nothing() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut link = instance.connect(&world).await;
        let parts = snapshot(&mut link).await;
        drop(link);
        let mut link = instance.connect(&world).await;
        let again = snapshot(&mut link).await;
        assert_ne!(again[0].nonce, parts[0].nonce);
        // The answer to the one before counts for nothing.
        link.send(answer_all(&parts[0], "")).await;
        link.send(answer(&again[0].events[0], "")).await;
        link.send(answer_all(&again[0], "NO_SPACE")).await;
        let next = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![next.clone()]).await;
        let event = link.event().await;
        assert_eq!(event.revision, 2, "what comes after it comes all the same");
        instance.perform(&link, &event).await;
        recorded(&world, &next.deployment_id, Status::Deployed).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_reported").await, 1);
        assert_eq!(world.count("SELECT COUNT(*) FROM gateway_events WHERE state = 'acked'").await, 1);
        let failed = "SELECT COUNT(*) FROM failed_deliveries
             WHERE type = 'snapshot' AND reason = 'NO_SPACE' AND revision = 1 AND instance_id = 'i-1'";
        assert_eq!(world.count(failed).await, 1);
        // It runs the second only: its next sign of life tells, and it gets the whole.
        link.send(From::Heartbeat(proto::gateway::Heartbeat { revision: 2, state_hash: "0".repeat(64) }))
            .await;
        let parts = snapshot(&mut link).await;
        instance.apply_all(&link, &parts).await;
        assert_eq!(instance.running.len(), 2);
        link.only(&world, &gateway.id).await;
    }
}
