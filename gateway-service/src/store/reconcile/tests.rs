use service_kit::{db::Database, testing::TestDatabase};

use crate::{domain::reconcile::Drifted, store::Stores};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// A gateway.
const GATEWAY: &str = "0198f0c5-0000-7000-8000-000000000001";

const SETUP: [&str; 4] = [
    "INSERT INTO gateways (id, organization_id, name, display_name, description, vhost, endpoints,
       functionality_type, is_critical, version, manifest, head, created_at, updated_at)
     VALUES ('0198f0c5-0000-7000-8000-000000000001', 'o', 'one', '', '', '', '[]', 'regular', FALSE, '', '', 9, 0, 0),
            ('other', 'o', 'two', '', '', '', '[]', 'regular', FALSE, '', '', 9, 0, 0)",
    "INSERT INTO gateway_events (gateway_id, revision, event_id, type, artifact_id, deployment_id, event_key,
       payload_json, state, performed_at, sendings, error_code, created_at)
     VALUES ('0198f0c5-0000-7000-8000-000000000001', 1, 'e1', 'api.deployed', 'done', 'd1', 'done', '{}', 'acked', 0, 1, '', 100),
            ('0198f0c5-0000-7000-8000-000000000001', 2, 'e2', 'api.deployed', 'late', 'd2', 'late', '{}', 'delivered', 0, 1, '', 100),
            ('0198f0c5-0000-7000-8000-000000000001', 3, 'e3', 'api.deployed', 'refused', 'd3', 'refused', '{}', 'failed', 0, 1, 'NO_ROOM', 100),
            ('0198f0c5-0000-7000-8000-000000000001', 4, 'e4', 'api.deployed', 'newer', 'd4', 'newer', '{}', 'failed', 0, 1, 'OLD', 100),
            ('0198f0c5-0000-7000-8000-000000000001', 5, 'e5', 'api.deployed', 'newer', 'd5', 'newer', '{}', 'pending', 0, 0, '', 200),
            ('0198f0c5-0000-7000-8000-000000000001', 6, 'e6', 'api.undeployed', 'gone', 'd6', 'gone', '{}', 'acked', 0, 1, '', 100),
            ('0198f0c5-0000-7000-8000-000000000001', 7, 'e7', 'gateway.config.updated', 'config', '', 'config', '{}', 'pending', 0, 0, '', 0),
            ('other', 1, 'e8', 'api.deployed', 'late', 'd7', 'late', '{}', 'pending', 0, 0, '', 100)",
    "INSERT INTO link_nodes (id, beat, started_at) VALUES ('n', 0, 0)",
    "INSERT INTO connections (id, node_id, gateway_id, organization_id, token_id, instance_id, transport, version,
       remote_address, connected_at, heard_at, sent_revision, applied_revision)
     VALUES ('c1', 'n', '0198f0c5-0000-7000-8000-000000000001', 'o', 't', 'a', 'grpc', '', '', 50, 50, 7, 7),
            ('c2', 'n', '0198f0c5-0000-7000-8000-000000000001', 'o', 't', 'b', 'grpc', '', '', 50, 50, 7, 7),
            ('c3', 'n', '0198f0c5-0000-7000-8000-000000000001', 'o', 't', 'new', 'grpc', '', '', 190, 190, 7, 7),
            ('c4', 'n', '0198f0c5-0000-7000-8000-000000000001', 'o', 't', 'mute', 'grpc', '', '', 50, 50, 7, 7)",
];

/// What instances say: `a` is as it should be; `b` has neither started the one nor stopped the other.
const REPORTED: &str = "INSERT INTO gateway_reported (gateway_id, instance_id, artifact_id, deployment_id, revision,
       rejected_revision, reason, reported_at)
     VALUES ('0198f0c5-0000-7000-8000-000000000001', 'a', 'done', 'd1', 1, 0, '', 120), ('0198f0c5-0000-7000-8000-000000000001', 'a', 'gone', '', 6, 0, '', 120),
            ('0198f0c5-0000-7000-8000-000000000001', 'b', 'done', 'd0', 0, 1, 'NO_DISK', 120), ('0198f0c5-0000-7000-8000-000000000001', 'b', 'gone', 'd6', 5, 0, '', 120),
            ('0198f0c5-0000-7000-8000-000000000001', 'new', 'done', 'd0', 0, 0, '', 190)";

async fn run(database: &Database, sql: &'static str) {
    match database {
        Database::Sqlite(pool) => {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query(sql).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
        Database::Postgres(pool) => {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query(sql).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}

fn seen(drifted: &[Drifted]) -> Vec<(&str, &str, &str)> {
    let mut seen: Vec<_> = drifted
        .iter()
        .map(|one| (one.instance_id.as_str(), one.artifact_id.as_str(), one.reason.as_str()))
        .collect();
    seen.sort_unstable();
    seen
}

#[tokio::test]
async fn drift_is_what_is_not_as_it_was_wanted_long_ago() {
    for test in TestDatabase::both() {
        let database = Database::open(&test.config, &MIGRATIONS).await.unwrap();
        for sql in SETUP {
            run(&database, sql).await;
        }
        let store = Stores::new(&database).reconcile;
        let gateways = [GATEWAY.to_owned(), "nobody".to_owned()];
        let waiting = [("", "late", ""), ("", "refused", "NO_ROOM")];
        assert_eq!(seen(&store.drifted(&gateways, 150).await.unwrap()), waiting);
        assert!(store.drifted(&gateways, 100).await.unwrap().is_empty(), "not long enough");
        assert!(store.drifted(&[], 150).await.unwrap().is_empty());
        let late = store.drifted(&gateways, 201).await.unwrap();
        assert_eq!(seen(&late), [("", "late", ""), ("", "newer", ""), ("", "refused", "NO_ROOM")]);
        let newer = late.iter().find(|one| one.artifact_id == "newer").unwrap();
        assert_eq!(
            (newer.revision, newer.deployment_id.as_str(), newer.event_type.as_str()),
            (5, "d5", "api.deployed")
        );

        run(&database, REPORTED).await;
        let mut all = vec![("b", "done", "NO_DISK"), ("b", "gone", "")];
        all.splice(0..0, waiting);
        assert_eq!(seen(&store.drifted(&gateways, 150).await.unwrap()), all, "those there for long enough");
        run(&database, "DELETE FROM connections WHERE id = 'c2'").await;
        assert_eq!(seen(&store.drifted(&gateways, 150).await.unwrap()), waiting, "who is away is not asked");
    }
}

#[tokio::test]
async fn a_repair_is_not_written_over_a_log_that_has_grown() {
    for test in TestDatabase::both() {
        let database = Database::open(&test.config, &MIGRATIONS).await.unwrap();
        for sql in SETUP {
            run(&database, sql).await;
        }
        let store = Stores::new(&database).reconcile;
        let repair = |artifact: &str, id: &str, seen: i64| crate::domain::reconcile::Repair {
            event_id: id.to_owned(),
            again_id: Some(format!("{id}-again")),
            event_type: "api.deployed".to_owned(),
            payload_json: "{}".to_owned(),
            artifact_id: artifact.to_owned(),
            deployment_id: "d9".to_owned(),
            seen,
        };
        let repairs = [
            repair("newer", "new-1", 4),
            repair("newer", "e4", 5),
            repair("lost", "new-2", 0),
            repair("done", "new-3", 0),
        ];
        let stranger = "0198f0c5-0000-7000-8000-000000000009";
        assert_eq!(store.repair(stranger, &repairs[2..3], 300).await.unwrap(), 0);
        let (_, before) = store.told(GATEWAY).await.unwrap().unwrap();
        assert_eq!(before.len(), 5, "each artifact once, and only artifacts");
        assert!(store.told("nobody").await.unwrap().is_none());
        let written = store.repair(GATEWAY, &repairs, 300).await.unwrap();
        let again = store.repair(GATEWAY, &repairs, 300).await.unwrap();
        let (_, after) = store.told(GATEWAY).await.unwrap().unwrap();
        assert_eq!((written, again), (2, 0), "{after:?}");
        let ids: Vec<_> =
            after.iter().filter(|one| one.revision > 7).map(|one| one.event_id.as_str()).collect();
        assert_eq!(ids, ["e4-again", "new-2"]);
    }
}
