//! The audit log. Events are recorded in the transaction of what they tell about.

use async_trait::async_trait;
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use crate::domain::audit::{Event, GENESIS, link};

/// Writes to the audit log within a transaction.
#[async_trait]
pub(crate) trait Record {
    /// Adds an event to its chain. The chain's head stays locked until the transaction ends: record last,
    /// after all other statements, so that locks are taken in one order everywhere.
    async fn record(&mut self, event: &Event) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Record for Connection {
    async fn record(&mut self, event: &Event) -> sqlx::Result<()> {
        let chain = event.chain.name();
        let (sequence, previous): (i64, Vec<u8>) = sqlx::query_as(
            "INSERT INTO audit_heads (chain, sequence, hash, exported) VALUES ($1, 1, $2, 0)
             ON CONFLICT (chain) DO UPDATE SET sequence = audit_heads.sequence + 1
             RETURNING sequence, hash",
        )
        .bind(&chain)
        .bind(GENESIS.as_slice())
        .fetch_one(&mut *self)
        .await?;
        let body = event.canonical(sequence);
        let hash = link(&previous, &body);
        sqlx::query("INSERT INTO audit_events (chain, sequence, at, body, hash) VALUES ($1, $2, $3, $4, $5)")
            .bind(&chain)
            .bind(sequence)
            .bind(event.at)
            .bind(&body)
            .bind(hash.as_slice())
            .execute(&mut *self)
            .await?;
        sqlx::query("UPDATE audit_heads SET hash = $2 WHERE chain = $1")
            .bind(&chain)
            .bind(hash.as_slice())
            .execute(&mut *self)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use service_kit::{ClientInfo, Clock, Ids, db::Database, testing::TestDatabase};

    use super::Record as _;
    use crate::{
        domain::audit::{Action, Chain, Event, GENESIS, Journal, Recorded, link},
        store,
    };

    fn event(chain: &str) -> Event {
        let clock = Clock::fixed(1_766_000_000_000);
        let journal = Journal::new(clock.clone(), Ids::new(clock));
        journal.event(Chain::User(chain.to_owned()), Action::Login, &ClientInfo::default())
    }

    /// Records in a transaction of its own, and says whether to keep it.
    async fn record(database: &Database, event: &Event, commit: bool) {
        match database {
            Database::Sqlite(pool) => {
                let mut tx = pool.begin().await.unwrap();
                tx.record(event).await.unwrap();
                if commit { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
            }
            Database::Postgres(pool) => {
                let mut tx = pool.begin().await.unwrap();
                tx.record(event).await.unwrap();
                if commit { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
            }
        }
    }

    #[tokio::test]
    async fn events_side_by_side_leave_no_gap_and_one_that_is_rolled_back_leaves_nothing() {
        for test in TestDatabase::both() {
            let database = Database::open(&test.config, &sqlx::migrate!()).await.unwrap();
            let log = store::open(&database).audit_log;
            let writers: Vec<_> = (0..75)
                .map(|n| {
                    let database = database.clone();
                    // Two of three are kept, and half of those are of another chain.
                    let chain = if n % 2 == 0 { "a" } else { "b" };
                    tokio::spawn(async move { record(&database, &event(chain), n % 3 != 0).await })
                })
                .collect();
            for writer in writers {
                writer.await.unwrap();
            }
            let mut total = 0;
            for chain in ["user:a", "user:b"] {
                let rows = log.events(chain, 0, i64::MAX, 100).await.unwrap();
                let mut hash = GENESIS.to_vec();
                for (sequence, row) in (1..).zip(&rows) {
                    assert_eq!((row.sequence, row.at), (sequence, 1_766_000_000_000));
                    assert_eq!(Recorded::read(&row.body).unwrap().sequence, sequence);
                    assert_eq!(row.hash, link(&hash, &row.body));
                    hash.clone_from(&row.hash);
                }
                let head = log.head(chain).await.unwrap().unwrap();
                assert_eq!((head.sequence, head.hash), (rows.len() as i64, hash));
                total += rows.len();
            }
            assert_eq!(total, 50);
            record(&database, &event("c"), false).await;
            assert_eq!(log.head("user:c").await.unwrap(), None);
            assert_eq!(log.last("user:c").await.unwrap(), 0);
            record(&database, &event("c"), true).await;
            assert_eq!(log.last("user:c").await.unwrap(), 1);
        }
    }
}
