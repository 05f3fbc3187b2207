//! Appending to the logs.

use proto::gateway::{AppendEventsRequest, NewEvent};
use tonic::Code;

use crate::{
    gateway::TestGateway,
    harness::{World, fields, worlds},
};

async fn refused(world: &World, events: Vec<NewEvent>) -> tonic::Status {
    world.delivery().append_events(AppendEventsRequest { events }).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_appended_once() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let events: Vec<NewEvent> = (0..3).map(|_| world.deploy(&gateway.id, &world.ids.next())).collect();
        world.append(events[..2].to_vec()).await;
        // The relay failed in the middle and sends everything again, with one more.
        world.append(events.clone()).await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let got = link.events(3).await;
        assert_eq!(got.iter().map(|event| event.revision).collect::<Vec<_>>(), [1, 2, 3]);
        link.only(&world, &gateway.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_unknown_gateways_are_reported_and_the_others_stay() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let known = world.deploy(&gateway.id, &world.ids.next());
        let unknown = world.deploy(&world.ids.next(), &world.ids.next());
        let nonsense = world.deploy("nobody", &world.ids.next());
        let answer = world.append(vec![unknown.clone(), known, nonsense.clone()]).await;
        assert_eq!(answer.unknown_gateway_event_ids, [unknown.id, nonsense.id]);
        let mut link = TestGateway::connect(&world, &token.token).await;
        assert_eq!(link.event().await.revision, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_broken_event_changes_nothing() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let good = world.deploy(&gateway.id, &world.ids.next());
        let renamed = world.event(&gateway.id, "a", &world.ids.next(), "api.renamed");
        let status = refused(&world, vec![good.clone(), renamed]).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(fields(&status), ["events[1].type"]);
        assert!(status.message().contains("api.renamed"), "{status}");
        let broken = NewEvent { payload_json: "{".into(), artifact_id: "\0".into(), ..good.clone() };
        let status = refused(&world, vec![good.clone(), broken]).await;
        assert_eq!(fields(&status), ["events[1].artifactId", "events[1].payloadJson"]);
        let mut link = TestGateway::connect(&world, &token.token).await;
        world.append(vec![good]).await;
        assert_eq!(link.event().await.revision, 1, "nothing of the refused batches is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_at_once_keep_one_order_for_each_gateway() {
    for world in worlds().await {
        let mut gateways = Vec::new();
        for name in ["edge-1", "edge-2", "edge-3"] {
            gateways.push(world.gateway(name).await);
        }
        let mut links = Vec::new();
        for (_, token) in &gateways {
            links.push(TestGateway::connect(&world, &token.token).await);
        }
        let mut appends = tokio::task::JoinSet::new();
        for at in 0..20 {
            // Each append names the gateways in another order: none waits for another in a circle.
            let events: Vec<NewEvent> =
                (0..3).map(|i| world.deploy(&gateways[(at + i) % 3].0.id, &world.ids.next())).collect();
            let mut delivery = world.delivery();
            appends.spawn(async move { delivery.append_events(AppendEventsRequest { events }).await });
        }
        while let Some(appended) = appends.join_next().await {
            appended.unwrap().unwrap();
        }
        for link in &mut links {
            let got = link.events(20).await;
            let revisions: Vec<u64> = got.iter().map(|event| event.revision).collect();
            assert_eq!(revisions, (1..=20).collect::<Vec<_>>());
        }
    }
}
