//! Looks into the database of a running service, past the service.

use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

use crate::harness::Auth;

/// The rows of a query that selects one text.
pub(crate) async fn texts(auth: &Auth, query: &str) -> Vec<String> {
    let url = auth.database.config.url.expose_secret();
    let query = AssertSqlSafe(query.to_owned());
    if url.starts_with("sqlite:") {
        let pool = SqlitePool::connect(url).await.unwrap();
        sqlx::query_scalar(query).fetch_all(&pool).await.unwrap()
    } else {
        sqlx::query_scalar(query).fetch_all(&postgres(auth).await).await.unwrap()
    }
}

/// Changes what no call changes.
pub(crate) async fn execute(auth: &Auth, statement: &str) {
    let url = auth.database.config.url.expose_secret();
    let statement = AssertSqlSafe(statement.to_owned());
    if url.starts_with("sqlite:") {
        let pool = SqlitePool::connect(url).await.unwrap();
        sqlx::query(statement).execute(&pool).await.unwrap();
    } else {
        sqlx::query(statement).execute(&postgres(auth).await).await.unwrap();
    }
}

async fn postgres(auth: &Auth) -> PgPool {
    let config = &auth.database.config;
    let options: sqlx::postgres::PgConnectOptions = config.url.expose_secret().parse().unwrap();
    let options = options.options([("search_path", config.schema.as_str())]);
    sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}
