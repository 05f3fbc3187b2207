//! Capability 01: connections.

use std::time::Duration;

use proto::time::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use suite::{
    controller::{Controller, Options, Tempo},
    gateway::{CONNECT_PATH, GatewayClient},
    transport::{Greeting, LinkError, Transport},
};

use super::world::{ALL, connections, everywhere, is_active, next, open, wait_for_connections, worlds};
use crate::support::{Account, TestSuite, wait_for};

/// The endpoint is at this path, over TLS; it upgrades to WebSocket and does nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn fr_001_the_websocket_endpoint_is_where_the_contract_says() {
    assert_eq!(CONNECT_PATH, "/api/internal/v1/ws/gateways/connect");
    for world in worlds() {
        let account = world.account().await;
        assert_eq!(account.client.base().scheme(), "https");
        let gateway = account.gateway().await;
        let link = gateway.client.connect().await.unwrap();
        assert_eq!(link.gateway_id, gateway.id, "{}", world.name);
        let plain = gateway.client.call(Method::GET, CONNECT_PATH, None).await.unwrap();
        assert_eq!(plain.status, 426, "{}", plain.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_002_only_a_gateway_with_a_good_token_is_let_in() {
    everywhere(async |world, account, transport| {
        let gateway = account.gateway().await;
        let mut forged = gateway.token.clone();
        forged.truncate(gateway.token.len() - 1);
        let tokens = format!("/api/v1/gateways/{}/tokens", gateway.id);
        let revoked = account.client.post(&tokens, &json!({})).await.unwrap().expect(201).unwrap();
        let revoked_id = revoked["id"].as_str().unwrap();
        account.client.delete(&format!("{tokens}/{revoked_id}")).await.unwrap().expect(204).unwrap();
        let revoked = revoked["token"].as_str().unwrap();
        for token in [forged.as_str(), "x", account.client.token().unwrap(), revoked] {
            let stranger = GatewayClient::new(&world.client(), token);
            // A revoked token is refused as soon as the instance has heard of it.
            wait_for("401", async || match transport.open(&stranger, Greeting::default()).await {
                Err(LinkError::Refused { status: 401, body }) => Some(body),
                Err(other) => panic!("{transport:?}: {other:?}"),
                Ok(_) => None,
            })
            .await;
        }
        assert_eq!(connections(account, &gateway.id).await, Vec::<Value>::new());
        let link = open(&gateway, transport).await;
        assert_eq!(link.welcome().gateway_id, gateway.id);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_003_the_registry_holds_several_connections_of_one_gateway() {
    for world in worlds() {
        let account = world.account().await;
        let (gateway, other) = (account.gateway().await, account.gateway().await);
        let mut links = Vec::new();
        for transport in [Transport::WebSocket, Transport::Grpc, Transport::WebSocket] {
            links.push(open(&gateway, transport).await);
        }
        let listed = wait_for_connections(&account, &gateway.id, 3).await;
        for link in &links {
            assert!(
                listed.iter().any(|one| one["id"] == link.welcome().connection_id.as_str()),
                "{listed:?}"
            );
        }
        assert_eq!(connections(&account, &other.id).await, Vec::<Value>::new());
        // One that leaves takes nobody along.
        let gone = links.remove(1);
        let gone_id = gone.welcome().connection_id.clone();
        gone.close().await;
        let listed = wait_for_connections(&account, &gateway.id, 2).await;
        assert!(listed.iter().all(|one| one["id"] != gone_id.as_str()), "{listed:?}");
        assert!(is_active(&account, &gateway.id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_004_a_connection_is_stored_with_its_gateway() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        assert!(!is_active(account, &gateway.id).await);
        let link = open(&gateway, transport).await;
        let listed = wait_for_connections(account, &gateway.id, 1).await;
        assert_eq!(listed[0]["id"], link.welcome().connection_id.as_str());
        assert_eq!(listed[0]["gatewayId"], gateway.id.as_str());
        assert_eq!(listed[0]["transport"], transport.name());
        assert!(is_active(account, &gateway.id).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_005_a_connection_that_ends_leaves_the_registry_and_a_line_in_the_log() {
    everywhere(async |world, account, transport| {
        let gateway = account.gateway().await;
        let link = open(&gateway, transport).await;
        wait_for_connections(account, &gateway.id, 1).await;
        let id = link.welcome().connection_id.clone();
        link.close().await;
        wait_for_connections(account, &gateway.id, 0).await;
        wait_for("inactive", async || (!is_active(account, &gateway.id).await).then_some(())).await;
        world.logged(&["gateway disconnected", &id, &gateway.id]).await;
    })
    .await;
}

/// The defaults find a dead peer within 30 seconds; with shorter times the same happens sooner, and who is alive stays.
#[tokio::test(flavor = "multi_thread")]
async fn fr_006_a_peer_that_died_silently_is_removed_within_thirty_seconds() {
    let number = |text: &str, section: &str, key: &str| {
        let table: toml::Table = text.parse().unwrap();
        table[section][key].as_integer().unwrap()
    };
    assert_eq!(number(gateway_service::DEFAULTS, "link", "silence_ms"), 30_000);
    assert_eq!(number(gateway_service::DEFAULTS, "link", "heartbeat_ms"), 20_000);
    assert_eq!(number(edge_proxy::DEFAULTS, "gateway_link", "dead_seconds"), 30);
    assert_eq!(number(edge_proxy::DEFAULTS, "gateway_link", "ping_seconds"), 20);

    let settings = "[gateway.link]\nheartbeat_ms = 400\nsilence_ms = 1500\n\
        [edge.gateway_link]\nping_seconds = 1\ndead_seconds = 2\n";
    for suite in [TestSuite::configured(settings).await, TestSuite::on_postgres_configured(settings).await] {
        let account = suite.account().await;
        for transport in ALL {
            a_silent_peer_goes(&account, transport).await;
        }
        suite.suite.shutdown().await;
    }
}

async fn a_silent_peer_goes(account: &Account, transport: Transport) {
    let (dead, alive) = (account.gateway().await, account.gateway().await);
    let client = alive.client.clone();
    let tempo = Tempo { heartbeat: Duration::from_millis(400), ..Tempo::hasty() };
    let running =
        Controller::spawn_as(Options { transport, tempo, ..Options::default() }, move || client.clone());
    // Its socket stays open, and nobody reads it or says anything on it.
    let silent = open(&dead, transport).await;
    wait_for_connections(account, &dead.id, 1).await;
    wait_for_connections(account, &alive.id, 1).await;
    wait_for_connections(account, &dead.id, 0).await;
    wait_for("inactive", async || (!is_active(account, &dead.id).await).then_some(())).await;
    let state = running.stop().await;
    assert_eq!((state.connects, state.faults), (1, Vec::new()), "{transport:?}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_024_the_first_frame_acknowledges_the_connection() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let api = account.api("waiting").await;
        // Something to do waits already: it comes second.
        account.deploy(&api, &gateway.id).await.unwrap();
        let mut link = open(&gateway, transport).await;
        let welcome = link.welcome().clone();
        assert_eq!(welcome.gateway_id, gateway.id);
        assert!(service_kit::id::is_id(&welcome.connection_id), "{welcome:?}");
        let at = Timestamp::parse_rfc3339(&welcome.timestamp).expect("a time").unix_ms();
        assert!(at > 1_700_000_000_000, "{welcome:?}");
        assert_eq!(next(&mut *link).await.kind, "api.deployed");
    })
    .await;
}
