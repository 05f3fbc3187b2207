//! Capability 04: what operators see.

use proto::time::Timestamp;
use serde_json::Value;
use suite::{
    gateway::GatewayClient,
    transport::{Greeting, LinkError},
};

use super::world::{ack, everywhere, list, next, open, wait_for_connections};
use crate::support::wait_for;

fn time(value: &Value) -> i64 {
    Timestamp::parse_rfc3339(value.as_str().unwrap_or_default()).expect("a time").unix_ms()
}

fn text(ms: i64) -> String {
    Timestamp::from_unix_ms(ms).to_rfc3339().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_015_connections_disconnections_and_refusals_are_logged() {
    everywhere(async |world, account, transport| {
        let gateway = account.gateway().await;
        let link = open(&gateway, transport).await;
        let id = link.welcome().connection_id.clone();
        world.logged(&["gateway connected", &id, &gateway.id]).await;
        link.close().await;
        world.logged(&["gateway disconnected", &id, &gateway.id]).await;
        let tokens = format!("/api/v1/gateways/{}/tokens/{}", gateway.id, gateway.token_id);
        account.client.delete(&tokens).await.unwrap().expect(204).unwrap();
        let stranger = GatewayClient::new(&world.client(), &gateway.token);
        let length = world.log_length();
        wait_for("401", async || match transport.open(&stranger, Greeting::default()).await {
            Err(LinkError::Refused { status: 401, .. }) => Some(()),
            _ => None,
        })
        .await;
        world.logged_after(length, &["gateway refused", "revoked"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_016_every_delivery_attempt_is_logged_with_its_outcome() {
    everywhere(async |world, account, transport| {
        let gateway = account.gateway().await;
        let (good, bad) = (account.api("good").await, account.api("bad").await);
        let mut link = open(&gateway, transport).await;
        for (api, error) in [(&good, None), (&bad, Some("GATEWAY_PROCESSING_ERROR"))] {
            let deployment = account.deploy(api, &gateway.id).await.unwrap();
            let event = next(&mut *link).await;
            world.logged(&["event sent", &gateway.id, &event.correlation_id]).await;
            ack(&mut *link, &event, error).await;
            let outcome = error.unwrap_or("deployment acknowledged");
            world.logged(&[outcome, &gateway.id, &deployment]).await;
        }
        account.wait_for_status(&good, &gateway.id, "DEPLOYED").await;
        account.wait_for_status(&bad, &gateway.id, "FAILED").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_017_administrators_list_the_connected_gateways_of_their_organization() {
    everywhere(async |world, account, transport| {
        let (one, two, away) = (account.gateway().await, account.gateway().await, account.gateway().await);
        let links = [open(&one, transport).await, open(&two, transport).await];
        let all = "/api/v1/gateways/connections";
        let listed =
            wait_for("both", async || Some(list(account, all).await).filter(|all| all.len() == 2)).await;
        for (link, gateway) in links.iter().zip([&one, &two]) {
            let found = listed.iter().find(|entry| entry["id"] == link.welcome().connection_id.as_str());
            assert_eq!(found.unwrap()["gatewayId"], gateway.id.as_str());
        }
        assert!(listed.iter().all(|entry| entry["gatewayId"] != away.id.as_str()), "{listed:?}");
        let stranger = world.account().await;
        assert_eq!(list(&stranger, all).await, Vec::<Value>::new());
        let path = format!("/api/v1/gateways/{}/connections", one.id);
        stranger.client.get(&path).await.unwrap().expect(404).unwrap();
        world.client().get(all).await.unwrap().expect(401).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_018_a_connection_says_whose_it_is_since_when_and_how_it_is() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let link = open(&gateway, transport).await;
        let entry = wait_for_connections(account, &gateway.id, 1).await.remove(0);
        assert_eq!(
            (&entry["gatewayId"], &entry["health"]),
            (&gateway.id.as_str().into(), &"connected".into())
        );
        let (connected, heard) = (time(&entry["connectedAt"]), time(&entry["lastHeartbeat"]));
        assert!(
            connected <= heard && connected >= time(&link.welcome().timestamp.as_str().into()),
            "{entry}"
        );
        let stats = account.client.get("/api/internal/v1/stats").await.unwrap().expect(200).unwrap();
        let connections = &stats["gatewayConnections"];
        assert_eq!(connections["totalActive"], 1, "{stats}");
        let entry = &connections["connections"][0];
        assert_eq!(entry["connectionId"], link.welcome().connection_id.as_str());
        assert_eq!((&entry["gatewayId"], &entry["status"]), (&gateway.id.into(), &"connected".into()));
        time(&entry["connectedAt"]);
        time(&entry["lastHeartbeat"]);
        assert_eq!(stats["eventDelivery"]["failedDeliveries"].to_string().trim_matches('"'), "0", "{stats}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_019_failed_deliveries_are_listed_by_time() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let api = account.api("refused").await;
        let mut link = open(&gateway, transport).await;
        account.deploy(&api, &gateway.id).await.unwrap();
        let event = next(&mut *link).await;
        ack(&mut *link, &event, Some("GATEWAY_PROCESSING_ERROR")).await;
        account.wait_for_status(&api, &gateway.id, "FAILED").await;
        let all = "/api/v1/gateways/failed-deliveries";
        let failed = wait_for("it", async || list(account, all).await.pop()).await;
        assert_eq!(
            (&failed["reason"], &failed["artifactId"]),
            (&"GATEWAY_PROCESSING_ERROR".into(), &api.as_str().into())
        );
        assert_eq!(failed["gatewayId"], gateway.id.as_str());
        let at = time(&failed["failedAt"]);
        let hour = 3_600_000;
        for (from, to, found) in [(at - hour, at + hour, 1), (at - hour, at - 1, 0), (at + 1, at + hour, 0)] {
            let path = format!("{all}?from={}&to={}", text(from), text(to));
            assert_eq!(list(account, &path).await.len(), found, "{path}");
            let path = format!(
                "/api/v1/gateways/{}/failed-deliveries?from={}&to={}",
                gateway.id,
                text(from),
                text(to)
            );
            assert_eq!(list(account, &path).await.len(), found, "{path}");
        }
        let path = format!("{all}?from={}&to={}", text(at + hour), text(at));
        account.client.get(&path).await.unwrap().expect(400).unwrap();
    })
    .await;
}
