//! The log on both databases, below everything that uses it.

mod connections;
mod drift;
mod journal;
mod keys;
mod model;

use std::sync::Arc;

use service_kit::{Clock, Ids, db::Database, page::Page, shutdown::Tasks, testing::TestDatabase};

use super::{Batch, Stores};
use crate::{
    domain::{
        acks::{Ack, AckFrom, REPORTS, Verdict},
        connections::Connection,
        gateways::{Details, Functionality, Gateway},
        instances::Author,
        journal::Journal,
        log::{Delivery, LogEvent, NewEvent, Pick, Requeue, Taken},
        operations::Scope,
        retention::Retention,
    },
    events,
};

const NOW: i64 = 1_766_000_000_000;
const HOUR: i64 = 3_600_000;
const MIB: usize = 1024 * 1024;

async fn all_stores() -> Vec<((TestDatabase, Database), Stores, Ids)> {
    let mut all = Vec::new();
    for test in TestDatabase::both() {
        let database = Database::open(&test.config, &sqlx::migrate!()).await.unwrap();
        let stores = Stores::new(&database);
        all.push(((test, database), stores, Ids::new(Clock::system())));
    }
    all
}

/// What a query about a gateway finds, past the store.
async fn numbers(database: &Database, sql: &'static str, gateway_id: &str) -> Vec<i64> {
    match database {
        Database::Sqlite(pool) => {
            sqlx::query_scalar(sql).bind(gateway_id).fetch_all(pool.read()).await.unwrap()
        }
        Database::Postgres(pool) => {
            sqlx::query_scalar(sql).bind(gateway_id).fetch_all(pool.read()).await.unwrap()
        }
    }
}

/// A gateway with a connection, `c-` and its id.
async fn gateway(stores: &Stores, ids: &Ids) -> String {
    let id = unconnected(stores, ids).await;
    let node = ids.next();
    stores.connections.enter(&node, NOW).await.unwrap();
    stores.connections.connect(&connection(&id, node), 1).await.unwrap();
    id
}

/// A connection of an instance of a gateway: its id.
async fn instance(
    stores: &Stores,
    ids: &Ids,
    gateway_id: &str,
    name: &str,
    applied_revision: i64,
    connected_at: i64,
) -> String {
    let node = ids.next();
    stores.connections.enter(&node, NOW).await.unwrap();
    let connection = Connection {
        id: ids.next(),
        instance_id: name.to_owned(),
        applied_revision,
        connected_at,
        ..connection(gateway_id, node)
    };
    stores.connections.connect(&connection, 10).await.unwrap();
    connection.id
}

fn connection(gateway_id: &str, node_id: String) -> Connection {
    Connection {
        id: format!("c-{gateway_id}"),
        node_id,
        gateway_id: gateway_id.to_owned(),
        organization_id: gateway_id.to_owned(),
        token_id: String::new(),
        instance_id: String::new(),
        transport: "grpc".into(),
        version: String::new(),
        remote_address: String::new(),
        connected_at: NOW,
        heard_at: NOW,
        sent_revision: 0,
        applied_revision: 0,
    }
}

async fn unconnected(stores: &Stores, ids: &Ids) -> String {
    let id = ids.next();
    let gateway = Gateway {
        id: id.clone(),
        organization_id: id.clone(),
        name: id.clone(),
        functionality: Functionality::Regular,
        details: Details::default(),
        version: String::new(),
        created_at: NOW,
        updated_at: NOW,
    };
    assert!(stores.gateways.insert(&gateway).await.unwrap());
    id
}

fn new_event(ids: &Ids, gateway_id: &str, api: &str, event_type: &str) -> NewEvent {
    NewEvent {
        id: ids.next(),
        gateway_id: gateway_id.to_owned(),
        event_type: event_type.to_owned(),
        payload_json: "{}".to_owned(),
        artifact_id: api.to_owned(),
        deployment_id: ids.next(),
        event_key: api.to_owned(),
        user_id: String::new(),
    }
}

fn answer(gateway_id: &str, event: &LogEvent, performed_at: i64, failure: Option<&str>) -> AckFrom {
    let known = events::find(&event.event_type).unwrap();
    let ack = Ack {
        deployment_id: event.deployment_id.clone(),
        event: known,
        action: known.answer.as_ref().unwrap().action,
        failure: failure.map(str::to_owned),
        performed_at: Some(performed_at),
    };
    AckFrom { gateway_id: gateway_id.to_owned(), connection_id: format!("c-{gateway_id}"), ack }
}

async fn write(
    stores: &Stores,
    deliveries: Vec<Delivery>,
    answers: Vec<AckFrom>,
) -> (Vec<Taken>, Vec<Verdict>) {
    let outcome = stores.events.write(&Batch { answers, deliveries }, NOW).await.unwrap();
    (outcome.taken, outcome.verdicts)
}

fn after(gateway_id: &str, revision: i64) -> Delivery {
    Delivery { gateway_id: gateway_id.to_owned(), pick: Pick::After { revision, most: 100, bytes: MIB } }
}

async fn complete(stores: &Stores, gateway_id: &str, connection_id: &str, revision: i64) -> bool {
    let author = Author { gateway_id, instance_id: "", connection_id };
    stores.events.complete(author, &[revision], NOW).await.unwrap()
}

fn revisions(taken: &Taken) -> Vec<i64> {
    taken.events.iter().map(|stamped| stamped.event.revision).collect()
}

async fn failures(stores: &Stores, gateway_id: &str) -> Vec<(i64, String)> {
    let page = Page { limit: 100, offset: 0 };
    let scope = Scope::Gateway(gateway_id.to_owned());
    let (mut list, _) = stores.operations.failures(&scope, 0, i64::MAX, page).await.unwrap();
    list.sort_by_key(|failure| failure.revision);
    list.into_iter().map(|failure| (failure.revision, failure.reason)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gateways_are_written_at_once_and_each_keeps_its_own() {
    for (_test, stores, ids) in all_stores().await {
        let (one, two) = (gateway(&stores, &ids).await, gateway(&stores, &ids).await);
        let events: Vec<_> = [&one, &two, &one, &two, &one]
            .into_iter()
            .enumerate()
            .map(|(at, gateway)| new_event(&ids, gateway, &format!("api-{at}"), "api.deployed"))
            .collect();
        let grown = stores.events.append(&events, &[], NOW).await.unwrap().grown;
        assert_eq!(grown, [(one.clone(), 3), (two.clone(), 2)].into());
        let (taken, _) = write(&stores, vec![after(&one, 1), after(&two, 0)], vec![]).await;
        assert_eq!((revisions(&taken[0]), revisions(&taken[1])), (vec![2, 3], vec![1, 2]));
        // The times of the append are those of the first sending.
        assert!(taken.iter().flat_map(|taken| &taken.events).all(|stamped| stamped.performed_at == NOW));
        let said = |gateway: &str, taken: &Taken, at: usize, failure| {
            answer(gateway, &taken.events[at].event, taken.events[at].performed_at, failure)
        };
        let (done, refused) = (said(&one, &taken[0], 0, None), said(&two, &taken[1], 1, Some("NO")));
        let fenced = AckFrom { connection_id: format!("c-{two}"), ..done.clone() };
        let answers = vec![done.clone(), fenced, refused.clone(), done, refused];
        let (_, verdicts) = write(&stores, vec![], answers).await;
        assert!(matches!(&verdicts[0], Verdict::Change(event) if event.revision == 2));
        assert_eq!(verdicts[1], Verdict::Fenced);
        assert!(matches!(&verdicts[2], Verdict::Change(event) if event.revision == 2));
        assert_eq!(verdicts[3..], [Verdict::Known(Some(2)), Verdict::Known(None)]);
        assert_eq!(failures(&stores, &two).await, [(2, "NO".to_owned())]);
        let (taken, _) = write(&stores, vec![after(&one, 0), after(&two, 0)], vec![]).await;
        assert_eq!((revisions(&taken[0]), revisions(&taken[1])), (vec![1, 3], vec![1]));
        assert!(taken[0].events[1].performed_at > NOW, "a repeat is newer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_009_what_is_appended_while_a_gateway_is_away_is_noted_once() {
    for (_test, stores, ids) in all_stores().await {
        let (there, away) = (gateway(&stores, &ids).await, unconnected(&stores, &ids).await);
        let events = [&there, &away].map(|gateway| new_event(&ids, gateway, "api", "api.deployed"));
        for _ in 0..2 {
            stores.events.append(&events, &[], NOW).await.unwrap();
        }
        assert_eq!(failures(&stores, &there).await, []);
        assert_eq!(failures(&stores, &away).await, [(1, "NOT_CONNECTED".to_owned())]);
        let counted = stores.operations.deliveries(&Scope::Gateway(away)).await.unwrap();
        assert_eq!((counted.sent, counted.failed), (0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gets_the_newest_of_each_key_again() {
    for (_test, stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let kinds =
            [("a", "api.deployed"), ("b", "api.deployed"), ("c", "api.undeployed"), ("d", "api.deployed")];
        let events: Vec<_> = kinds.iter().map(|(api, kind)| new_event(&ids, &gateway, api, kind)).collect();
        stores.events.append(&events, &[], NOW).await.unwrap();
        let (taken, _) = write(&stores, vec![after(&gateway, 0)], vec![]).await;
        let said = |at: usize, failure| {
            let stamped = &taken[0].events[at];
            answer(&gateway, &stamped.event, stamped.performed_at, failure)
        };
        // `a` runs, `b` is refused, `c` is gone, `d` has no answer.
        write(&stores, vec![], vec![said(0, None), said(1, Some("NO")), said(2, None)]).await;
        let requeue = async |artifact_id, full| {
            let asked = Requeue { gateway_id: &gateway, artifact_id, full };
            stores.events.requeue(asked, &ids, NOW).await.unwrap()
        };
        assert_eq!(requeue(Some("a"), false).await, (0, 4));
        assert_eq!(requeue(None, false).await, (2, 6));
        let (taken, _) = write(&stores, vec![after(&gateway, 0)], vec![]).await;
        let apis: Vec<_> =
            taken[0].events.iter().map(|s| (s.event.revision, s.event.artifact_id.as_str())).collect();
        assert_eq!(apis, [(5, "b"), (6, "d")], "the old ones do not come too");
        assert_eq!(requeue(None, true).await, (3, 9), "and `a`, but not what is gone");
        let nobody = Requeue { gateway_id: &ids.next(), artifact_id: None, full: true };
        assert_eq!(stores.events.requeue(nobody, &ids, NOW).await.unwrap(), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_go_unless_they_are_open_or_the_newest_of_their_key() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let mut cursor = 0;
        for (api, kind) in
            [("a", "api.deployed"), ("a", "api.deployed"), ("", "custom.x"), ("b", "api.deployed")]
        {
            stores.events.append(&[new_event(&ids, &gateway, api, kind)], &[], NOW).await.unwrap();
            let (taken, _) = write(&stores, vec![after(&gateway, cursor)], vec![]).await;
            let stamped = &taken[0].events[0];
            cursor = stamped.event.revision;
            match kind {
                "custom.x" => {
                    // Whoever is not connected any more has proven nothing.
                    assert!(!complete(&stores, &gateway, "c-gone", cursor).await);
                    let (taken, _) = write(&stores, vec![after(&gateway, cursor - 1)], vec![]).await;
                    assert_eq!(revisions(&taken[0]), [cursor], "it comes again");
                    assert!(complete(&stores, &gateway, &format!("c-{gateway}"), cursor).await);
                    let (taken, _) = write(&stores, vec![after(&gateway, cursor - 1)], vec![]).await;
                    assert!(taken[0].events.is_empty());
                }
                _ if api == "a" => {
                    let done = answer(&gateway, &stamped.event, stamped.performed_at, None);
                    write(&stores, vec![], vec![done]).await;
                }
                _ => {}
            }
        }
        let away = unconnected(&stores, &ids).await;
        stores.events.append(&[new_event(&ids, &away, "a", "api.deployed")], &[], NOW).await.unwrap();
        let prune = async |now| {
            Retention { store: stores.retention.clone(), clock: Clock::fixed(now), hours: 1 }
                .run()
                .await
                .unwrap();
        };
        prune(NOW + HOUR).await;
        assert_eq!(failures(&stores, &away).await.len(), 1, "not old enough");
        prune(NOW + HOUR + 1).await;
        assert_eq!(failures(&stores, &away).await, []);
        let kept = "SELECT revision FROM gateway_events WHERE gateway_id = $1 ORDER BY revision";
        assert_eq!(
            numbers(&database, kept, &gateway).await,
            [2, 4],
            "the newest of its key, and what is open"
        );
        assert_eq!(numbers(&database, "SELECT floor FROM gateways WHERE id = $1", &gateway).await, [3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_written_together_and_everybody_gets_his_own_answer() {
    for (_test, stores, ids) in all_stores().await {
        let tasks = Tasks::new();
        let journal = Journal::start(Arc::clone(&stores.events), Clock::system(), &tasks);
        let mut gateways = Vec::new();
        for _ in 0..20 {
            gateways.push(gateway(&stores, &ids).await);
        }
        let events: Vec<_> = gateways.iter().map(|id| new_event(&ids, id, "a", "api.deployed")).collect();
        stores.events.append(&events, &[], NOW).await.unwrap();
        let mut lanes = tokio::task::JoinSet::new();
        for (gateway, sent) in gateways.into_iter().zip(events) {
            let (journal, nobody) = (journal.clone(), ids.next());
            lanes.spawn(async move {
                assert_eq!(journal.deliver(after(&nobody, 0)).await.unwrap(), Taken::default());
                let taken = journal.deliver(after(&gateway, 0)).await.unwrap();
                let stamped = &taken.events[0];
                assert_eq!(stamped.event.deployment_id, sent.deployment_id);
                let answer = answer(&gateway, &stamped.event, stamped.performed_at, None);
                journal.acknowledge(answer).await.unwrap()
            });
        }
        for verdict in lanes.join_all().await {
            assert!(matches!(verdict, Verdict::Change(event) if event.revision == 1));
        }
        let reports = stores.outbox.0.oldest(REPORTS, 100).await.unwrap();
        let positions: Vec<i64> = reports.iter().map(|entry| entry.position).collect();
        assert_eq!(positions, (1..=40).collect::<Vec<_>>(), "sent and done, of each");
        drop(journal);
        assert!(tasks.drain(std::time::Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_at_once_has_a_limit_in_bytes() {
    for (_test, stores, ids) in all_stores().await {
        let large = |gateway: &str, bytes: usize| NewEvent {
            payload_json: format!(r#"{{"x":"{}"}}"#, "ä".repeat(bytes / 2)),
            event_key: String::new(),
            ..new_event(&ids, gateway, "", "custom.large")
        };
        let one = gateway(&stores, &ids).await;
        for bytes in [MIB * 2, MIB / 2, MIB / 2, MIB / 2, 10] {
            stores.events.append(&[large(&one, bytes)], &[], NOW).await.unwrap();
        }
        let mut batches = Vec::new();
        let mut cursor = 0;
        loop {
            let taken = write(&stores, vec![after(&one, cursor)], vec![]).await.0.remove(0);
            cursor = taken.last;
            batches.push(revisions(&taken));
            if !taken.more {
                break;
            }
        }
        // The one that is too large comes alone; it needs no other transaction to know that nothing is left.
        assert_eq!(batches, [vec![1], vec![2, 3], vec![4, 5]]);

        let mut many = Vec::new();
        for _ in 0..20 {
            let id = gateway(&stores, &ids).await;
            let events = [large(&id, MIB), large(&id, MIB)];
            stores.events.append(&events[..1], &[], NOW).await.unwrap();
            stores.events.append(&events[1..], &[], NOW).await.unwrap();
            many.push(id);
        }
        let mut cursors = vec![0; many.len()];
        let mut rounds = 0;
        while cursors.iter().any(|cursor| *cursor < 2) {
            let open: Vec<usize> = (0..many.len()).filter(|at| cursors[*at] < 2).collect();
            let wanted = open.iter().map(|at| after(&many[*at], cursors[*at])).collect();
            let (taken, _) = write(&stores, wanted, vec![]).await;
            let bytes = taken.iter().flat_map(|taken| &taken.events).map(|s| s.event.payload_json.len());
            assert!(bytes.sum::<usize>() <= 17 * MIB);
            for (at, taken) in open.into_iter().zip(taken) {
                assert!(taken.more || taken.last == 2, "whoever got nothing asks again");
                cursors[at] = taken.last.max(cursors[at]);
            }
            rounds += 1;
        }
        assert_eq!(rounds, 4, "sixteen at once, and each twice");
    }
}
