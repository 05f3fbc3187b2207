//! Where the SQL of the two databases differs. Statements about many rows take them as one parameter: a JSON
//! array of arrays, so that the text of a statement is the same for any number of rows.

use serde::Serialize;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection};
use trait_gen::trait_gen;

/// Locks rows in PostgreSQL, for whoever changes them or what hangs on them. In SQLite a transaction is alone.
const LOCKING: &str = " FOR NO KEY UPDATE";
/// Leaves out the rows that somebody else has locked.
const SKIPPING: &str = " SKIP LOCKED";

/// A database that statements are written for.
pub(super) trait Dialect {
    /// The statement for this database.
    fn sql(text: &'static str) -> AssertSqlSafe<String>;
}

#[trait_gen(Database -> SqliteConnection, SqlitePool)]
impl Dialect for Database {
    fn sql(text: &'static str) -> AssertSqlSafe<String> {
        AssertSqlSafe(text.replace(LOCKING, "").replace(SKIPPING, ""))
    }
}

#[trait_gen(Database -> PgConnection, PostgresPool)]
impl Dialect for Database {
    fn sql(text: &'static str) -> AssertSqlSafe<String> {
        AssertSqlSafe(text.replace("json_each($1)", "json_array_elements(CAST($1 AS json))"))
    }
}

/// The rows of a statement, `json_each($1)` in its text.
pub(super) fn rows<T: Serialize>(rows: &[T]) -> Result<String> {
    serde_json::to_string(rows).map_err(Error::internal)
}
