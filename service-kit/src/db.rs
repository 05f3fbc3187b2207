//! Databases: SQLite with one writer and several readers, or PostgreSQL with one pool.
//!
//! Stores are written once over [`SqlitePool`] and [`PostgresPool`], which offer the same two ways in:
//! `read()` for a query, `begin()` for a transaction. SQL uses `$1` placeholders and portable columns.

use std::{path::Path, str::FromStr as _, time::Duration};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sqlx::{
    ConnectOptions as _, Executor as _, PgPool, Postgres, Sqlite, Transaction,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// The `[database]` section of a service's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: SecretString,
    /// The most connections of a PostgreSQL pool, or readers of SQLite.
    pub max_connections: u32,
    /// The PostgreSQL schema of the service; made when it does not exist.
    pub schema: String,
    /// How much of a SQLite file each reader keeps in memory, in KiB; the writer keeps twice as much.
    pub cache_kib: u32,
}

/// An open database.
#[derive(Debug, Clone)]
pub enum Database {
    /// One file.
    Sqlite(SqlitePool),
    /// A server.
    Postgres(PostgresPool),
}

/// SQLite: writers queue for one connection, readers have their own.
#[derive(Debug, Clone)]
pub struct SqlitePool {
    writer: sqlx::SqlitePool,
    readers: sqlx::SqlitePool,
}

/// PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresPool(PgPool);

/// The migrations that a database has seen, as sqlx notes them.
const APPLIED: &str = "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version";

impl Database {
    /// Opens the database and brings its schema up to date.
    pub async fn open(config: &DatabaseConfig, migrations: &Migrator) -> anyhow::Result<Self> {
        let database = Self::connect(config, true).await?;
        match &database {
            Self::Sqlite(pool) => {
                migrations.run(&pool.writer).await.context("cannot migrate the SQLite database")?;
            }
            Self::Postgres(pool) => {
                pool.make_schema(&config.schema).await?;
                migrations.run(&pool.0).await.context("cannot migrate the PostgreSQL database")?;
            }
        }
        Ok(database)
    }

    /// Opens a database that is there, as it is: nothing is made or migrated. For commands beside a
    /// running service, which must not take a wrong name for an empty database: an error unless it has
    /// exactly the tables that `migrations` make.
    pub async fn open_existing(config: &DatabaseConfig, migrations: &Migrator) -> anyhow::Result<Self> {
        let database = Self::connect(config, false).await?;
        let expected: Vec<(i64, Vec<u8>)> =
            migrations.iter().map(|one| (one.version, one.checksum.to_vec())).collect();
        let applied: sqlx::Result<Vec<(i64, Vec<u8>)>> = match &database {
            Self::Sqlite(pool) => sqlx::query_as(APPLIED).fetch_all(pool.read()).await,
            Self::Postgres(pool) => sqlx::query_as(APPLIED).fetch_all(pool.read()).await,
        };
        let problem = match applied {
            // No such table; anything else is a problem of the connection.
            Err(sqlx::Error::Database(_)) => "it has no tables of this service",
            Err(error) => return Err(error).context("cannot read the database"),
            Ok(applied) if applied == expected => return Ok(database),
            Ok(_) => "its tables are of another service or version",
        };
        anyhow::bail!("is database.url the right one, and database.schema? {problem}")
    }

    async fn connect(config: &DatabaseConfig, create: bool) -> anyhow::Result<Self> {
        let url = config.url.expose_secret();
        if url.starts_with("sqlite:") {
            Ok(Self::Sqlite(SqlitePool::open(url, config, create).await?))
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Ok(Self::Postgres(PostgresPool::open(url, config).await?))
        } else {
            anyhow::bail!("database.url must start with `sqlite:` or `postgres://`")
        }
    }

    /// Fails when the database does not answer: readiness.
    pub async fn ping(&self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(pool) => pool.readers.execute("SELECT 1").await.map(drop),
            Self::Postgres(pool) => pool.0.execute("SELECT 1").await.map(drop),
        }
    }

    /// Waits for queries under way and closes all connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => {
                pool.readers.close().await;
                pool.writer.close().await;
            }
            Self::Postgres(pool) => pool.0.close().await,
        }
    }
}

impl SqlitePool {
    async fn open(url: &str, config: &DatabaseConfig, create: bool) -> anyhow::Result<Self> {
        anyhow::ensure!(config.cache_kib > 0, "database.cache_kib must be at least 1");
        // Negative: a size, and not a number of pages.
        let cache = |times: u64| format!("-{}", times * u64::from(config.cache_kib));
        let options = SqliteConnectOptions::from_str(url)
            .context("database.url is not a SQLite URL")?
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            // WAL with NORMAL survives a crash of the process without loss; FULL also a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10))
            .foreign_keys(true)
            // Whoever commits writes the log back when it is this long, in pages: seldom, but not all of the disk.
            .pragma("wal_autocheckpoint", "4000")
            // A batch of rows comes over to us in one go, not with a change of threads for each fifty.
            .row_buffer_size(1_024)
            .disable_statement_logging();
        let file = options.get_filename();
        if create {
            make_file(file).await?;
        }
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            // Twice the cache of a reader: a batch goes through many pages of many indexes.
            .connect_with(options.clone().pragma("cache_size", cache(2)))
            .await
            .with_context(|| format!("cannot open {}", file.display()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(config.max_connections.max(1))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(
                options.create_if_missing(false).pragma("query_only", "ON").pragma("cache_size", cache(1)),
            );
        Ok(Self { writer, readers })
    }

    /// Where queries run.
    pub fn read(&self) -> &sqlx::SqlitePool {
        &self.readers
    }

    /// Starts a writing transaction; it waits here for its turn, and not in the middle. What it does is done under
    /// the idempotency key of the call, if there is one.
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        crate::idempotency::perform(&mut *tx).await?;
        Ok(tx)
    }
}

impl PostgresPool {
    async fn open(url: &str, config: &DatabaseConfig) -> anyhow::Result<Self> {
        let schema = config.schema.as_str();
        anyhow::ensure!(
            !schema.is_empty()
                && schema.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "database.schema must consist of a-z, 0-9 and _"
        );
        let options = PgConnectOptions::from_str(url)
            .context("database.url is not a PostgreSQL URL")?
            .options([("search_path", schema)])
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections.max(1))
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await
            .context("cannot connect to PostgreSQL")?;
        Ok(Self(pool))
    }

    async fn make_schema(&self, schema: &str) -> anyhow::Result<()> {
        // `open` has checked the name: an identifier cannot be a bound parameter.
        let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""));
        match sqlx::raw_sql(create).execute(&self.0).await {
            // Several instances may start at once; the schema is there either way.
            Err(error) if !is_unique_violation(&error) => Err(error).context("cannot make the schema"),
            _ => Ok(()),
        }
    }

    /// Where queries run.
    pub fn read(&self) -> &PgPool {
        &self.0
    }

    /// Starts a transaction. What it does is done under the idempotency key of the call, if there is one.
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        let mut tx = self.0.begin().await?;
        crate::idempotency::perform(&mut *tx).await?;
        Ok(tx)
    }
}

/// Makes an empty database file and its folder, unless they are there.
async fn make_file(file: &Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| *folder != Path::new("")) {
        tokio::fs::create_dir_all(folder)
            .await
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    // The log and index files beside it take over who may read them.
    crate::secret_file::touch(file).with_context(|| format!("cannot make {}", file.display()))
}

/// Whether a statement failed because a row with the same unique key exists. SQLite names no
/// constraint, so the caller says which rule it was.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}
