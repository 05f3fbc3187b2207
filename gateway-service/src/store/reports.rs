//! SQL of reports on their way to the instance that serves their connection.

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{ReportStore, SqlStore, push_in};

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ReportStore for SqlStore<Pool> {
    async fn leave(&self, connection_id: &str, gateway_id: &str, report: &[u8], now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        // First, so that the connection stays until the report is there, and reports come one by one.
        let there = sqlx::query(
            "UPDATE connections SET heard_at = CASE WHEN heard_at < $3 THEN $3 ELSE heard_at + 1 END
             WHERE id = $1 AND gateway_id = $2 AND transport = 'sse'",
        )
        .bind(connection_id)
        .bind(gateway_id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        if there.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO link_reports (connection_id, number, report)
             VALUES ($1, (SELECT COALESCE(MAX(number), 0) + 1 FROM link_reports WHERE connection_id = $1), $2)",
        )
        .bind(connection_id)
        .bind(report)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn waiting(&self, connection_ids: &[String]) -> Result<Vec<String>> {
        if connection_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new("SELECT DISTINCT connection_id FROM link_reports WHERE ");
        push_in!(query, "connection_id", connection_ids);
        Ok(query.build_query_scalar().fetch_all(self.pool.read()).await?)
    }

    async fn take(&self, connection_id: &str) -> Result<Vec<Vec<u8>>> {
        // Most often there is nothing, and a question locks nothing.
        if self.waiting(&[connection_id.to_owned()]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.pool.begin().await?;
        let query = "DELETE FROM link_reports WHERE connection_id = $1 RETURNING number, report";
        let mut taken: Vec<(i64, Vec<u8>)> =
            sqlx::query_as(query).bind(connection_id).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        taken.sort_by_key(|(number, _)| *number);
        Ok(taken.into_iter().map(|(_, report)| report).collect())
    }
}
