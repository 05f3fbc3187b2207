//! Capability 02: events reach the gateways that they are for.

use std::collections::BTreeSet;

use suite::{
    controller::{Controller, Options},
    transport::Transport,
};

use super::world::{everywhere, list, next, open, worlds};
use crate::support::{PATIENCE, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn fr_007_a_deployment_is_told_to_every_connection_of_its_gateway_and_to_no_other() {
    for world in worlds() {
        let account = world.account().await;
        let (target, other) = (account.gateway().await, account.gateway().await);
        let (api, elsewhere) = (account.api("here").await, account.api("elsewhere").await);
        let mut links = [open(&target, Transport::WebSocket).await, open(&target, Transport::Grpc).await];
        let mut outside = [open(&other, Transport::WebSocket).await, open(&other, Transport::Grpc).await];
        let deployment = account.deploy(&api, &target.id).await.unwrap();
        for link in &mut links {
            let event = next(&mut **link).await;
            assert_eq!((event.kind.as_str(), event.text("deploymentId")), ("api.deployed", &*deployment));
        }
        // What the other gateway hears first is its own.
        account.deploy(&elsewhere, &other.id).await.unwrap();
        for link in &mut outside {
            assert_eq!(next(&mut **link).await.text("apiId"), elsewhere);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_008_a_deployment_event_names_the_revision_and_does_not_hold_it() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let api = account.api("named").await;
        let mut link = open(&gateway, transport).await;
        let deployment = account.deploy(&api, &gateway.id).await.unwrap();
        let event = next(&mut *link).await;
        let known = account.deployments(&api).await.remove(0);
        assert_eq!((event.text("apiId"), event.text("deploymentId")), (&*api, &*deployment));
        assert_eq!(event.text("revisionId"), known["revisionId"].as_str().unwrap());
        assert_eq!(event.text("vhost"), "api.example.com");
        let members: BTreeSet<&str> = event.payload.as_object().unwrap().keys().map(String::as_str).collect();
        let known = ["apiId", "deploymentId", "environment", "performedAt", "revisionId", "vhost"];
        assert_eq!(members, BTreeSet::from(known), "{event:?}");
        // Who wants the definition fetches it.
        let artifact = gateway.client.fetch_api(&api).await.unwrap();
        assert_eq!(artifact["spec"]["context"].as_str(), Some("/named"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_009_what_cannot_be_delivered_is_recorded_logged_and_kept() {
    everywhere(async |world, account, transport| {
        let gateway = account.gateway().await;
        let api = account.api("missed").await;
        let deployment = account.deploy(&api, &gateway.id).await.unwrap();
        let path = format!("/api/v1/gateways/{}/failed-deliveries", gateway.id);
        let failed = wait_for("a failed delivery", async || list(account, &path).await.pop()).await;
        assert_eq!(failed["reason"], "NOT_CONNECTED", "{failed}");
        assert_eq!(
            (&failed["eventType"], &failed["gatewayId"]),
            (&"api.deployed".into(), &gateway.id.as_str().into())
        );
        assert_eq!(failed["deploymentId"], deployment.as_str());
        world.logged(&["not connected", &gateway.id]).await;
        let mut link = open(&gateway, transport).await;
        assert_eq!(next(&mut *link).await.text("deploymentId"), deployment);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_014_events_reach_a_gateway_in_the_order_in_which_they_happened() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let mut wanted = Vec::new();
        for number in 0..6 {
            wanted.push(account.api(&format!("order-{number}")).await);
        }
        // While it is away, and while it is there.
        for api in &wanted {
            account.deploy(api, &gateway.id).await.unwrap();
        }
        let client = gateway.client.clone();
        let running =
            Controller::spawn_as(Options { transport, ..Options::default() }, move || client.clone());
        running.wait("deployed", PATIENCE, |state| state.performed.len() == 6).await.unwrap();
        for api in &wanted {
            account.undeploy(api, &gateway.id).await;
        }
        let state = running.wait("undeployed", PATIENCE, |state| state.performed.len() == 12).await.unwrap();
        let got: Vec<_> = state.performed.iter().map(|event| (&*event.kind, &*event.api_id)).collect();
        let kinds = ["api.deployed", "api.undeployed"];
        let asked: Vec<_> =
            kinds.iter().flat_map(|kind| wanted.iter().map(|api| (*kind, api.as_str()))).collect();
        assert_eq!(got, asked, "{transport:?}");
        assert!(state.performed.is_sorted_by(|one, other| {
            transport == Transport::WebSocket || one.revision < other.revision
        }));
        let state = running.stop().await;
        assert_eq!((state.faults, state.stale), (Vec::new(), 0));
    })
    .await;
}
