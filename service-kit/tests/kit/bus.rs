use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use service_kit::{
    bus::{self, Bus, Message, Received, Subscription},
    shutdown::Tasks,
    testing::TestRedis,
};

/// Longer than anything takes, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(30);

fn message(subject: &str, payload: &'static str) -> Message {
    Message { subject: subject.into(), payload: Bytes::from_static(payload.as_bytes()) }
}

/// The bus of another process, as far as Redis can tell.
fn process(redis: &TestRedis) -> (Arc<dyn Bus>, Tasks) {
    service_kit::tls::install_provider();
    let tasks = Tasks::new();
    (bus::connect(&redis.config(), &tasks).unwrap(), tasks)
}

async fn next(subscription: &mut Subscription) -> Received {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("something in time")
}

/// The next that is a message.
async fn next_message(subscription: &mut Subscription) -> Message {
    loop {
        if let Received::Message(message) = next(subscription).await {
            return message;
        }
    }
}

/// A subscription that Redis knows of.
async fn subscribed(bus: &Arc<dyn Bus>, prefix: &str) -> Subscription {
    let mut subscription = bus.subscribe(prefix).await.unwrap();
    assert_eq!(next(&mut subscription).await, Received::Lost, "from now on nothing is");
    subscription
}

/// Publishes until it is heard: both ends find Redis again in their own time.
async fn heard_again(from: &Arc<dyn Bus>, at: &mut Subscription, payload: &'static str) {
    let said = message("a.again", payload);
    let speaking = async {
        loop {
            let _ = from.publish(said.clone()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heard = async { while next_message(at).await != said {} };
    tokio::select! { () = heard => {}, () = speaking => {} }
}

/// Publishes when Redis is there.
async fn publish(bus: &Arc<dyn Bus>, message: Message) {
    let published = async {
        while bus.publish(message.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("Redis in time");
}

#[tokio::test]
async fn what_one_says_all_hear_once_and_in_order() {
    let redis = TestRedis::start();
    let ((one, _), (two, tasks)) = (process(&redis), process(&redis));
    let mut own = one.subscribe("a.").await.unwrap();
    let (mut narrow, mut wide) = (subscribed(&two, "a.[x]*").await, subscribed(&two, "a.").await);
    publish(&one, message("b.1", "not for them")).await;
    let said = ["0", "1", "2"].map(|payload| message("a.[x]*.1", payload));
    one.publish_all(said.to_vec()).await.unwrap();
    publish(&one, message("a.x", "last")).await;
    for expected in &said {
        for subscription in [&mut own, &mut narrow, &mut wide] {
            assert_eq!(next_message(subscription).await, *expected);
        }
    }
    for subscription in [&mut own, &mut wide] {
        assert_eq!(next_message(subscription).await, message("a.x", "last"));
    }
    publish(&one, message("a.[x]*.2", "")).await;
    assert_eq!(next_message(&mut narrow).await, message("a.[x]*.2", ""), "nothing came in between");
    assert!(tasks.drain(Duration::from_secs(5)).await, "its tasks end");
    drop(two);
    while !matches!(next(&mut wide).await, Received::Closed) {}
}

#[tokio::test]
async fn after_a_restart_of_redis_subscribers_know_that_something_is_lost_and_hear_again() {
    let mut redis = TestRedis::start();
    let ((one, _one), (two, _two)) = (process(&redis), process(&redis));
    let mut subscription = subscribed(&two, "a.").await;
    publish(&one, message("a.1", "before")).await;
    assert_eq!(next(&mut subscription).await, Received::Message(message("a.1", "before")));
    redis.stop();
    let mut own = one.subscribe("a.").await.unwrap();
    let away = async { while one.publish(message("a.1", "meanwhile")).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, away).await.expect("an error in time");
    assert_eq!(next_message(&mut own).await, message("a.1", "meanwhile"), "at home it is heard all the same");
    redis.restart();
    assert_eq!(next(&mut subscription).await, Received::Lost);
    heard_again(&one, &mut subscription, "after").await;

    redis.flush();
    publish(&one, message("a.flushed", "still there")).await;
    while next_message(&mut subscription).await != message("a.flushed", "still there") {}
}

#[tokio::test]
async fn a_redis_that_comes_late_is_found() {
    let mut redis = TestRedis::away();
    let ((one, _one), (two, _two)) = (process(&redis), process(&redis));
    let mut subscription = two.subscribe("a.").await.unwrap();
    one.publish(message("a.1", "nobody hears it")).await.unwrap_err();
    redis.restart();
    assert_eq!(next(&mut subscription).await, Received::Lost);
    heard_again(&one, &mut subscription, "now").await;
}

#[tokio::test]
async fn a_redis_that_stands_still_stops_no_publisher() {
    let redis = TestRedis::start();
    let ((one, _one), (two, _two)) = (process(&redis), process(&redis));
    let mut subscription = subscribed(&two, "a.").await;
    publish(&one, message("a.1", "before")).await;
    redis.freeze();
    let started = tokio::time::Instant::now();
    for _ in 0..50 {
        one.publish(message("a.1", "frozen")).await.unwrap_err();
    }
    // 50 times the 100 ms that each may take at most, and room for a slow machine.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    redis.thaw();
    heard_again(&one, &mut subscription, "thawed").await;
}
