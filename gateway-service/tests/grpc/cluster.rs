//! Several instances of the service on one database, with a Redis between them.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use proto::gateway::{DeleteGatewayRequest, Hello, RevokeTokenRequest, gateway_frame::Frame as From};
use serde_json::Value;
use service_kit::{
    Clock,
    bus::{self, Bus, Received, Subscription},
    server::Running,
    shutdown::Tasks,
    testing::{TestDatabase, TestRedis},
};
use tonic::Code;

use crate::{
    gateway::{TestGateway, hello, payload, performed_at},
    harness::{ADMIN, PATIENCE, World, quick, reason, until, worlds},
    restart::Doomed,
};

/// So long that nothing is found by looking: what arrives was hinted at.
pub(crate) const NEVER_MS: u64 = 600_000;

/// Two instances on one database of each kind; nothing is found but by hints over Redis.
async fn pairs(mut change: impl FnMut(&mut gateway_service::LinkConfig)) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for database in TestDatabase::both() {
        let redis = TestRedis::start();
        let mut link = quick();
        link.poll_ms = NEVER_MS;
        // Nor is an instance taken for dead because the machine was busy with something else.
        link.node_timeout_ms = NEVER_MS;
        change(&mut link);
        let mut world = World::start(database, link).await;
        world.end().await;
        world.bus = redis.config();
        let (one, two) = (world.instance().await, world.instance().await);
        world.turn_to(one.addr);
        let (bus, tasks) = listener(&redis);
        pairs.push(Pair { world, one, two, redis, bus, _tasks: tasks });
    }
    pairs
}

struct Pair {
    world: World,
    one: Running,
    two: Running,
    redis: TestRedis,
    bus: Arc<dyn Bus>,
    _tasks: Tasks,
}

impl Pair {
    fn at_one(&mut self) -> &World {
        self.world.turn_to(self.one.addr);
        &self.world
    }

    fn at_two(&mut self) -> &World {
        self.world.turn_to(self.two.addr);
        &self.world
    }

    /// What the web hears of the organization from now on.
    async fn web(&self) -> Web {
        let mut heard = self.bus.subscribe(&format!("org.{}.", self.world.organization)).await.unwrap();
        assert_eq!(heard.next().await, Received::Lost, "now it is heard");
        Web { heard, known: BTreeSet::new() }
    }
}

/// Somebody else on the bus.
fn listener(redis: &TestRedis) -> (Arc<dyn Bus>, Tasks) {
    let tasks = Tasks::new();
    (bus::connect(&redis.config(), &tasks).unwrap(), tasks)
}

/// What a web client hears.
struct Web {
    heard: Subscription,
    known: BTreeSet<String>,
}

impl Web {
    /// The next event that is not known, under the part of its subject after the organization's id.
    async fn next(&mut self) -> (String, Value) {
        loop {
            match tokio::time::timeout(PATIENCE, self.heard.next()).await.expect("an event in time") {
                Received::Message(message) => {
                    let subject = message.subject.splitn(3, '.').last().unwrap().to_owned();
                    let event: Value = serde_json::from_slice(&message.payload).unwrap();
                    if self.known.insert(event["id"].as_str().unwrap().to_owned()) {
                        return (subject, event);
                    }
                }
                Received::Lost => {}
                Received::Closed => panic!("the bus is gone"),
            }
        }
    }
}

fn instance(id: &str) -> From {
    From::Hello(Hello { instance_id: id.into(), ..Hello::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_appended_at_one_instance_reaches_a_gateway_of_another_at_once() {
    for mut pair in pairs(|_| {}).await {
        let (gateway, token) = pair.at_two().gateway("edge-1").await;
        let mut link = TestGateway::connect(pair.at_one(), &token.token).await;
        // Its hint may come before the subscription does.
        let first = pair.world.deploy(&gateway.id, &pair.world.ids.next());
        pair.at_one().append(vec![first]).await;
        link.event().await;
        let world = pair.at_two();
        assert!(world.is_active(&gateway.id).await, "every instance knows");
        for _ in 0..10 {
            let deploy = world.deploy(&gateway.id, &world.ids.next());
            let deployment = deploy.deployment_id.clone();
            world.append(vec![deploy]).await;
            assert_eq!(payload(&link.event().await)["deploymentId"], deployment.as_str());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bus_everything_is_found_by_looking() {
    for mut pair in pairs(|link| link.poll_ms = 100).await {
        pair.redis.stop();
        let (gateway, token) = pair.at_two().gateway("edge-1").await;
        let mut link = TestGateway::connect(pair.at_one(), &token.token).await;
        let deploy = pair.world.deploy(&gateway.id, &pair.world.ids.next());
        pair.at_two().append(vec![deploy]).await;
        link.event().await;
        let world = pair.at_two();
        let request =
            world.by(ADMIN, RevokeTokenRequest { gateway_id: gateway.id.clone(), token_id: token.id });
        world.registry().revoke_token(request).await.unwrap();
        assert_eq!(link.closed().await.code, 4401);
        let empty = "SELECT COUNT(*) FROM outbox WHERE topic = 'web'";
        until("what the bus does not take is dropped", async || world.count(empty).await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_an_instance_that_dies_are_forgotten() {
    for mut pair in pairs(|link| link.node_timeout_ms = 6_000).await {
        let (gateway, token) = pair.at_two().gateway("edge-1").await;
        let mut web = pair.web().await;
        let doomed = Doomed::start(&mut pair.world).await;
        let link = TestGateway::connect(&pair.world, &token.token).await;
        let (subject, event) = web.next().await;
        assert_eq!((subject.as_str(), &event["liveConnections"]), ("gateway.connected", &1.into()));
        assert_eq!(event["connectionId"], link.connected.connection_id.as_str());
        doomed.kill();
        let world = pair.at_two();
        assert!(world.is_active(&gateway.id).await, "nobody can know yet");
        until("the dead instance is noticed", async || !world.is_active(&gateway.id).await).await;
        let (subject, event) = web.next().await;
        assert_eq!((subject.as_str(), &event["liveConnections"]), ("gateway.disconnected", &0.into()));
        assert_eq!(event["connectionId"], link.connected.connection_id.as_str());
        let nodes = "SELECT COUNT(*) FROM link_nodes";
        until("it is buried", async || world.count(nodes).await == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_taken_for_dead_sends_its_gateways_away_and_goes_on() {
    for mut world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        for how in ["UPDATE link_nodes SET beat = -1", "DELETE FROM link_nodes"] {
            let mut link = TestGateway::connect(&world, &token.token).await;
            world.execute(how).await;
            let close = link.closed().await;
            assert_eq!(close.code, 1012, "{close:?}");
            let mut link = connect_patiently(&world, &token.token).await;
            world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
            let event = link.event().await;
            link.ack(&event, None).await;
            let open = "SELECT COUNT(*) FROM gateway_events WHERE state <> 'acked'";
            until("its acknowledgement counts", async || world.count(open).await == 0).await;
        }
        world.end().await;
    }
}

/// Connects; an instance that enters again refuses for a moment.
async fn connect_patiently(world: &World, token: &str) -> TestGateway {
    let mut admitted = None;
    until("a gateway is admitted", async || {
        admitted = TestGateway::try_connect(world, token, hello()).await.ok();
        admitted.is_some()
    })
    .await;
    admitted.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_or_a_gateway_deleted_elsewhere_closes_connections_here() {
    for mut pair in pairs(|_| {}).await {
        let (gateway, token) = pair.at_two().gateway("edge-1").await;
        let other = pair.at_two().rotate(&gateway.id).await.unwrap();
        let mut revoked = TestGateway::connect(pair.at_one(), &token.token).await;
        let mut deleted = TestGateway::connect(pair.at_one(), &other.token).await;
        let world = pair.at_two();
        let by_admin = RevokeTokenRequest { gateway_id: gateway.id.clone(), token_id: token.id };
        world.registry().revoke_token(world.by(ADMIN, by_admin)).await.unwrap();
        assert_eq!(revoked.closed().await.code, 4401);
        let request = DeleteGatewayRequest { gateway_id: gateway.id };
        world.registry().delete_gateway(world.by(ADMIN, request)).await.unwrap();
        assert_eq!(deleted.closed().await.code, 4404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_an_instance_replaces_the_older_one_wherever_it_is() {
    for mut pair in pairs(|_| {}).await {
        let (gateway, token) = pair.at_one().gateway("edge-1").await;
        let mut web = pair.web().await;
        let mut older = TestGateway::try_connect(pair.at_one(), &token.token, instance("i")).await.unwrap();
        let mut twin = TestGateway::try_connect(pair.at_one(), &token.token, instance("j")).await.unwrap();
        let newer = TestGateway::try_connect(pair.at_two(), &token.token, instance("i")).await.unwrap();
        assert_eq!(older.closed().await.code, 4409);
        assert!(newer.connected.epoch > older.connected.epoch);
        twin.only(&pair.world, &gateway.id).await;
        let seen = async {
            let mut live = Vec::new();
            for _ in 0..4 {
                let (subject, event) = web.next().await;
                live.push((subject, event["liveConnections"].as_i64().unwrap()));
            }
            live
        };
        let expected = [("connected", 1), ("connected", 2), ("disconnected", 1), ("connected", 2)];
        let expected: Vec<_> = expected.map(|(what, live)| (format!("gateway.{what}"), live)).into();
        assert_eq!(seen.await, expected);

        drop(newer);
        assert_eq!(web.next().await.0, "gateway.disconnected");
        let deploy = pair.world.deploy(&gateway.id, &pair.world.ids.next());
        pair.at_two().append(vec![deploy.clone()]).await;
        let event = twin.event().await;
        twin.ack(&event, Some("GATEWAY_PROCESSING_ERROR")).await;
        let (subject, state) = web.next().await;
        assert_eq!(subject, "deployment.state");
        assert_eq!(
            (&state["gatewayId"], &state["deploymentId"], &state["state"], &state["reason"]),
            (
                &gateway.id.into(),
                &deploy.deployment_id.into(),
                &"failed".into(),
                &"GATEWAY_PROCESSING_ERROR".into()
            )
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_has_no_more_connections_than_it_may_over_all_instances() {
    const MOST: usize = 3;
    for mut pair in pairs(|link| link.max_connections_per_organization = MOST as u32).await {
        let mut tokens = Vec::new();
        for at in 0..10 {
            tokens.push(pair.at_one().gateway(&format!("edge-{at}")).await.1.token);
        }
        let addresses = [pair.one.addr, pair.two.addr];
        let mut attempts = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            pair.world.turn_to(addresses[at % 2]);
            let upstream = pair.world.upstream("edge-proxy");
            attempts.push(TestGateway::try_connect_to(upstream, token, hello()));
        }
        let (admitted, refused): (Vec<_>, Vec<_>) =
            join_all(attempts).await.into_iter().partition(Result::is_ok);
        assert_eq!((admitted.len(), refused.len()), (MOST, tokens.len() - MOST));
        for refusal in refused.into_iter().filter_map(Result::err) {
            assert_eq!(
                (refusal.code(), reason(&refusal).as_str()),
                (Code::ResourceExhausted, "CONNECTION_LIMIT")
            );
            assert!(service_kit::Error::from(refusal).retry_delay().is_some());
        }
        drop(admitted);
        connect_patiently(pair.at_two(), &tokens[0]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_counts_its_connections_right_when_they_end() {
    let mut link = quick();
    link.max_connections = 2;
    let world = World::start(TestDatabase::sqlite(), link).await;
    let (_, token) = world.gateway("edge-1").await;
    for _ in 0..3 {
        let (one, two) =
            (connect_patiently(&world, &token.token).await, connect_patiently(&world, &token.token).await);
        let refused = TestGateway::try_connect(&world, &token.token, hello()).await.err().unwrap();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::ResourceExhausted, "CONNECTION_LIMIT")
        );
        drop((one, two));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_by_minutes_change_no_order() {
    const FIVE_MINUTES_MS: i64 = 5 * 60 * 1_000;
    for database in TestDatabase::both() {
        // Clocks are the only reason for which anybody could be taken for dead here.
        let link = gateway_service::LinkConfig { node_timeout_ms: NEVER_MS, ..quick() };
        let mut world = World::start(database, link).await;
        let (gateway, token) = world.gateway("edge-1").await;
        let api = world.ids.next();
        let now = Clock::system().now_ms();
        let ahead = world.instance_at(Clock::fixed(now + FIVE_MINUTES_MS)).await;
        let behind = world.instance_at(Clock::fixed(now - FIVE_MINUTES_MS)).await;
        let addresses = [ahead.addr, behind.addr];
        let (mut performed, mut revisions) = (Vec::new(), BTreeSet::new());
        for round in 0..6 {
            // Appended at one, delivered by the other, and again: unacknowledged it comes with a newer time.
            world.turn_to(addresses[round % 2]);
            world.append(vec![world.deploy(&gateway.id, &api)]).await;
            for address in [addresses[(round + 1) % 2], addresses[round % 2]] {
                world.turn_to(address);
                let mut link = TestGateway::connect(&world, &token.token).await;
                let event = link.event().await;
                performed.push(performed_at(&event));
                revisions.insert(event.revision);
                if address == addresses[round % 2] {
                    link.ack(&event, None).await;
                    let open = "SELECT COUNT(*) FROM gateway_events WHERE state <> 'acked'";
                    until("it is recorded", async || world.count(open).await == 0).await;
                }
            }
        }
        assert!(performed.is_sorted_by(|a, b| a < b), "{performed:?}");
        assert_eq!(revisions, (1..=6).collect());
        let nodes = "SELECT COUNT(*) FROM link_nodes WHERE beat >= 0";
        assert_eq!(world.count(nodes).await, 3, "nobody takes anybody for dead");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_in_order_leaves_nothing_behind() {
    for mut world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        let other = world.instance().await;
        world.end().await;
        assert_eq!(link.closed().await.code, 1012);
        assert_eq!(world.count("SELECT COUNT(*) FROM link_nodes").await, 1);
        assert_eq!(world.count("SELECT COUNT(*) FROM connections").await, 0);
        other.shutdown().await;
        assert_eq!(world.count("SELECT COUNT(*) FROM link_nodes").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_connection_is_can_be_read_in_the_database() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let mut link = TestGateway::connect(&world, &token.token).await;
        link.only(&world, &gateway.id).await;
        link.only(&world, &gateway.id).await;
        link.heartbeat().await;
        let noted = "SELECT COUNT(*) FROM connections WHERE sent_revision = 2 AND heard_at > connected_at";
        until("it is noted", async || world.count(noted).await == 1).await;
    }
}
