//! Disabling an account, on both databases.

use service_kit::{Clock, Ids, Kind, db::Database, testing::TestDatabase};

use crate::{
    domain::{accounts::set_disabled, audit::Journal},
    store,
};

const NOW: i64 = 1_766_000_000_000;

/// Jane, who is logged in twice and has tokens, and Joan, who must not be concerned.
const ROWS: [&str; 8] = [
    "INSERT INTO users (id, email, email_canonical, name, created_at, updated_at) VALUES
       ('u-jane', 'Jane@example.com', 'jane@example.com', 'Jane', 1, 1),
       ('u-joan', 'joan@example.com', 'joan@example.com', 'Joan', 1, 1)",
    "INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at, ended_at, end_reason) VALUES
       ('s-one', 'u-jane', 1, 1, 9999999999999, NULL, NULL),
       ('s-two', 'u-jane', 1, 1, 9999999999999, NULL, NULL),
       ('s-out', 'u-jane', 1, 1, 9999999999999, 2, 'LOGOUT'),
       ('s-old', 'u-jane', 1, 1, 2, NULL, NULL),
       ('s-joan', 'u-joan', 1, 1, 9999999999999, NULL, NULL)",
    "INSERT INTO opaque_tokens (id, kind, owner_id, lookup, salt, hash, name, scopes, created_by, created_at,
       expires_at, revoked_at) VALUES
       ('t-one', 'pat', 'u-jane', 'a', '', '', '', '', '', 1, 9999999999999, NULL),
       ('t-dead', 'pat', 'u-jane', 'b', '', '', '', '', '', 1, 9999999999999, 7),
       ('t-joan', 'pat', 'u-joan', 'c', '', '', '', '', '', 1, 9999999999999, NULL)",
    "INSERT INTO pending (hash, kind, user_id, payload, tries, created_at, expires_at) VALUES
       ('1', 'PASSWORD_RESET', 'u-jane', '', 0, 1, 9999999999999),
       ('2', 'CHALLENGE', 'u-jane', '', 0, 1, 9999999999999),
       ('3', 'PASSWORD_RESET', 'u-joan', '', 0, 1, 9999999999999)",
    "INSERT INTO known_devices (hash, user_id, created_at, last_used_at) VALUES
       ('1', 'u-jane', 1, 1), ('2', 'u-joan', 1, 1)",
    "INSERT INTO device_grants (device_hash, user_code, client_id, scope, address, status, user_id, polled_at,
       poll_interval, created_at, expires_at) VALUES
       ('1', 'x', '', '', '', 'APPROVED', 'u-jane', 1, 1, 1, 9999999999999)",
    "INSERT INTO totp (user_id, sealed_secret, last_step, tried_step, tries) VALUES ('u-jane', '', 0, 0, 0)",
    "INSERT INTO credentials (user_id, password_hash, changed_at) VALUES ('u-jane', 'x', 1)",
];

async fn open(test: &TestDatabase) -> Database {
    let database = Database::open(&test.config, &sqlx::migrate!()).await.unwrap();
    for statement in ROWS {
        match &database {
            Database::Sqlite(pool) => {
                let mut tx = pool.begin().await.unwrap();
                sqlx::query(statement).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
            Database::Postgres(pool) => {
                sqlx::query(statement).execute(pool.read()).await.unwrap();
            }
        }
    }
    database
}

/// The first column of a query.
async fn texts(database: &Database, query: &'static str) -> Vec<String> {
    match database {
        Database::Sqlite(pool) => sqlx::query_scalar(query).fetch_all(pool.read()).await.unwrap(),
        Database::Postgres(pool) => sqlx::query_scalar(query).fetch_all(pool.read()).await.unwrap(),
    }
}

#[tokio::test]
async fn disabling_ends_everything_and_enabling_revives_nothing() {
    for test in TestDatabase::both() {
        let database = open(&test).await;
        let stores = store::open(&database);
        let clock = Clock::fixed(NOW);
        let journal = Journal::new(clock.clone(), Ids::new(clock));
        let set = async |email: &str, disabled| set_disabled(&stores, &journal, email, disabled).await;

        let unknown = set("nobody@example.com", true).await.unwrap_err();
        assert_eq!(unknown.kind(), Kind::NotFound);
        assert_eq!(set("jane", true).await.unwrap_err().kind(), Kind::InvalidArgument);
        assert!(!set("jane@example.com", false).await.unwrap());
        assert!(texts(&database, "SELECT body FROM audit_events").await.is_empty());

        assert!(set("JANE@example.com", true).await.unwrap());
        assert!(!set("JANE@example.com", true).await.unwrap());
        let contact = stores.accounts.contact("jane@example.com").await.unwrap().unwrap();
        assert!(contact.disabled);
        let ended = "SELECT id FROM sessions WHERE end_reason = 'DISABLED' ORDER BY id";
        assert_eq!(texts(&database, ended).await, ["s-one", "s-two"]);
        let revoked = "SELECT id FROM opaque_tokens WHERE revoked_at IS NOT NULL ORDER BY id";
        assert_eq!(texts(&database, revoked).await, ["t-dead", "t-one"]);
        let told = "SELECT session_id FROM revocations ORDER BY session_id";
        assert_eq!(texts(&database, told).await, ["s-one", "s-two", "t-one"]);
        // Of both tables only Joan's are left.
        let left = "SELECT user_id FROM pending UNION ALL SELECT user_id FROM known_devices
                    UNION ALL SELECT user_id FROM device_grants";
        assert_eq!(texts(&database, left).await, ["u-joan", "u-joan"]);
        assert_eq!(texts(&database, "SELECT user_id FROM totp").await, ["u-jane"]);

        assert!(set("jane@example.com", true).await.is_ok_and(|changed| !changed));
        assert!(set("jane@example.com", false).await.unwrap());
        let contact = stores.accounts.contact("jane@example.com").await.unwrap().unwrap();
        assert!(!contact.disabled);
        assert_eq!(texts(&database, revoked).await, ["t-dead", "t-one"]);
        assert_eq!(texts(&database, told).await.len(), 3);
        let log = texts(&database, "SELECT body FROM audit_events ORDER BY sequence").await;
        let [disabled, enabled] = log.as_slice() else { panic!("two events: {log:?}") };
        for (event, action) in [(disabled, "auth.account.disable"), (enabled, "auth.account.enable")] {
            let says = ["\"user:u-jane\"", &format!("\"{action}\",true,\"command line\"")];
            assert!(says.iter().all(|part| event.contains(part)), "{event}");
        }
    }
}
