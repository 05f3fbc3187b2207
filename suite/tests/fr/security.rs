//! Capability 05: limits and encryption.

use std::time::Instant;

use serde_json::{Value, json};
use suite::{
    gateway::CONNECT_PATH,
    transport::{Greeting, LinkError, Transport},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::world::{ALL, everywhere, next, open, send_event, worlds};
use crate::support::{TestSuite, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn fr_020_there_is_a_limit_of_connections() {
    let table: toml::Table = gateway_service::DEFAULTS.parse().unwrap();
    assert_eq!(table["link"]["max_connections"].as_integer(), Some(1_000));
    let settings = "[gateway.link]\nmax_connections = 2\n";
    for suite in [TestSuite::configured(settings).await, TestSuite::on_postgres_configured(settings).await] {
        let account = suite.account().await;
        for transport in ALL {
            let gateway = account.gateway().await;
            let try_open = async || transport.open(&gateway.client, Greeting::default()).await;
            let first = wait_for("a place", async || try_open().await.ok()).await;
            let second = wait_for("a place", async || try_open().await.ok()).await;
            // A refusal that a controller takes for good would end it.
            match try_open().await {
                Err(LinkError::Refused { status, .. }) => assert!(matches!(status, 429 | 503), "{status}"),
                other => panic!("{transport:?}: {:?}", other.err()),
            }
            first.close().await;
            wait_for("the place is free", async || try_open().await.ok()).await.close().await;
            second.close().await;
        }
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_021_an_event_holds_at_most_a_mebibyte() {
    everywhere(async |_, account, transport| {
        let gateway = account.gateway().await;
        let mut link = open(&gateway, transport).await;
        let of = |size: usize| json!({"text": "x".repeat(size)});
        // What is around it takes 1 KiB at most.
        let most = 1023 * 1024 - of(0).to_string().len();
        assert_eq!(send_event(account, &gateway.id, "custom.large", of(most + 1)).await, 400);
        assert_eq!(send_event(account, &gateway.id, "custom.large", of(most)).await, 202);
        let event = next(&mut *link).await;
        assert_eq!(event.text("text").len(), most, "{transport:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_022_gateways_connect_over_tls_only() {
    for world in worlds() {
        let account = world.account().await;
        let gateway = account.gateway().await;
        let base = account.client.base();
        let address = (base.host_str().unwrap(), base.port().unwrap());
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {CONNECT_PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\napi-key: {}\r\n\r\n",
            gateway.token
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A TLS alert, or nothing; the connection ends either way.
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.windows(4).any(|part| part == b"HTTP"), "{}", String::from_utf8_lossy(&answer));
        // The same gateway is let in when it encrypts.
        open(&gateway, Transport::WebSocket).await.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_023_ten_attempts_to_connect_a_minute_come_from_one_address() {
    let table: toml::Table = edge_proxy::DEFAULTS.parse().unwrap();
    assert_eq!(table["limits"]["gateway_connects_per_minute"].as_integer(), Some(10));
    for transport in ALL {
        // The limits are the defaults for gateways.
        let settings = "[edge.limits]\ncredential_per_minute = 1000\n";
        let suites =
            [TestSuite::configured(settings).await, TestSuite::on_postgres_configured(settings).await];
        for suite in suites {
            let account = suite.account().await;
            let gateway = account.gateway().await;
            let (began, mut admitted) = (Instant::now(), 0);
            let refused = loop {
                match transport.open(&gateway.client, Greeting::default()).await {
                    Ok(link) => link.close().await,
                    Err(refused) => break refused,
                }
                admitted += 1;
            };
            // One comes back every six seconds, of which ten attempts may take some.
            let most = 10 + began.elapsed().as_secs() / 6;
            assert!((10..=most).contains(&admitted), "{admitted} within {:?}", began.elapsed());
            match refused {
                LinkError::Refused { status: 429, body } if transport == Transport::WebSocket => {
                    let body: Value = serde_json::from_str(&body).unwrap();
                    assert_eq!(
                        body,
                        json!({"status": "error", "code": "TOO_MANY_REQUESTS",
                            "message": "Connection rate limit exceeded. Please try again later."})
                    );
                }
                LinkError::Refused { status: 429, .. } => {}
                other => panic!("{transport:?}: {other:?}"),
            }
            suite.suite.shutdown().await;
        }
    }
}
