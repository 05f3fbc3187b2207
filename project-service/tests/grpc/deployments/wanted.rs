//! What gateway-service compares its logs with.

use std::collections::HashMap;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_wanted_state_is_told_with_the_event_that_was_sent() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let gateway = world.gateway(true);
        let (pets, shop, gone) = (world.api("pets").await, world.api("shop").await, world.api("gone").await);
        let named = DeploymentTarget { vhost: "pets.test".to_owned(), ..to(&gateway) };
        world.deploy(&pets, "", vec![to(&gateway)]).await.unwrap();
        world.deploy(&pets, "", vec![named]).await.unwrap();
        world.deploy(&shop, "", vec![to(&gateway)]).await.unwrap();
        for api in [&shop, &gone] {
            world.deploy(api, "", vec![to(&gateway)]).await.unwrap();
            world.undeploy(api, "", vec![to(&gateway)]).await.unwrap();
        }
        let last = world.api("last").await;
        world.deploy(&last, "", vec![to(&gateway)]).await.unwrap();
        let delete = DeleteApiRequest { api_id: gone.clone() };
        world.owner.apis(&world.service).delete_api(delete).await.unwrap();

        let sent = world.gateways.events(9).await;
        let newest: HashMap<&str, &NewEvent> =
            sent.iter().map(|event| (event.artifact_id.as_str(), event)).collect();
        let desired = world.desired(&gateway).await;
        let apis: Vec<&str> = desired.iter().map(|one| one.api_id.as_str()).collect();
        assert_eq!(apis, [&*pets, &*shop, &*last], "what is deleted is not told any more");
        for one in &desired {
            let event = newest[one.api_id.as_str()];
            assert_eq!((&one.event_type, &one.payload_json), (&event.r#type, &event.payload_json));
            assert_eq!((&one.event_id, &one.deployment_id), (&event.id, &event.deployment_id));
            assert_eq!(one.deployed, one.event_type == "api.deployed");
        }
        assert_eq!(payload(newest[&*last])["vhost"], "default.test");
        assert_eq!(payload(newest[&*shop])["vhost"], "");
        let event = newest[&*gone];
        let derived = service_kit::id::derived(&["api.deleted", &gone, &gateway]);
        assert_eq!((event.r#type.as_str(), &event.id), ("api.deleted", &derived));
        let ids: std::collections::HashSet<&String> = sent.iter().map(|event| &event.id).collect();
        assert_eq!(ids.len(), sent.len(), "each event has an id of its own");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_on_its_way_until_it_has_been_delivered() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        world.gateways.fail(usize::MAX);
        world.deploy(&api, "", vec![to(&gateway)]).await.unwrap();
        assert!(world.desired(&gateway).await[0].on_its_way);
        world.gateways.fail(0);
        let left = async {
            while world.desired(&gateway).await[0].on_its_way {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), left).await.expect("the event leaves");
        assert_eq!(world.gateways.events(1).await.len(), 1);
    })
    .await;
}
