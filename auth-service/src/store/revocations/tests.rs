use service_kit::{
    db::{Database, PostgresPool, SqlitePool},
    testing::TestDatabase,
};
use trait_gen::trait_gen;

use super::{RevocationStore as _, Revoke as _};
use crate::store::SqlStore;

const PEOPLE: &str = "
INSERT INTO users (id, email, email_canonical, name, created_at, updated_at) VALUES ('u', 'u', 'u', 'u', 0, 0);
INSERT INTO service_accounts (id, organization_id, name, role, created_by, created_at)
  VALUES ('a', 'o', 'n', 'viewer', 'u', 0);
INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at) VALUES ('s', 'u', 0, 0, 100)";

const TOKEN: &str = "INSERT INTO opaque_tokens
  (id, kind, owner_id, lookup, salt, hash, name, scopes, created_by, created_at, expires_at)
  VALUES ($1, $2, $3, $1, $4, $4, '', '', 'u', 0, 100)";

/// The rules of a pool of one kind.
trait Case {
    async fn write(&self, sql: &'static str);
    async fn tokens_live_as_long_as_what_is_behind_them(self);
    async fn pages_go_on_where_they_ended(self);
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
impl Case for Pool {
    async fn write(&self, sql: &'static str) {
        let mut tx = self.begin().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn tokens_live_as_long_as_what_is_behind_them(self) {
        self.write(PEOPLE).await;
        let mut tx = self.begin().await.unwrap();
        for (id, kind, owner) in [("p", "pat", "u"), ("k", "svc", "a"), ("lost", "svc", "nobody")] {
            let add = sqlx::query(TOKEN).bind(id).bind(kind).bind(owner).bind(&b"x"[..]);
            add.execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
        let store = SqlStore { pool: self };
        let live = async |now: i64| {
            let mut live = Vec::new();
            for (sid, owner) in
                [("s", "u"), ("p", "u"), ("k", "a"), ("lost", "nobody"), ("s", "a"), ("x", "u")]
            {
                if store.is_live(sid, owner, now).await.unwrap() {
                    live.push(sid);
                }
            }
            live
        };
        assert_eq!(live(99).await, ["s", "p", "k"]);
        assert!(live(100).await.is_empty(), "all have expired");
        store.pool.write("UPDATE users SET disabled_at = 1").await;
        assert_eq!(live(99).await, ["k"]);
        store.pool.write("UPDATE users SET disabled_at = NULL; UPDATE sessions SET ended_at = 1").await;
        assert_eq!(live(99).await, ["p", "k"]);
        store.pool.write("UPDATE opaque_tokens SET revoked_at = 1 WHERE id = 'p'").await;
        assert_eq!(live(99).await, ["k"]);
        let mut tx = store.pool.begin().await.unwrap();
        tx.revoke(&["k".to_owned()], 200).await.unwrap();
        assert_eq!(live(99).await, ["k"], "before the commit");
        tx.commit().await.unwrap();
        assert!(live(99).await.is_empty());
        assert_eq!(store.prune(200).await.unwrap(), 1);
        assert_eq!(live(99).await, ["k"]);
        store.pool.write("DELETE FROM service_accounts").await;
        assert!(live(99).await.is_empty());
    }

    async fn pages_go_on_where_they_ended(self) {
        let store = SqlStore { pool: self };
        let mut tx = store.pool.begin().await.unwrap();
        let ids: Vec<String> = (1..=5).map(|id| format!("s{id}")).collect();
        tx.revoke(&ids[..2], 100).await.unwrap();
        tx.revoke(&ids[2..], 200).await.unwrap();
        tx.commit().await.unwrap();
        let page = async |after, most| {
            let page = store.after(after, most).await.unwrap();
            let ids: Vec<String> = page.revocations.into_iter().map(|one| one.session_id).collect();
            (ids, page.position, page.is_last)
        };
        assert_eq!(page(0, 10).await, (ids.clone(), 5, true));
        assert_eq!(page(0, 2).await, (ids[..2].to_vec(), 2, false));
        assert_eq!(page(2, 3).await, (ids[2..].to_vec(), 5, false));
        assert_eq!(page(5, 3).await, (Vec::new(), 5, true));
        // Of another life of the database: everything again.
        assert_eq!(page(6, 10).await, (ids.clone(), 5, true));
        assert_eq!(store.prune(150).await.unwrap(), 2);
        assert_eq!(page(0, 3).await, (ids[2..].to_vec(), 5, false));
        assert_eq!(store.prune(200).await.unwrap(), 3);
        assert_eq!(page(0, 10).await, (Vec::new(), 5, true));
    }
}

async fn open(database: &TestDatabase) -> Database {
    Database::open(&database.config, &sqlx::migrate!()).await.unwrap()
}

#[tokio::test]
async fn tokens_live_as_long_as_what_is_behind_them() {
    for database in TestDatabase::both() {
        match open(&database).await {
            Database::Sqlite(pool) => pool.tokens_live_as_long_as_what_is_behind_them().await,
            Database::Postgres(pool) => pool.tokens_live_as_long_as_what_is_behind_them().await,
        }
    }
}

#[tokio::test]
async fn pages_go_on_where_they_ended() {
    for database in TestDatabase::both() {
        match open(&database).await {
            Database::Sqlite(pool) => pool.pages_go_on_where_they_ended().await,
            Database::Postgres(pool) => pool.pages_go_on_where_they_ended().await,
        }
    }
}
