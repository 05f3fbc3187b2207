//! Instances of one gateway: who they may be, that each has a progress of its own, that the newest connection
//! of each is the one that counts.

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use proto::{
    gateway::{EventAck, Hello, gateway_frame::Frame as From},
    project::DeploymentStatus as Status,
};
use service_kit::testing::TestDatabase;
use tonic::Code;

use crate::{
    cluster::NEVER_MS,
    gateway::TestGateway,
    harness::{World, fields, quick, until, worlds},
    instance::{Instance, able, answer, beating, frame_or_beat, snapshot},
};

async fn recorded(world: &World, deployment: &str, status: Status) {
    until("the answer is recorded", async || {
        world.project.reported(deployment).last().is_some_and(|report| report.0 == i32::from(status))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_is_checked_and_what_is_wrong_is_named() {
    let world = World::start(TestDatabase::sqlite(), quick()).await;
    let (_, token) = world.gateway("edge-1").await;
    let good = Hello { instance_id: "i".into(), capabilities: able(), ..Hello::default() };
    let many = (0..33).map(|at| format!("c{at}")).collect();
    for (hello, wrong) in [
        (Hello { instance_id: "x".repeat(65), ..good.clone() }, "instanceId"),
        (Hello { instance_id: "a\nb".into(), ..good.clone() }, "instanceId"),
        (Hello { instance_id: String::new(), ..good.clone() }, "instanceId"),
        (Hello { capabilities: vec!["resume".into()], ..good.clone() }, "capabilities"),
        (Hello { capabilities: many, ..good.clone() }, "capabilities"),
        (Hello { state_hash: "ABC".into(), ..good.clone() }, "stateHash"),
    ] {
        let status = TestGateway::try_connect(&world, &token.token, From::Hello(hello)).await.err().unwrap();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![wrong.to_owned()]));
    }
    // A long version is cut; what a gateway says of its own address and way does not count.
    let hello = Hello {
        version: format!("v\u{7}{}", "9".repeat(100)),
        remote_address: "198.51.100.1".into(),
        transport: "websocket".into(),
        ..good
    };
    let _link = TestGateway::try_connect(&world, &token.token, From::Hello(hello)).await.unwrap();
    let kept = "SELECT COUNT(*) FROM connections WHERE transport = 'grpc' AND remote_address = ''
                AND LENGTH(version) = 64 AND instance_id = 'i'";
    assert_eq!(world.count(kept).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_and_the_address_are_what_the_edge_says() {
    let world = World::start(TestDatabase::sqlite(), quick()).await;
    let (_, token) = world.gateway("edge-1").await;
    let (frames, receiver) = tokio::sync::mpsc::channel(1);
    let hello = From::Hello(Hello { remote_address: "198.51.100.1".into(), ..Hello::default() });
    frames.send(proto::gateway::GatewayFrame { frame: Some(hello) }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut request = crate::harness::with_key(&token.token, stream);
    request.metadata_mut().insert("tollgate-client-address", "192.0.2.7".parse().unwrap());
    request.metadata_mut().insert("tollgate-client-transport", "websocket".parse().unwrap());
    let mut client =
        proto::gateway::gateway_link_client::GatewayLinkClient::new(world.upstream("edge-proxy"));
    let mut stream = client.connect(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let kept =
        "SELECT COUNT(*) FROM connections WHERE transport = 'websocket' AND remote_address = '192.0.2.7'";
    assert_eq!(world.count(kept).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_a_gateway_have_each_their_own_progress() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let (mut fast, mut slow) = (Instance::new("fast", &token.token), Instance::new("slow", &token.token));
        let mut one = fast.begin(&world).await;
        let mut two = slow.begin(&world).await;
        let apis: Vec<String> = (0..3).map(|_| world.ids.next()).collect();
        let events: Vec<_> = apis.iter().map(|api| world.deploy(&gateway.id, api)).collect();
        world.append(events.clone()).await;
        let got = two.events(3).await;
        for event in one.events(3).await {
            fast.perform(&one, &event).await;
        }
        recorded(&world, &events[2].deployment_id, Status::Deployed).await;
        // The gateway has it; the slow instance does not, and gets it again when it comes back.
        slow.perform(&two, &got[0]).await;
        until("it is recorded", async || {
            world.count("SELECT applied_revision FROM gateway_instances WHERE instance_id = 'slow'").await
                == 1
        })
        .await;
        drop(two);
        let mut two = slow.connect(&world).await;
        let again = two.events(2).await;
        assert_eq!((again[0].revision, again[1].revision), (2, 3));
        for event in &again {
            slow.perform(&two, event).await;
        }
        one.only(&world, &gateway.id).await;
        let event = two.event().await;
        slow.perform(&two, &event).await;
        until("each is where it says", async || {
            world
                .count("SELECT MIN(applied_revision) * 100 + MAX(applied_revision) FROM gateway_instances")
                .await
                == 304
        })
        .await;
        let reported = "SELECT COUNT(*) FROM gateway_reported WHERE instance_id = 'slow'";
        assert_eq!(world.count(reported).await, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_an_instance_replaces_the_older() {
    // Nobody looks by himself: what happens here happens because of the answer.
    let mut limits = quick();
    limits.poll_ms = NEVER_MS;
    for database in TestDatabase::both() {
        let mut world = World::start(database, limits).await;
        let (gateway, token) = world.gateway("edge-1").await;
        let mut instance = Instance::new("i-1", &token.token);
        let mut old = instance.begin(&world).await;
        let other = Instance::new("i-2", &token.token).connect(&world).await;
        let new = instance.begin(&world).await;
        assert!(new.connected.epoch > old.connected.epoch);
        let close = old.closed().await;
        assert_eq!((close.code, close.reason.as_str()), (4409, "replaced by a newer connection"));
        assert_eq!(world.count("SELECT COUNT(*) FROM connections").await, 2, "the other instance stays");
        drop(other);

        // On another node of the service the answers of the older do not count, whatever it knows.
        let event = world.deploy(&gateway.id, &world.ids.next());
        world.append(vec![event.clone()]).await;
        let mut old = new;
        let got = old.event().await;
        world.execute("DELETE FROM connections").await;
        old.send(answer(&got, "")).await;
        assert_eq!(old.closed().await.code, 4409);
        assert!(
            world.project.reported(&event.deployment_id).iter().all(|r| r.0 == i32::from(Status::Delivered))
        );
        world.end().await;
        world.begin().await;
        let _link = instance.begin(&world).await;
        assert_eq!(instance.running[&event.artifact_id], event.deployment_id);
        recorded(&world, &event.deployment_id, Status::Deployed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_without_resuming_answers_every_type() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let hello = || From::Hello(Hello { capabilities: vec!["ack".into()], ..Hello::default() });
        let connect = async || TestGateway::try_connect(&world, &token.token, hello()).await.unwrap();
        let mut link = connect().await;
        let api = world.ids.next();
        let (good, bad) = (world.deploy(&gateway.id, &api), world.deploy(&gateway.id, &world.ids.next()));
        let mut delete = world.event(&gateway.id, &world.ids.next(), "", "api.deleted");
        delete.payload_json = format!(r#"{{"apiId":"{}"}}"#, delete.artifact_id);
        let mut config = world.event(&gateway.id, "", "", "gateway.config.updated");
        config.payload_json = r#"{"configType":"cors","action":"update"}"#.into();
        world.append(vec![good.clone(), bad.clone(), delete, config]).await;
        let got = link.events(4).await;
        link.send(answer(&got[0], "")).await;
        link.send(answer(&got[1], "BAD_ARTIFACT")).await;
        link.send(answer(&got[2], "")).await;
        // Not sent like this: ignored.
        link.send(From::EventAck(EventAck { revision: 4, nonce: world.ids.next(), ..EventAck::default() }))
            .await;
        recorded(&world, &good.deployment_id, Status::Deployed).await;
        recorded(&world, &bad.deployment_id, Status::Failed).await;
        until("what nobody else answers is done", async || {
            world.count("SELECT COUNT(*) FROM gateway_events WHERE state = 'acked'").await == 2
        })
        .await;
        drop(link);
        let mut link = connect().await;
        let again = link.event().await;
        assert_eq!(again.revision, 4, "only what is not answered comes again");
        link.send(answer(&again, "")).await;
        until("it is done", async || {
            world.count("SELECT COUNT(*) FROM gateway_events WHERE state = 'acked'").await == 3
        })
        .await;
        drop(link);
        let mut link = connect().await;
        link.only(&world, &gateway.id).await;
    }
}

/// What happens next to a model instance and its platform.
#[derive(Debug, Clone)]
enum Step {
    /// An API is deployed (again), or undeployed.
    Change { api: usize, deploy: bool },
    /// The instance applies so many events, answers so many of them, and its connection breaks.
    Work { apply: usize, answer: usize },
    /// It loses its disk.
    Wipe,
    /// Something else is changed on it.
    Meddle { api: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_usize, any::<bool>()).prop_map(|(api, deploy)| Step::Change { api, deploy }),
        4 => (0..6_usize, 0..6_usize).prop_map(|(apply, answer)| Step::Work { apply, answer }),
        1 => Just(Step::Wipe),
        1 => (0..5_usize).prop_map(|api| Step::Meddle { api }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_an_instance_ends_with_what_is_desired() {
    for world in beating().await {
        let mut runner = TestRunner::new(ProptestConfig::with_cases(12));
        let plans = proptest::collection::vec(step(), 5..25);
        for case in 0..12 {
            let plan = plans.new_tree(&mut runner).unwrap().current();
            let name = format!("edge-{case}");
            play(&world, &name, &plan).await;
        }
    }
}

async fn play(world: &World, name: &str, plan: &[Step]) {
    let (gateway, token) = world.gateway(name).await;
    let apis: Vec<String> = (0..5).map(|_| world.ids.next()).collect();
    let mut desired = std::collections::BTreeMap::new();
    let mut instance = Instance::new("model", &token.token);
    for step in plan {
        match step {
            Step::Change { api, deploy: true } => {
                let event = world.deploy(&gateway.id, &apis[*api]);
                desired.insert(apis[*api].clone(), event.deployment_id.clone());
                world.append(vec![event]).await;
            }
            Step::Change { api, deploy: false } => {
                let Some(deployment) = desired.remove(&apis[*api]) else { continue };
                let event = world.event(&gateway.id, &apis[*api], &deployment, "api.undeployed");
                world.append(vec![event]).await;
            }
            Step::Work { apply, answer } => {
                let mut link = instance.connect(world).await;
                work(&mut instance, &mut link, *apply, *answer).await;
            }
            Step::Wipe => (instance.applied, instance.running) = (0, Default::default()),
            Step::Meddle { api } => drop(instance.running.insert(apis[*api].clone(), world.ids.next())),
        }
    }
    let mut link = instance.connect(world).await;
    let end = world.deploy(&gateway.id, &world.ids.next());
    desired.insert(end.artifact_id.clone(), end.deployment_id.clone());
    world.append(vec![end.clone()]).await;
    while instance.running.get(&end.artifact_id) != Some(&end.deployment_id) {
        work(&mut instance, &mut link, 1, 1).await;
    }
    assert_eq!(instance.running, desired, "{plan:?}");
    recorded(world, &end.deployment_id, Status::Deployed).await;
    // The platform believes the same.
    drop(link);
    let mut link = instance.connect(world).await;
    link.only(world, &gateway.id).await;
}

/// Applies up to `apply` frames, and answers up to `answers` of them; a frame is an event or a whole snapshot.
async fn work(instance: &mut Instance, link: &mut TestGateway, apply: usize, answers: usize) {
    use proto::gateway::platform_frame::Frame as To;
    for at in 0..apply {
        let Some(frame) = frame_or_beat(link).await else { return };
        match frame {
            To::Event(event) if at < answers => instance.perform(link, &event).await,
            To::Event(event) => drop(instance.apply(&event)),
            To::Snapshot(first) => {
                let mut parts = vec![first];
                if !parts[0].last {
                    parts.extend(snapshot(link).await);
                }
                // Applied as a whole: the disk knows all of it or nothing.
                instance.apply_all(link, &parts).await;
            }
            _ => {}
        }
    }
}
