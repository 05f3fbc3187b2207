//! The gateway's side: what a controller of the wire contract sees.

use std::time::Duration;

use proto::time::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use suite::{
    controller::{Controller, Options, Store, Tempo, operations},
    gateway::{CONNECT_PATH, Frame, GatewayClient, GatewayLink, LinkError},
    transport::{Greeting, Transport},
};
use tokio::time::timeout;

use crate::support::{Account, PATIENCE, TestSuite, wait_for};

/// Within this time a link is closed once its token or gateway is gone.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_gateway_gets_everything_in_order_on_connecting() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let mut wanted = Vec::new();
    for name in ["one", "two", "three"] {
        let api = account.api(name).await;
        let deployment = account.deploy(&api, &gateway.id).await.unwrap();
        assert_eq!(account.deployments(&api).await[0]["status"], "PENDING");
        wanted.push((api, deployment));
    }
    let running = gateway.run();
    let state = running.wait("three events", PATIENCE, |state| state.performed.len() == 3).await.unwrap();
    let got: Vec<_> = state.performed.into_iter().map(|event| (event.api_id, event.deployment_id)).collect();
    assert_eq!(got, wanted);
    for (api, _) in &wanted {
        account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
    }

    // Acknowledged is done: connecting again brings nothing.
    running.stop().await;
    let again = gateway.run();
    again.wait("connected again", PATIENCE, |state| state.connected).await.unwrap();
    let api = account.api("four").await;
    account.deploy(&api, &gateway.id).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    let state = again.stop().await;
    let apis: Vec<_> = state.performed.iter().map(|event| event.api_id.as_str()).collect();
    assert_eq!(apis, [api.as_str()], "{state:?}");
    assert!(state.faults.is_empty(), "{state:?}");
    suite.suite.shutdown().await;
}

/// A controller that starts takes the list of what it is to run beside the events. What the list brought
/// it does not acknowledge, so the event must still count for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_takes_the_list_first_still_acknowledges() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let mut apis = Vec::new();
    for name in ["one", "two", "three"] {
        let api = account.api(name).await;
        account.deploy(&api, &gateway.id).await.unwrap();
        apis.push(api);
    }
    let store = Store::default();
    for start in 1..=2 {
        let client = gateway.client.clone();
        let options = Options { list_first: true, store: store.clone(), ..Options::default() };
        let running = Controller::spawn_as(options, move || client.clone());
        for api in &apis {
            account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
        }
        running.wait("all three", PATIENCE, |state| state.held.len() == 3).await.unwrap();
        let list = gateway.client.deployments().await.unwrap();
        let state = running.stop().await;
        assert!(state.faults.is_empty() && state.stale == 0, "start {start}: {state:?}");
        assert_eq!(state.performed.len(), if start == 1 { 3 } else { 0 }, "start {start}: {state:?}");
        // Equal to the millisecond, or it would be fetched again at each start.
        for entry in list["deployments"].as_array().unwrap() {
            let at = Timestamp::parse_rfc3339(entry["deployedAt"].as_str().unwrap()).unwrap().unix_ms();
            assert_eq!(
                state.held[entry["artifactId"].as_str().unwrap()].performed_at_ms,
                at,
                "start {start}"
            );
        }
    }
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_comes_again_newer_and_under_another_id() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let api = account.api("again").await;
    let mut link = gateway.client.connect().await.unwrap();
    let deployment = account.deploy(&api, &gateway.id).await.unwrap();
    let first = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DELIVERED").await;
    drop(link);

    let mut link = gateway.client.connect().await.unwrap();
    let second = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    assert_eq!((first.text("deploymentId"), second.text("deploymentId")), (&*deployment, &*deployment));
    assert_ne!(first.correlation_id, second.correlation_id);
    assert!(second.text("performedAt") > first.text("performedAt"), "{first:?} {second:?}");
    // A seed's gateway reads these; each sending is complete.
    for name in ["revisionId", "vhost", "environment"] {
        assert!(!second.text(name).is_empty(), "{name} is missing in {second:?}");
    }

    // A failure is kept with its reason.
    link.ack(&second, "deploy", Some("GATEWAY_PROCESSING_ERROR")).await.unwrap();
    let state = account.wait_for_status(&api, &gateway.id, "FAILED").await;
    assert!(state["statusReason"].as_str().unwrap().contains("GATEWAY_PROCESSING_ERROR"), "{state}");
    assert_eq!((&state["failedGatewayCount"], &state["deployedGatewayCount"]), (&json!(1), &json!(0)));

    // Nonsense from a gateway changes nothing and costs it nothing.
    for text in ["", "{", "[]", "{\"type\":\"unknown\"}", "{\"type\":\"deployment.ack\",\"payload\":7}"] {
        link.send_text(text.to_owned()).await.unwrap();
    }
    account.deploy(&api, &gateway.id).await.unwrap();
    let third = link.expect_event("api.deployed", PATIENCE).await.unwrap();
    link.ack(&third, "deploy", None).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_right_before_the_goodbye_counts() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    for round in 0..10 {
        let mut apis = Vec::new();
        for number in 0..5 {
            let api = account.api(&format!("last-words-{round}-{number}")).await;
            account.deploy(&api, &gateway.id).await.unwrap();
            apis.push(api);
        }
        let mut link = gateway.client.connect().await.unwrap();
        let mut events = Vec::new();
        for _ in &apis {
            events.push(link.expect_event("api.deployed", PATIENCE).await.unwrap());
        }
        for event in &events {
            link.ack(event, "deploy", None).await.unwrap();
        }
        link.close().await;
        // It does not come back to say it again.
        for api in &apis {
            account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
        }
    }
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_on_a_deleted_gateway_does_not_run_any_more() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let account = suite.account().await;
        let gateway = account.gateway().await;
        let (running, waiting) = (account.api("running").await, account.api("waiting").await);
        account.deploy(&running, &gateway.id).await.unwrap();
        let controller = gateway.run();
        account.wait_for_status(&running, &gateway.id, "DEPLOYED").await;
        controller.stop().await;
        account.deploy(&waiting, &gateway.id).await.unwrap();
        let path = format!("/api/v1/gateways/{}", gateway.id);
        account.client.delete(&path).await.unwrap().expect(204).unwrap();
        for api in [&running, &waiting] {
            let state = account.wait_for_status(api, &gateway.id, "FAILED").await;
            assert_eq!(state["statusReason"], "GATEWAY_DELETED");
            assert_eq!((&state["deployedGatewayCount"], &state["liveGatewayCount"]), (&json!(0), &json!(0)));
            account.client.delete(&format!("/api/v1/apis/{api}")).await.unwrap().expect(204).unwrap();
        }
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_fetches_what_it_is_to_run_and_nothing_else() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let (gateway, other) = (account.gateway().await, account.gateway().await);
    let (api, elsewhere) = (account.api("here").await, account.api("elsewhere").await);
    let deployment = account.deploy(&api, &gateway.id).await.unwrap();
    let hidden = account.deploy(&elsewhere, &other.id).await.unwrap();

    let artifact = gateway.client.fetch_api(&api).await.unwrap();
    assert_eq!((artifact["kind"].as_str(), operations(&artifact)), (Some("RestApi"), 2));
    assert_eq!(artifact["spec"]["context"].as_str(), Some("/here"));
    let path = format!("/api/internal/v1/apis/{elsewhere}");
    let refused = gateway.client.call_for(Method::GET, &path, "application/zip", None).await.unwrap();
    let problem = refused.expect(404).unwrap();
    for name in ["code", "message", "description"] {
        assert!(problem.get(name).is_some(), "{name} is missing in {problem}");
    }
    assert_eq!(problem["code"], 404);

    let batch = gateway.client.fetch_batch(&[deployment.clone(), hidden]).await.unwrap();
    assert_eq!(batch.len(), 1, "{batch:?}");
    assert_eq!((&batch[0].0, operations(&batch[0].1)), (&deployment, 2));

    let list = gateway.client.deployments().await.unwrap();
    let entry = &list["deployments"][0];
    assert_eq!(list["deployments"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!((&entry["artifactId"], &entry["deploymentId"]), (&json!(api), &json!(deployment)));
    assert_eq!((&entry["kind"], &entry["state"]), (&json!("RestApi"), &json!("DEPLOYED")));

    let body = json!({"artifactIds": [api, "0198f0c5-0000-7000-8000-000000000000"]});
    let path = "/api/internal/v1/artifacts/exists";
    let exist = gateway.client.call(Method::POST, path, Some(&body)).await.unwrap().expect(200).unwrap();
    let found: Vec<_> = exist["artifacts"].as_array().unwrap().iter().map(|one| &one["exists"]).collect();
    assert_eq!(found, [&json!(true), &json!(false)]);
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_token_opens_a_link() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let mut forged = gateway.token.clone();
    forged.truncate(gateway.token.len() - 1);
    let mut answers = Vec::new();
    for token in [forged.as_str(), "x", account.client.token().unwrap()] {
        match GatewayClient::new(&suite.client, token).connect().await {
            Err(LinkError::Refused { status: 401, body }) => answers.push(body),
            other => panic!("{token}: {other:?}"),
        }
    }
    let body: Value = serde_json::from_str(&answers[0]).unwrap();
    assert_eq!(
        body,
        json!({"status": "error", "code": "UNAUTHORIZED", "message": "Invalid or expired credentials."})
    );
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // The other HTTPS calls too.
    let stranger = GatewayClient::new(&suite.client, "x");
    let refused = stranger.call(Method::GET, "/api/internal/v1/deployments", None).await;
    assert_eq!(refused.unwrap().expect(401).unwrap()["code"], 401);
    // A plain GET of the socket's path is no upgrade; a controller's probe must find nothing.
    let plain = gateway.client.call(Method::GET, CONNECT_PATH, None).await.unwrap();
    assert!((400..500).contains(&plain.status), "{}", plain.status);
    suite.client.get("/internal/gateway/.well-known").await.unwrap().expect(404).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_ends_with_its_token_and_with_its_gateway() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let tokens = format!("/api/v1/gateways/{}/tokens", gateway.id);
    let second = account.client.post(&tokens, &json!({})).await.unwrap().expect(201).unwrap();
    let second = GatewayClient::new(&suite.client, second["token"].as_str().unwrap());
    let (mut first_link, mut second_link) =
        (gateway.client.connect().await.unwrap(), second.connect().await.unwrap());
    assert_ne!(first_link.connection_id, second_link.connection_id);

    let revoked = account.client.delete(&format!("{tokens}/{}", gateway.token_id)).await.unwrap();
    revoked.expect(204).unwrap();
    assert_eq!(close_code(&mut first_link).await, 4401);
    assert!(matches!(gateway.client.connect().await, Err(LinkError::Refused { status: 401, .. })));
    // The other token's link lives on.
    let api = account.api("alive").await;
    account.deploy(&api, &gateway.id).await.unwrap();
    let event = second_link.expect_event("api.deployed", PATIENCE).await.unwrap();
    second_link.ack(&event, "deploy", None).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "DEPLOYED").await;
    account.undeploy(&api, &gateway.id).await;
    let event = second_link.expect_event("api.undeployed", PATIENCE).await.unwrap();
    second_link.ack(&event, "undeploy", None).await.unwrap();
    account.wait_for_status(&api, &gateway.id, "UNDEPLOYED").await;

    let gone = account.client.delete(&format!("/api/v1/gateways/{}", gateway.id)).await.unwrap();
    gone.expect(204).unwrap();
    assert_eq!(close_code(&mut second_link).await, 4404);
    suite.suite.shutdown().await;
}

async fn close_code(link: &mut GatewayLink) -> u16 {
    let closed = timeout(CLOSE_PATIENCE, async {
        loop {
            if let Frame::Closed(close) = link.next().await.unwrap() {
                return close.expect("a close with a code").0;
            }
        }
    });
    closed.await.expect("closed within 5 s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suite_that_drains_closes_its_links_with_1012() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let gateway = account.gateway().await;
    let running = gateway.run();
    running.wait("connected", PATIENCE, |state| state.connected).await.unwrap();
    let TestSuite { suite, folder, .. } = suite;
    suite.shutdown().await;
    let state = running.wait("closed", PATIENCE, |state| state.connects == 1 && !state.connected).await;
    assert_eq!(state.unwrap().last_close, Some(1012));
    running.stop().await;
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_rotations_at_once_leave_two_tokens() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let account = suite.account().await;
        let gateway = account.gateway().await;
        rotate_at_once(&account, &gateway.id).await;
        suite.suite.shutdown().await;
    }
}

async fn rotate_at_once(account: &Account, gateway: &str) {
    let path = format!("/api/v1/gateways/{gateway}/tokens");
    let rotations: Vec<_> = (0..20)
        .map(|_| {
            let (client, path) = (account.client.clone(), path.clone());
            tokio::spawn(async move { client.post(&path, &json!({})).await.unwrap() })
        })
        .collect();
    for rotation in rotations {
        let reply = rotation.await.unwrap();
        assert!(matches!(reply.status, 201 | 409), "{}: {}", reply.status, reply.text());
    }
    let active = wait_for("tokens", async || {
        let list = account.client.get(&path).await.unwrap().expect(200).unwrap();
        let active = list["list"].as_array()?.iter().filter(|token| token["status"] == "active").count();
        (active > 0).then_some(active)
    });
    assert!(active.await <= 2);
}

/// That its link lives is no proof that a gateway has read an event which nothing answers.
#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_answers_comes_until_a_gateway_has_read_it() {
    let settings = "[gateway.link]\nheartbeat_ms = 400\n[edge.gateway_link]\nping_seconds = 1\n";
    let suite = TestSuite::configured(settings).await;
    let account = suite.account().await;
    for transport in [Transport::WebSocket, Transport::Grpc, Transport::Sse] {
        let gateway = account.gateway().await;
        let send = async |kind: &str| {
            let path = format!("/api/v1/gateways/{}/events", gateway.id);
            let body = json!({"type": kind, "payload": {}});
            account.client.post(&path, &body).await.unwrap().expect(202).unwrap();
        };
        send("custom.once").await;
        // The process dies with the event in its hands.
        let mut link = transport.open(&gateway.client, Greeting::default()).await.unwrap();
        while !matches!(link.next().await.unwrap(), Frame::Event(_)) {}
        drop(link);

        let client = gateway.client.clone();
        let tempo = Tempo { heartbeat: Duration::from_millis(400), ..Tempo::hasty() };
        let options = Options { transport, tempo, ..Options::default() };
        let running = Controller::spawn_as(options, move || client.clone());
        running.wait("the event again", PATIENCE, |state| state.noted.len() == 1).await.unwrap();
        wait_for("the proof", async || {
            let path = format!("/api/v1/gateways/{}/connections", gateway.id);
            let list = account.client.get(&path).await.unwrap().expect(200).unwrap();
            let lags = list["list"].as_array().unwrap().iter().map(|entry| entry["lag"] == "0");
            lags.reduce(|all, done| all && done).unwrap_or(false).then_some(())
        })
        .await;
        running.cut();
        running.wait("another link", PATIENCE, |state| state.connects == 2).await.unwrap();
        send("custom.next").await;
        let state = running.wait("the next", PATIENCE, |state| state.noted.len() > 1).await.unwrap();
        let kinds: Vec<_> = state.noted.iter().map(|noted| noted.kind.as_str()).collect();
        assert_eq!(kinds, ["custom.once", "custom.next"], "{transport:?}");
        running.stop().await;
    }
    suite.suite.shutdown().await;
}
