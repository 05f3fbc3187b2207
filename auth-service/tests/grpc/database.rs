//! A look into the database of a running service.

use std::str::FromStr as _;

use secrecy::ExposeSecret as _;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, SqliteConnection, postgres::PgConnectOptions,
};

use crate::harness::Setup;

/// The rows of a statement that returns one text each; or what it changes, when it returns none.
pub(crate) async fn texts(setup: &Setup, sql: &'static str) -> Vec<String> {
    let config = &setup.database.config;
    let url = config.url.expose_secret();
    if url.starts_with("sqlite:") {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
    } else {
        let options = PgConnectOptions::from_str(url).unwrap();
        let options = options.options([("search_path", config.schema.as_str())]);
        let mut connection: PgConnection = options.connect().await.unwrap();
        sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
    }
}

/// As [`texts`], of a number.
pub(crate) async fn number(setup: &Setup, sql: &'static str) -> i64 {
    texts(setup, sql).await.first().map_or(0, |text| text.parse().unwrap())
}
