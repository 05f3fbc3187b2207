//! The journal on a database in trouble.

use std::sync::Arc;

use service_kit::{Clock, Kind, db::Database, shutdown::Tasks};
use tokio::task::JoinSet;

use super::{NOW, after, all_stores, gateway, new_event};
use crate::domain::journal::Journal;

/// Every write to the log fails, as if it had stood in somebody's way, and is counted all the same.
const TROUBLE: &str = "CREATE SEQUENCE attempts;
     CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       PERFORM nextval('attempts');
       RAISE EXCEPTION USING ERRCODE = '40P01';
     END $$;
     CREATE TRIGGER trouble BEFORE UPDATE ON gateway_events FOR EACH STATEMENT EXECUTE FUNCTION trouble();";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nobodys_fault_is_not_tried_in_halves() {
    for ((_test, database), stores, ids) in all_stores().await {
        let Database::Postgres(pool) = &database else { continue };
        let mut gateways = Vec::new();
        for _ in 0..8 {
            let gateway = gateway(&stores, &ids).await;
            stores.events.append(&[new_event(&ids, &gateway, "a", "api.deployed")], &[], NOW).await.unwrap();
            gateways.push(gateway);
        }
        sqlx::raw_sql(TROUBLE).execute(pool.read()).await.unwrap();
        let tasks = Tasks::new();
        let journal = Journal::start(Arc::clone(&stores.events), Clock::system(), &tasks);
        let mut lanes = JoinSet::new();
        for gateway in gateways {
            let journal = journal.clone();
            lanes.spawn(async move { journal.deliver(after(&gateway, 0)).await.unwrap_err().kind() });
        }
        assert_eq!(lanes.join_all().await, [Kind::Unavailable; 8]);
        let attempts: i64 =
            sqlx::query_scalar("SELECT last_value FROM attempts").fetch_one(pool.read()).await.unwrap();
        assert!(attempts <= 8, "{attempts} transactions for 8 jobs");
        drop(journal);
        assert!(tasks.drain(std::time::Duration::from_secs(5)).await);
    }
}
