//! Capability 03: types of events, and transports.

use serde_json::json;
use suite::{
    controller::{Controller, Options},
    transport::{Answer, Transport},
};

use super::world::{ack, everywhere, next, open, send_event, worlds};
use crate::support::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn fr_010_several_types_of_events_reach_a_gateway() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let api = account.api("typed").await;
        let mut link = open(&gateway, transport).await;
        account.deploy(&api, &gateway.id).await.unwrap();
        let deployed = next(&mut *link).await;
        ack(&mut *link, &deployed, None).await;
        account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
        account.undeploy(&api, &gateway.id).await;
        let undeployed = next(&mut *link).await;
        ack(&mut *link, &undeployed, None).await;
        account.wait_for_status(&api, &gateway.id, "UNDEPLOYED").await;
        let payload = json!({"configType": "routing", "action": "reload"});
        assert_eq!(send_event(account, &gateway.id, "gateway.config.updated", payload.clone()).await, 202);
        let config = next(&mut *link).await;
        let kinds = [&deployed.kind, &undeployed.kind, &config.kind];
        assert_eq!(kinds, ["api.deployed", "api.undeployed", "gateway.config.updated"]);
        assert_eq!(config.payload, payload);
    })
    .await;
}

/// Operators name types that the platform has never heard of; the link carries them all the same.
#[tokio::test(flavor = "multi_thread")]
async fn fr_011_a_new_type_needs_no_change_of_the_core() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let mut link = open(&gateway, transport).await;
        for kind in ["custom.cache.flushed", "custom.x"] {
            let payload = json!({"region": "eu", "depth": 3, "tags": ["a", "b"]});
            assert_eq!(send_event(account, &gateway.id, kind, payload.clone()).await, 202);
            let event = next(&mut *link).await;
            assert_eq!((event.kind.as_str(), &event.payload), (kind, &payload));
        }
        for kind in ["cache.flushed", "custom.", "custom.UPPER", "api.deployed", ""] {
            assert_eq!(send_event(account, &gateway.id, kind, json!({})).await, 400, "{kind}");
        }
    })
    .await;
}

/// The same life of a deployment over every transport, with the same words at the end.
#[tokio::test(flavor = "multi_thread")]
async fn fr_012_delivery_does_not_depend_on_the_transport() {
    for world in worlds() {
        let account = world.account().await;
        let mut lives = Vec::new();
        for (transport, resumes_as) in [
            (Transport::WebSocket, None),
            (Transport::Grpc, None),
            (Transport::Sse, None),
            (Transport::Grpc, Some("one".to_owned())),
            (Transport::Sse, Some("one".to_owned())),
        ] {
            let gateway = account.gateway().await;
            let api = account.api(&format!("life-{}", lives.len())).await;
            let client = gateway.client.clone();
            let options = Options { transport, resumes_as, ..Options::default() };
            let running = Controller::spawn_as(options, move || client.clone());
            running.wait("connected", PATIENCE, |state| state.connected).await.unwrap();
            account.deploy(&api, &gateway.id).await.unwrap();
            account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
            account.undeploy(&api, &gateway.id).await;
            account.wait_for_status(&api, &gateway.id, "UNDEPLOYED").await;
            let state = running.stop().await;
            assert_eq!(state.faults, Vec::<String>::new(), "{}: {transport:?}", world.name);
            lives.push(state.performed.into_iter().map(|event| event.kind).collect::<Vec<_>>());
        }
        assert!(lives.iter().all(|life| *life == ["api.deployed", "api.undeployed"]), "{lives:?}");
    }
}

/// Three implementations side by side on one gateway; what is said on one of them counts for all.
#[tokio::test(flavor = "multi_thread")]
async fn fr_013_transports_are_pluggable() {
    for world in worlds() {
        let account = world.account().await;
        for answering in 0..3 {
            let gateway = account.gateway().await;
            let api = account.api(&format!("plugged-{answering}")).await;
            let mut links = Vec::new();
            for transport in [Transport::WebSocket, Transport::Grpc, Transport::Sse] {
                links.push(open(&gateway, transport).await);
            }
            let deployment = account.deploy(&api, &gateway.id).await.unwrap();
            let mut answer = None;
            for (at, link) in links.iter_mut().enumerate() {
                let event = next(&mut **link).await;
                assert_eq!(event.text("deploymentId"), deployment, "link {at}");
                answer = if at == answering { Some(event.answer("deploy", None)) } else { answer };
            }
            links[answering].send(Answer::Deployment(answer.unwrap())).await.unwrap();
            account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
        }
    }
}
