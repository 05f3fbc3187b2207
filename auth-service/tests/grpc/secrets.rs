//! What is stored and shown: no secret, only what the rules allow.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::LogoutRequest;
use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    harness::{Auth, PASSWORD, login, on_both, refresh, with_token},
    mail::letter,
};

/// Every row of every table of the service as text; bytes are hexadecimal in lower case.
pub(crate) async fn dump(auth: &Auth) -> String {
    let url = auth.database.config.url.expose_secret();
    let rows = if url.starts_with("sqlite:") {
        dump_sqlite(&SqlitePool::connect(url).await.unwrap()).await
    } else {
        dump_postgres(&PgPool::connect(url).await.unwrap(), &auth.database.config.schema).await
    };
    rows.join("\n")
}

async fn dump_sqlite(pool: &SqlitePool) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(pool)
        .await
        .unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
            .bind(&table)
            .fetch_all(pool)
            .await
            .unwrap();
        let row = columns.iter().map(|c| format!("quote(\"{c}\")")).collect::<Vec<_>>().join(" || '|' || ");
        let select = AssertSqlSafe(format!("SELECT '{table}: ' || lower({row}) FROM \"{table}\""));
        rows.extend(sqlx::query_scalar::<_, String>(select).fetch_all(pool).await.unwrap());
    }
    pool.close().await;
    rows
}

async fn dump_postgres(pool: &PgPool, schema: &str) -> Vec<String> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = $1")
            .bind(schema)
            .fetch_all(pool)
            .await
            .unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let select =
            AssertSqlSafe(format!("SELECT '{table}: ' || lower(t::text) FROM \"{schema}\".\"{table}\" t"));
        rows.extend(sqlx::query_scalar::<_, String>(select).fetch_all(pool).await.unwrap());
    }
    pool.close().await;
    rows
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn the_database_holds_no_secret() {
    on_both(async |auth: Auth| {
        let (_, first) = auth.user("jane@example.com").await;
        let second = refresh(&auth.client(), &first.refresh_token).await.unwrap();
        login(&auth.client(), "jane@example.com", "canary-wrong-pass").await.unwrap_err();
        login(&auth.client(), "nobody-at-all@example.com", "canary-wrong-pass").await.unwrap_err();
        auth.client().logout(with_token(&second.access_token, LogoutRequest {})).await.unwrap();

        let dump = dump(&auth).await;
        for there in
            ["users: ", "jane@example.com", "$argon2id$v=19$m=19456,t=2,p=1$", "signing_keys: ", "logout"]
        {
            assert!(dump.contains(there), "the dump is not one: {there}");
        }
        assert!(!dump.contains("canary") && !dump.contains(&hex(PASSWORD.as_bytes())));
        assert!(!dump.contains("nobody-at-all"), "an address without an account is stored");
        // With a grace the successor of a token is kept, sealed.
        let auth = auth.restart(|config| config.session.refresh_grace = 10).await;
        let third = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        let fourth = refresh(&auth.client(), &third.refresh_token).await.unwrap();
        let dump = dump + &self::dump(&auth).await;
        assert!(dump.contains("known_devices: "), "the dump lacks the devices");
        for token in [
            &first.refresh_token,
            &first.device_token,
            &second.refresh_token,
            &third.refresh_token,
            &third.device_token,
            &fourth.refresh_token,
        ] {
            let raw = URL_SAFE_NO_PAD.decode(token).unwrap();
            let forms = [token.to_lowercase(), hex(token.as_bytes()), hex(&raw)];
            assert!(forms.iter().all(|form| !dump.contains(form)), "a token is stored");
        }
        for token in [&first.access_token, &second.access_token] {
            let signature = token.rsplit('.').next().unwrap().to_lowercase();
            assert!(!dump.contains(&signature), "an access token is stored");
        }
        // The object identifier of an EC key, as it stands in every PKCS#8 key that is not encrypted.
        assert!(!dump.contains("2a8648ce3d0201"), "a signing key is stored in clear");
    })
    .await;
}

#[tokio::test]
async fn a_login_hashes_again_when_the_parameters_have_changed() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        let auth = auth.restart(|config| config.password.memory_kib = 20_480).await;
        assert!(dump(&auth).await.contains("$m=19456,t=2,p=1$"));
        login(&auth.client(), "jane@example.com", "not-her-password").await.unwrap_err();
        assert!(dump(&auth).await.contains("$m=19456,t=2,p=1$"));
        for _ in 0..2 {
            login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
            let dump = dump(&auth).await;
            assert!(dump.contains("$m=20480,t=2,p=1$") && !dump.contains("$m=19456,"));
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_over_is_forgotten() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        login(&auth.client(), "joan@example.com", "not-her-password").await.unwrap_err();
        let dump_before = dump(&auth).await;
        for table in ["sessions: ", "login_throttles: ", "pending: "] {
            assert!(dump_before.contains(table), "{table}");
        }
        auth.clock.advance_ms(31 * 24 * 3_600 * 1_000);
        let auth = auth.restart(|_| {}).await;
        let gone = async {
            loop {
                let rows = dump(&auth).await;
                let old = ["sessions: ", "refresh_tokens: ", "login_throttles: ", "pending: "];
                if !old.iter().any(|table| rows.contains(table)) {
                    assert!(rows.contains("users: "), "{rows}");
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("old rows are deleted");
    })
    .await;
}

async fn admin(auth: &Auth, path: &str) -> String {
    let mut socket = tokio::net::TcpStream::connect(auth.running.admin_addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn the_admin_port_tells_of_the_database_and_of_logins() {
    let config = service_kit::telemetry::TelemetryConfig {
        log: "error".to_owned(),
        format: service_kit::telemetry::LogFormat::Text,
        otlp_endpoint: String::new(),
    };
    let _telemetry = service_kit::telemetry::init(&config, "auth-service").unwrap();
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        login(&auth.client(), "jane@example.com", "not-her-password").await.unwrap_err();
        letter(&auth, 1).await;
        assert!(admin(&auth, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = admin(&auth, "/metrics").await;
        for outcome in ["success", "failure"] {
            let counter = format!("tollgate_logins_total{{outcome=\"{outcome}\"}} ");
            assert!(metrics.contains(&counter), "{metrics}");
        }
        assert!(metrics.contains("tollgate_mail_total{outcome=\"sent\"} "), "{metrics}");
        assert!(!metrics.contains("jane") && !metrics.contains("canary"));
    })
    .await;
}
