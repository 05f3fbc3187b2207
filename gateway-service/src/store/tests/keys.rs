//! What of a key counts: what comes again, what may go, what a gateway that begins gets.

use service_kit::{Clock, Ids};

use super::{HOUR, NOW, all_stores, gateway, new_event, numbers};
use crate::{
    domain::{
        instances::{Author, Belief, Refusal, Reply, Subject},
        log::{NewEvent, Requeue},
        operations::Scope,
        retention::Retention,
    },
    events::Effect,
    store::Stores,
};

const KEY: &str = "apikey:a:k";
const KEPT: &str = "SELECT revision FROM gateway_events WHERE gateway_id = $1 ORDER BY revision";
const OPEN: &str = "SELECT revision FROM gateway_events
     WHERE gateway_id = $1 AND state IN ('pending', 'delivered') ORDER BY revision";

fn event(ids: &Ids, gateway_id: &str, key: &str, event_type: &str) -> NewEvent {
    let about = new_event(ids, gateway_id, key, event_type);
    NewEvent { artifact_id: String::new(), deployment_id: String::new(), ..about }
}

async fn append(stores: &Stores, ids: &Ids, gateway_id: &str, events: &[(&str, &str)]) {
    let events: Vec<_> = events.iter().map(|(key, kind)| event(ids, gateway_id, key, kind)).collect();
    stores.events.append(&events, &[], NOW).await.unwrap();
}

/// Answers events of a gateway on its connection.
async fn answer(stores: &Stores, gateway_id: &str, answers: &[(i64, &str, &str, bool)]) {
    let connection_id = &format!("c-{gateway_id}");
    answer_as(stores, Author { gateway_id, instance_id: "", connection_id }, answers).await;
}

async fn answer_as(stores: &Stores, author: Author<'_>, answers: &[(i64, &str, &str, bool)]) {
    let reply = |(revision, key, kind, well): &(i64, &str, &str, bool)| Reply {
        subject: Subject {
            revision: *revision,
            key: (*key).to_owned(),
            deployment_id: String::new(),
            effect: Effect::of(kind),
        },
        refusal: (!well).then(|| Refusal { reason: "NO".into(), detail: String::new() }),
    };
    let replies: Vec<_> = answers.iter().map(reply).collect();
    stores.instances.record(author, &replies, 0, NOW).await.unwrap().unwrap();
}

async fn prune(stores: &Stores, now: i64) {
    let retention = Retention { store: stores.retention.clone(), clock: Clock::fixed(now), hours: 1 };
    retention.run().await.unwrap();
}

/// What a gateway that begins gets, by revision and type.
async fn snapshot(stores: &Stores, gateway_id: &str) -> Vec<(i64, String)> {
    let (_, newest) = stores.instances.state(gateway_id).await.unwrap();
    let held = Belief::default().snapshot(newest, true);
    held.into_iter().map(|change| (change.event.revision, change.event.event_type)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_stays_while_a_change_of_it_does() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let kinds = ["apikey.created", "apikey.updated", "apikey.updated"];
        append(&stores, &ids, &gateway, &kinds.map(|kind| (KEY, kind))).await;
        let done = [(1, KEY, kinds[0], true), (2, KEY, kinds[1], true), (3, KEY, kinds[2], true)];
        answer(&stores, &gateway, &done).await;
        prune(&stores, NOW + HOUR + 1).await;
        assert_eq!(numbers(&database, KEPT, &gateway).await, [1, 3]);
        let all = snapshot(&stores, &gateway).await;
        assert_eq!(all, [(1, "apikey.created".to_owned()), (3, "apikey.updated".to_owned())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_makes_before_it_changes_and_undoes_nothing_newer() {
    for ((_test, database), stores, ids) in all_stores().await {
        let requeue = async |gateway: &str, full| {
            let asked = Requeue { gateway_id: gateway, artifact_id: None, full };
            stores.events.requeue(asked, &ids, NOW).await.unwrap()
        };
        let one = gateway(&stores, &ids).await;
        let kinds = ["apikey.created", "apikey.updated"];
        append(&stores, &ids, &one, &kinds.map(|kind| (KEY, kind))).await;
        answer(&stores, &one, &[(1, KEY, kinds[0], true), (2, KEY, kinds[1], true)]).await;
        assert_eq!(requeue(&one, false).await, (0, 2));
        assert_eq!(requeue(&one, true).await, (2, 4));
        let all = snapshot(&stores, &one).await;
        assert_eq!(all, [(3, kinds[0].to_owned()), (4, kinds[1].to_owned())]);

        // The older one is refused: after it what is newer comes once more.
        let two = gateway(&stores, &ids).await;
        let kinds = ["apikey.revoked", "apikey.created"];
        append(&stores, &ids, &two, &kinds.map(|kind| (KEY, kind))).await;
        answer(&stores, &two, &[(1, KEY, kinds[0], false), (2, KEY, kinds[1], true)]).await;
        assert_eq!(requeue(&two, false).await, (2, 4));
        let all = snapshot(&stores, &two).await;
        assert_eq!(all, [(4, kinds[1].to_owned())]);
        assert_eq!(numbers(&database, OPEN, &two).await, [3, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_for_good_leaves_the_log_and_what_is_undeployed_stays() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let log = [
            (KEY, "apikey.created"),
            ("api", "api.deployed"),
            ("other", "api.deployed"),
            (KEY, "apikey.revoked"),
            ("api", "api.deleted"),
            ("other", "api.undeployed"),
            ("subscription:s", "subscription.deleted"),
        ];
        append(&stores, &ids, &gateway, &log).await;
        assert_eq!(snapshot(&stores, &gateway).await, [], "nothing that is there");
        let revisions = (1..).zip(log);
        let done: Vec<_> = revisions.map(|(revision, (key, kind))| (revision, key, kind, true)).collect();
        answer(&stores, &gateway, &done[..6]).await;
        prune(&stores, NOW + HOUR).await;
        assert_eq!(numbers(&database, KEPT, &gateway).await.len(), 7, "not old enough");
        prune(&stores, NOW + HOUR + 1).await;
        assert_eq!(numbers(&database, KEPT, &gateway).await, [6, 7], "and what nobody has done");
        assert_eq!(numbers(&database, "SELECT floor FROM gateways WHERE id = $1", &gateway).await, [5]);
        let (_, told) = stores.reconcile.told(&gateway).await.unwrap().unwrap();
        let told: Vec<_> = told.iter().map(|one| one.event_type.as_str()).collect();
        assert!(!told.contains(&"api.deleted"), "nothing is left to be removed again: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_hears_of_an_end_before_it_is_forgotten() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        append(&stores, &ids, &gateway, &[("api", "api.deployed"), ("api", "api.deleted")]).await;
        answer(&stores, &gateway, &[(1, "api", "api.deployed", true), (2, "api", "api.deleted", true)]).await;
        let behind = super::instance(&stores, &ids, &gateway, "behind", 1, NOW).await;
        prune(&stores, NOW + HOUR + 1).await;
        assert_eq!(numbers(&database, KEPT, &gateway).await, [2]);
        stores.connections.disconnect(&behind, &gateway, NOW).await.unwrap();
        prune(&stores, NOW + HOUR + 1).await;
        assert!(numbers(&database, KEPT, &gateway).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_whole_state_has_done_every_removal() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let log =
            [(KEY, "apikey.revoked"), (KEY, "apikey.created"), ("subscription:s", "subscription.deleted")];
        append(&stores, &ids, &gateway, &log).await;
        let connection_id = &super::instance(&stores, &ids, &gateway, "i", 0, NOW).await;
        let author = Author { gateway_id: &gateway, instance_id: "i", connection_id };
        stores.instances.replace(author, (3, true), &[], NOW).await.unwrap().unwrap();
        assert_eq!(numbers(&database, OPEN, &gateway).await, [2], "which was in it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_events_take_places_while_they_wait_and_their_keys_after_that() {
    for (_test, stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let log = [
            ("custom:a", "custom.x"),
            ("custom:b", "custom.x"),
            ("custom:b", "custom.y"),
            ("gateway.config:c", "gateway.config.updated"),
            ("", "custom.x"),
            ("api", "api.deployed"),
        ];
        append(&stores, &ids, &gateway, &log).await;
        let held = async |key: &str| {
            let held = stores.operations.held(&gateway, key).await.unwrap();
            (held.waiting, held.keys, held.has_key)
        };
        assert_eq!(held("custom:a").await, (5, 0, true));
        let done: Vec<_> =
            (1..).zip(log).map(|(revision, (key, kind))| (revision, key, kind, true)).collect();
        answer(&stores, &gateway, &done).await;
        assert_eq!(held("custom:new").await, (0, 3, false));
        assert_eq!(held("gateway.config:c").await, (0, 3, true));
        assert_eq!(held("").await, (0, 3, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_019_a_refused_snapshot_is_a_failed_delivery() {
    for (_test, stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        append(&stores, &ids, &gateway, &[("api", "api.deployed")]).await;
        let connection_id = &super::instance(&stores, &ids, &gateway, "i", 0, NOW).await;
        let author = Author { gateway_id: &gateway, instance_id: "i", connection_id };
        answer_as(&stores, author, &[(1, "api", "api.deployed", false)]).await;
        let refusal = Refusal { reason: "NO_ROOM".into(), detail: "disk".into() };
        for _ in 0..2 {
            assert!(stores.instances.refuse_snapshot(author, 1, &refusal, NOW).await.unwrap());
        }
        let gone = Author { connection_id: "gone", ..author };
        assert!(!stores.instances.refuse_snapshot(gone, 1, &refusal, NOW).await.unwrap());
        let page = service_kit::page::Page { limit: 10, offset: 0 };
        let scope = Scope::Gateway(gateway.clone());
        let (list, _) = stores.operations.failures(&scope, 0, i64::MAX, page).await.unwrap();
        let mut list: Vec<_> = list
            .iter()
            .map(|one| (one.event_type.as_str(), one.instance_id.as_str(), one.revision, one.reason.as_str()))
            .collect();
        list.sort_unstable();
        assert_eq!(list, [("api.deployed", "i", 1, "NO"), ("snapshot", "i", 1, "NO_ROOM")]);
    }
}
