//! Connections and the instances behind them.

use std::time::Duration;

use service_kit::{Clock, db::Database};

use super::{HOUR, NOW, all_stores, gateway, instance, numbers};
use crate::{
    domain::{
        connections::Note,
        instances::{Author, Reply, Subject},
        retention::Retention,
    },
    events::Effect,
};

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_are_away_for_long_are_forgotten_with_what_they_said() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let mut connections = Vec::new();
        for name in ["away", "back", "here"] {
            let connection_id = instance(&stores, &ids, &gateway, name, 0, NOW).await;
            let author = Author { gateway_id: &gateway, instance_id: name, connection_id: &connection_id };
            let subject =
                Subject { revision: 1, key: "api".into(), deployment_id: "d".into(), effect: Effect::Runs };
            let reply = Reply { subject, refusal: None };
            stores.instances.record(author, &[reply], 1, NOW).await.unwrap().unwrap();
            connections.push(connection_id);
        }
        // Its connection was long, and has only just ended.
        let ends = [(0, NOW), (1, NOW + HOUR)];
        for (at, end) in ends {
            assert!(stores.connections.disconnect(&connections[at], &gateway, end).await.unwrap());
        }
        let prune = async |now| {
            let retention = Retention { store: stores.retention.clone(), clock: Clock::fixed(now), hours: 1 };
            retention.run().await.unwrap();
        };
        let known = "SELECT CAST((SELECT COUNT(*) FROM gateway_instances WHERE gateway_id = $1) * 10
             + (SELECT COUNT(*) FROM gateway_reported WHERE gateway_id = $1) AS BIGINT)";
        prune(NOW + HOUR).await;
        assert_eq!(numbers(&database, known, &gateway).await, [33], "not long enough");
        prune(NOW + HOUR + 1).await;
        assert_eq!(numbers(&database, known, &gateway).await, [22]);
        prune(NOW + 2 * HOUR + 1).await;
        assert_eq!(numbers(&database, known, &gateway).await, [11], "who is here stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_waits_for_nobody() {
    for ((_test, database), stores, ids) in all_stores().await {
        let gateway = gateway(&stores, &ids).await;
        let mut connections = Vec::new();
        for name in ["a", "b"] {
            connections.push(instance(&stores, &ids, &gateway, name, 0, NOW).await);
        }
        let notes: Vec<Note> = connections
            .iter()
            .map(|id| Note {
                connection_id: id.clone(),
                heard_at: NOW + 5,
                sent_revision: 2,
                applied_revision: 1,
            })
            .collect();
        let mut expected = connections.clone();
        let mut held = None;
        if let Database::Postgres(pool) = &database {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query("UPDATE connections SET version = 'x' WHERE id = $1")
                .bind(&connections[0])
                .execute(&mut *tx)
                .await
                .unwrap();
            held = Some(tx);
            expected.remove(0);
        }
        let noted = tokio::time::timeout(Duration::from_secs(5), stores.connections.note(&notes));
        let mut noted = noted.await.expect("nobody is waited for").unwrap();
        noted.sort();
        expected.sort();
        assert_eq!(noted, expected);
        if let Some(tx) = held {
            // Dropped, it would let go some time later.
            tx.rollback().await.unwrap();
        }
        let mut all = stores.connections.note(&notes).await.unwrap();
        all.sort();
        connections.sort();
        assert_eq!(all, connections);
        let heard = "SELECT heard_at FROM connections WHERE gateway_id = $1 AND instance_id <> ''";
        assert_eq!(numbers(&database, heard, &gateway).await, [NOW + 5, NOW + 5]);
    }
}
