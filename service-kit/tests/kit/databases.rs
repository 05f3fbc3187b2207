use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use service_kit::{
    Error, Kind, Result,
    db::{Database, is_unique_violation},
    outbox::{Append as _, Entries, Entry, Nudge, Relay, Sink},
    shutdown::Tasks,
    testing::TestDatabase,
};
use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};
use tokio::sync::Mutex;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("tests/migrations");

async fn each() -> Vec<(TestDatabase, Database)> {
    let mut open = Vec::new();
    for test in TestDatabase::both() {
        let database = Database::open(&test.config, &MIGRATIONS).await.unwrap();
        open.push((test, database));
    }
    open
}

macro_rules! on {
    ($database:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite($pool) => $body,
            Database::Postgres($pool) => $body,
        }
    };
}

#[tokio::test]
async fn the_same_sql_writes_and_reads_every_column_kind() {
    for (_keep, database) in each().await {
        database.ping().await.unwrap();
        on!(&database, pool => {
            let mut tx = pool.begin().await.unwrap();
            let insert = "INSERT INTO things (id, name, active, data, made_at) VALUES ($1, $2, $3, $4, $5)";
            for id in ["a", "b"] {
                sqlx::query(insert).bind(id).bind(format!("name {id}")).bind(true).bind(vec![0_u8, 255]).bind(7_i64)
                    .execute(&mut *tx).await.unwrap();
            }
            tx.commit().await.unwrap();
            let row: (String, bool, Vec<u8>, i64) =
                sqlx::query_as("SELECT name, active, data, made_at FROM things WHERE id = $1").bind("b")
                    .fetch_one(pool.read()).await.unwrap();
            assert_eq!(row, ("name b".to_owned(), true, vec![0, 255], 7));

            let mut tx = pool.begin().await.unwrap();
            let error = sqlx::query(insert).bind("c").bind("name a").bind(false).bind(Vec::<u8>::new()).bind(8_i64)
                .execute(&mut *tx).await.unwrap_err();
            assert!(is_unique_violation(&error), "{error}");
        });
        database.close().await;
    }
}

#[tokio::test]
async fn what_goes_well_another_time_is_unavailable_and_the_rest_our_fault() {
    for (keep, database) in each().await {
        let kind = |error: sqlx::Error| Error::from(error).kind();
        on!(&database, pool => {
            let mut tx = pool.begin().await.unwrap();
            let error = sqlx::query("SELECT nonsense").execute(&mut *tx).await.unwrap_err();
            assert_eq!(kind(error), Kind::Internal);
        });
        match &database {
            Database::Sqlite(pool) => {
                let _writer = pool.begin().await.unwrap();
                let options: SqliteConnectOptions = keep.config.url.expose_secret().parse().unwrap();
                let mut other = options.busy_timeout(Duration::ZERO).connect().await.unwrap();
                let error = sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap_err();
                assert_eq!(kind(error), Kind::Unavailable);
            }
            Database::Postgres(pool) => {
                for code in ["08006", "40001", "40P01", "53100", "53300", "57P01", "57P03", "57014", "55P03"]
                {
                    let raise = format!("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$");
                    let error =
                        sqlx::raw_sql(sqlx::AssertSqlSafe(raise)).execute(pool.read()).await.unwrap_err();
                    let expected =
                        if matches!(code, "57014" | "55P03") { Kind::Internal } else { Kind::Unavailable };
                    assert_eq!(kind(error), expected, "{code}");
                }
            }
        }
        database.close().await;
    }
}

/// Remembers what it got; fails the first `failures` times after having got it.
#[derive(Default)]
struct Remembers {
    got: Mutex<Vec<String>>,
    sizes: Mutex<Vec<usize>>,
    failures: Mutex<u32>,
}

#[async_trait]
impl Sink for Remembers {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        self.sizes.lock().await.push(entries.len());
        let mut got = self.got.lock().await;
        for entry in entries.iter().filter(|entry| !got.contains(&entry.id)).collect::<Vec<_>>() {
            got.push(entry.id.clone());
        }
        let mut failures = self.failures.lock().await;
        if *failures > 0 {
            *failures -= 1;
            return Err(Error::unavailable("not now", anyhow::anyhow!("test")));
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_outbox_delivers_in_order_of_commits_and_survives_failures() {
    for (_keep, database) in each().await {
        on!(database.clone(), pool => {
            let (tasks, nudge) = (Tasks::new(), Nudge::default());
            let sink = Arc::new(Remembers { failures: Mutex::new(3), ..Remembers::default() });
            let committed = Arc::new(Mutex::new(Vec::new()));
            let mut writers = Vec::new();
            for writer in 0..8 {
                let (pool, committed, nudge) = (pool.clone(), committed.clone(), nudge.clone());
                writers.push(tokio::spawn(async move {
                    for number in 0..5 {
                        let mut tx = pool.begin().await.unwrap();
                        let id = format!("{writer}-{number}");
                        tx.append("t", &id, b"x".to_vec()).await.unwrap();
                        // While this transaction is open no other can have a position.
                        committed.lock().await.push(id);
                        if number == 4 {
                            committed.lock().await.pop();
                            tx.rollback().await.unwrap();
                        } else {
                            tx.commit().await.unwrap();
                            nudge.now();
                        }
                    }
                }));
            }
            Relay::spawn(&tasks, "t", Arc::new(pool.clone()), sink.clone(), nudge);
            for writer in writers {
                writer.await.unwrap();
            }
            let complete = async {
                while sink.got.lock().await.len() < 32 || !pool.oldest("t", 1).await.unwrap().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), complete).await.expect("everything is delivered");
            assert_eq!(*sink.got.lock().await, *committed.lock().await);
            assert!(tasks.drain(Duration::from_secs(5)).await);
        });
    }
}

#[tokio::test]
async fn many_entries_of_one_change_keep_their_order_in_full_batches() {
    for (_keep, database) in each().await {
        on!(database.clone(), pool => {
            let mut expected: Vec<String> = (0..2_300).map(|number| format!("all-{number}")).collect();
            let mut tx = pool.begin().await.unwrap();
            tx.append("t", "first", b"x".to_vec()).await.unwrap();
            tx.append("other", "elsewhere", Vec::new()).await.unwrap();
            let entries = expected.iter().map(|id| (id.clone(), id.clone().into_bytes())).collect();
            tx.append_all("t", entries).await.unwrap();
            tx.append_all("t", Vec::new()).await.unwrap();
            tx.append("t", "last", b"x".to_vec()).await.unwrap();
            tx.commit().await.unwrap();
            let stored = pool.oldest("t", 10_000).await.unwrap();
            assert_eq!(stored.iter().map(|entry| entry.position).collect::<Vec<_>>(), (1..=2_302).collect::<Vec<_>>());
            assert_eq!((stored[7].id.as_str(), stored[7].payload.as_slice()), ("all-6", &b"all-6"[..]));

            let (tasks, sink) = (Tasks::new(), Arc::new(Remembers::default()));
            Relay::spawn(&tasks, "t", Arc::new(pool.clone()), sink.clone(), Nudge::default());
            let complete = async {
                while !pool.oldest("t", 1).await.unwrap().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), complete).await.expect("everything is delivered");
            expected.insert(0, "first".to_owned());
            expected.push("last".to_owned());
            assert_eq!(*sink.got.lock().await, expected);
            assert_eq!(*sink.sizes.lock().await, [500, 500, 500, 500, 302]);
            assert_eq!(pool.oldest("other", 2).await.unwrap().len(), 1, "another topic's entries stay");
            assert!(tasks.drain(Duration::from_secs(5)).await);
        });
    }
}

#[tokio::test]
async fn a_bad_url_or_schema_is_named() {
    let mut config = TestDatabase::sqlite().config.clone();
    config.url = "mysql://x".to_owned().into();
    let error = Database::open(&config, &MIGRATIONS).await.unwrap_err().to_string();
    assert!(error.contains("database.url"), "{error}");
    let mut config = TestDatabase::postgres().config.clone();
    config.schema = "a\"b".to_owned();
    let error = Database::open(&config, &MIGRATIONS).await.unwrap_err().to_string();
    assert!(error.contains("database.schema"), "{error}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_not_made() {
    let test = TestDatabase::sqlite();
    assert!(Database::open_existing(&test.config, &MIGRATIONS).await.is_err());
    assert!(Database::open_existing(&test.config, &MIGRATIONS).await.is_err(), "nor is it made by asking");

    let test = TestDatabase::postgres();
    let error = Database::open_existing(&test.config, &MIGRATIONS).await.unwrap_err().to_string();
    assert!(error.contains("database.url") && error.contains("no tables"), "{error}");
    let config = TestDatabase::postgres().config;
    let Database::Postgres(pool) = Database::open(&config, &MIGRATIONS).await.unwrap() else { panic!() };
    let found: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pg_namespace WHERE nspname = $1")
        .bind(&test.config.schema)
        .fetch_one(pool.read())
        .await
        .unwrap();
    assert_eq!(found, 0);
}

#[tokio::test]
async fn a_database_of_another_service_or_version_is_refused_by_name() {
    for test in TestDatabase::both() {
        let database = Database::open(&test.config, &MIGRATIONS).await.unwrap();
        Database::open_existing(&test.config, &MIGRATIONS).await.unwrap().ping().await.unwrap();
        let spoil = "UPDATE _sqlx_migrations SET checksum = $1";
        on!(&database, pool => {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query(spoil).bind(&b"another"[..]).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        });
        let error = Database::open_existing(&test.config, &MIGRATIONS).await.unwrap_err().to_string();
        assert!(error.contains("database.url") && error.contains("another service"), "{error}");
    }
}
