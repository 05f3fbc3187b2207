//! Drift is the same for whoever asks.

use service_kit::page::Page;

use super::{NOW, all_stores, answer, gateway, instance, new_event, write};
use crate::{
    domain::{
        instances::{Author, Reply, Subject},
        log::NewEvent,
        states::DriftRule,
    },
    events::Effect,
    store::Stores,
};

/// What has drifted, as a list, a count and a watch say: artifacts, and the instances of the last.
async fn drifted(stores: &Stores, gateway: &str, since: i64) -> Vec<(String, String)> {
    let rule = DriftRule { since };
    let page = Page { limit: 100, offset: 0 };
    let (list, total) = stores.operations.artifacts(gateway, rule, true, page).await.unwrap();
    let mut listed: Vec<String> = list.into_iter().map(|state| state.artifact_id).collect();
    let figures = stores.operations.figures(rule).await.unwrap();
    let watched = stores.reconcile.drifted(&[gateway.to_owned()], since).await.unwrap();
    let mut watched: Vec<_> = watched.into_iter().map(|one| (one.artifact_id, one.instance_id)).collect();
    watched.sort();
    let mut about: Vec<String> = watched.iter().map(|one| one.0.clone()).collect();
    about.dedup();
    listed.sort();
    assert_eq!(listed, about, "the list and the watch");
    assert_eq!((figures.drifted, total), (total, i64::try_from(listed.len()).unwrap()));
    watched
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_one_thing_for_the_list_the_figures_and_the_watch() {
    for (_test, stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let later = NOW + 100;
        // A plain gateway runs the first; then an instance that resumes does the second.
        let first = new_event(&ids, &gateway, "api", "api.deployed");
        stores.events.append(std::slice::from_ref(&first), &[], NOW).await.unwrap();
        assert_eq!(drifted(&stores, &gateway, NOW).await, [], "not yet");
        assert_eq!(drifted(&stores, &gateway, later).await, [("api".to_owned(), String::new())]);
        let (taken, _) = write(&stores, vec![super::after(&gateway, 0)], vec![]).await;
        let stamped = &taken[0].events[0];
        let done = answer(&gateway, &stamped.event, stamped.performed_at, None);
        write(&stores, vec![], vec![done]).await;
        assert_eq!(drifted(&stores, &gateway, later).await, []);
        let second =
            NewEvent { deployment_id: ids.next(), ..new_event(&ids, &gateway, "api", "api.deployed") };
        let other = new_event(&ids, &gateway, "other", "api.deployed");
        // What belongs to an API does not stand for it.
        let key = NewEvent {
            event_key: "apikey:api:k".into(),
            ..new_event(&ids, &gateway, "api", "apikey.created")
        };
        stores.events.append(&[second.clone(), other.clone(), key], &[], NOW).await.unwrap();
        let connection_id = &instance(&stores, &ids, &gateway, "i", 0, NOW).await;
        let author = Author { gateway_id: &gateway, instance_id: "i", connection_id };
        let runs = |revision, event: &NewEvent| Reply {
            subject: Subject {
                revision,
                key: event.event_key.clone(),
                deployment_id: event.deployment_id.clone(),
                effect: Effect::Runs,
            },
            refusal: None,
        };
        let answers = [runs(2, &second), runs(3, &other)];
        stores.instances.record(author, &answers, 3, NOW).await.unwrap().unwrap();
        let plain = ("api".to_owned(), String::new());
        assert_eq!(drifted(&stores, &gateway, later).await, [plain], "the plain one is still here");
        stores.connections.disconnect(&format!("c-{gateway}"), &gateway, NOW).await.unwrap();
        assert_eq!(drifted(&stores, &gateway, later).await, [], "it is gone, and what it said with it");

        // Another says that it runs the one, and so not the other.
        let connection_id = &instance(&stores, &ids, &gateway, "j", 0, NOW + 50).await;
        let author = Author { gateway_id: &gateway, instance_id: "j", connection_id };
        assert_eq!(drifted(&stores, &gateway, later).await, [], "it says nothing");
        stores.instances.record(author, &answers[..1], 2, NOW).await.unwrap().unwrap();
        assert_eq!(drifted(&stores, &gateway, NOW + 50).await, [], "it has only just come");
        assert_eq!(drifted(&stores, &gateway, later).await, [("other".to_owned(), "j".to_owned())]);
    }
}
