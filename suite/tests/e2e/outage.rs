//! What the edge answers while a service is gone, with every service as a process of its own.

use std::time::{Duration, Instant};

use serde_json::Value;
use suite::client::{Client, Reply};

use crate::support::{Account, PATIENCE, Services, wait_for};

const EDGE: &[&str] = &[
    "limits.address_per_minute=0",
    "limits.user_per_minute=0",
    "limits.token_per_minute=0",
    "limits.credential_per_minute=1000000",
    "limits.sign_up_per_hour=1000000",
];

/// A read that was answered from what is kept although it is too old.
fn is_stale(reply: &Reply) -> bool {
    reply.header("cache-status").ends_with("; detail=stale-if-error")
}

/// Asks until the answer is too old and marked: before that it is fresh, and then good once more.
async fn stale(client: &Client, path: &str) -> Value {
    let began = Instant::now();
    loop {
        let reply = client.get(path).await.unwrap();
        let answer = reply.expect(200).unwrap();
        if is_stale(&reply) {
            assert!(reply.header("age").parse::<u64>().unwrap() >= 10, "{:?}", reply.headers);
            return answer;
        }
        assert!(reply.header("cache-status").starts_with("edge; hit"), "{:?}", reply.headers);
        assert!(began.elapsed() < 2 * PATIENCE, "what is too old is marked: {:?}", reply.headers);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing, and when to come back.
fn unavailable(reply: &Reply) {
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(reply.header("retry-after"), "1", "{:?}", reply.headers);
    assert!(!reply.header("cache-status").contains("stored"), "{:?}", reply.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_service_is_down_reads_are_stale_and_marked_and_nobody_gets_anothers() {
    service_kit::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let mut services = Services::start(folder.path()).await;
    let mut edge = services.edge("edge", EDGE);
    edge.start();
    edge.ready().await;
    let anybody = Client::new(&edge.url(), &services.trust()).unwrap();
    let (ada, bob) = (Account::new(&anybody).await, Account::new(&anybody).await);
    let (api, other) = (ada.api("read-before").await, ada.api("never-read").await);
    let read = format!("/api/v1/apis/{api}");
    let lists = "/api/v1/projects";
    let known: Value = ada.client.get(&read).await.unwrap().expect(200).unwrap();
    let of_ada = ada.client.get(lists).await.unwrap().expect(200).unwrap();
    let of_bob = bob.client.get(lists).await.unwrap().expect(200).unwrap();
    assert_ne!(of_ada, of_bob);

    services.project.kill();
    let unread = format!("/api/v1/apis/{other}");
    unavailable(&ada.client.get(&unread).await.unwrap());
    unavailable(&bob.client.get(&read).await.unwrap());
    // Nobody gets what another has read, nor what nobody has.
    for (user, path, answer) in
        [(&ada, read.as_str(), &known), (&ada, lists, &of_ada), (&bob, lists, &of_bob)]
    {
        assert_eq!(&stale(&user.client, path).await, answer, "{path}");
    }
    unavailable(&bob.client.get(&read).await.unwrap());
    unavailable(&ada.client.get(&unread).await.unwrap());
    assert_eq!(anybody.get(&read).await.unwrap().status, 401);
    // What changes something is refused too, and the caller told when to come back.
    unavailable(&ada.client.delete(&unread).await.unwrap());
    // Nor does a balancer take the edge out: the other services go on, and so do kept answers.
    assert_eq!(edge.admin("/readyz").await, "{\"status\":\"ready\"}");
    assert!(edge.admin("/upstreams").await.contains("project-service"));

    services.project.start();
    services.project.ready().await;
    let back = Instant::now();
    let recovered = wait_for("project-service is back", async || {
        let reply = bob.client.get(&format!("/api/v1/projects/{}", bob.project)).await.unwrap();
        match reply.status {
            200 => Some(back.elapsed()),
            _ => {
                unavailable(&reply);
                None
            }
        }
    })
    .await;
    assert!(recovered < Duration::from_secs(1), "{recovered:?}");
    let reply = ada.client.get(&read).await.unwrap();
    assert_eq!((reply.expect(200).unwrap(), is_stale(&reply)), (known, false), "{:?}", reply.headers);
    bob.client.get(&read).await.unwrap().expect(404).unwrap();
    ada.client.get(&unread).await.unwrap().expect(200).unwrap();
}
