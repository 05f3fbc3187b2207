//! Parts of transactions on deployments. Each takes many rows with few statements.

use async_trait::async_trait;
use service_kit::{Result, outbox::Append as _};
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use trait_gen::trait_gen;

use super::{MakeDeleted, Row};
use crate::domain::deployments::{Deployment, events::TOPIC};

/// How many rows, or ids, one statement carries. A row binds up to 12 values, and SQLite takes 32,766.
pub(super) const ROWS: usize = 1_000;

const SELECT: &str =
    "SELECT id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal, is_desired,
   status, status_reason, deployed_at, requested_at, success_at FROM deployments WHERE ";

/// Locks APIs in the order of their ids, so that no two transactions wait for each other.
#[async_trait]
pub(super) trait LockApis {
    /// Locks the APIs of deployments.
    async fn lock_apis_of(&mut self, deployment_ids: &[&String]) -> sqlx::Result<()>;
}

#[async_trait]
impl LockApis for SqliteConnection {
    /// A writing transaction of SQLite is alone from its beginning.
    async fn lock_apis_of(&mut self, _: &[&String]) -> sqlx::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl LockApis for PgConnection {
    async fn lock_apis_of(&mut self, deployment_ids: &[&String]) -> sqlx::Result<()> {
        if deployment_ids.is_empty() {
            return Ok(());
        }
        let mut query =
            QueryBuilder::new("SELECT id FROM apis WHERE id IN (SELECT api_id FROM deployments WHERE ");
        push_in!(query, "id", deployment_ids.iter());
        query.push(") ORDER BY id FOR NO KEY UPDATE");
        query.build().execute(self).await?;
        Ok(())
    }
}

/// What runs behind the lock on the row of an API.
#[async_trait]
pub(in crate::store) trait Parts {
    /// Whether a gateway is to run the API.
    async fn is_deployed(&mut self, api_id: &str) -> sqlx::Result<bool>;
    /// Tells every gateway that ever had the API that it is gone.
    async fn announce_deletion(&mut self, api_id: &str, event: MakeDeleted<'_>) -> sqlx::Result<()>;
    /// Writes deployments of one API over those that their gateways have.
    async fn insert(&mut self, rows: Vec<&Deployment>) -> sqlx::Result<()>;
    /// The newest deployments of an API on gateways.
    async fn current_on(&mut self, api_id: &str, gateways: &[&String]) -> Result<Vec<Deployment>>;
    /// Deployments.
    async fn by_ids(&mut self, ids: &[&String]) -> Result<Vec<Deployment>>;
    /// Writes what is wanted and what is known of deployments.
    async fn put_states(&mut self, rows: &[Deployment]) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Parts for Connection {
    async fn is_deployed(&mut self, api_id: &str) -> sqlx::Result<bool> {
        let count: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM deployments WHERE api_id = $1 AND is_current AND is_desired",
        )
        .bind(api_id)
        .fetch_one(&mut *self)
        .await?;
        Ok(count > 0)
    }

    async fn announce_deletion(&mut self, api_id: &str, event: MakeDeleted<'_>) -> sqlx::Result<()> {
        let gateways: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT gateway_id FROM deployments WHERE api_id = $1 ORDER BY gateway_id",
        )
        .bind(api_id)
        .fetch_all(&mut *self)
        .await?;
        let events = gateways.iter().map(|gateway| event(gateway)).map(|event| (event.id, event.payload));
        self.append_all(TOPIC, events.collect()).await
    }

    async fn insert(&mut self, rows: Vec<&Deployment>) -> sqlx::Result<()> {
        for rows in rows.chunks(ROWS) {
            let Some(first) = rows.first() else { continue };
            let mut query = QueryBuilder::new("UPDATE deployments SET is_current = FALSE WHERE api_id = ");
            query.push_bind(first.api_id.as_str()).push(" AND is_current AND ");
            push_in!(query, "gateway_id", rows.iter().map(|row| &row.gateway_id));
            query.build().persistent(false).execute(&mut *self).await?;
            let mut query = QueryBuilder::new(
                "INSERT INTO deployments (id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal,
                   is_current, is_desired, status, status_reason, deployed_at, requested_at, success_at) ",
            );
            query.push_values(rows, |mut values, row| {
                values.push_bind(row.id.as_str()).push_bind(row.api_id.as_str());
                values.push_bind(row.revision_id.as_str()).push_bind(row.gateway_id.as_str());
                values.push_bind(row.name.as_str()).push_bind(row.vhost.as_str());
                values.push_bind(row.display_on_devportal).push("TRUE").push_bind(row.desired);
                values.push_bind(row.status.as_str()).push("''").push_bind(row.deployed_at);
                values.push_bind(row.requested_at).push("NULL");
            });
            query.build().persistent(false).execute(&mut *self).await?;
        }
        Ok(())
    }

    async fn current_on(&mut self, api_id: &str, gateways: &[&String]) -> Result<Vec<Deployment>> {
        let mut found = Vec::with_capacity(gateways.len());
        for gateways in gateways.chunks(ROWS) {
            let mut query = QueryBuilder::new(SELECT);
            query.push("api_id = ").push_bind(api_id).push(" AND is_current AND ");
            push_in!(query, "gateway_id", gateways.iter());
            let rows: Vec<Row> = query.build_query_as().persistent(false).fetch_all(&mut *self).await?;
            found.extend(rows);
        }
        found.into_iter().map(Row::read).collect()
    }

    async fn by_ids(&mut self, ids: &[&String]) -> Result<Vec<Deployment>> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(ROWS) {
            let mut query = QueryBuilder::new(SELECT);
            push_in!(query, "id", ids.iter());
            let rows: Vec<Row> = query.build_query_as().persistent(false).fetch_all(&mut *self).await?;
            found.extend(rows);
        }
        found.into_iter().map(Row::read).collect()
    }

    async fn put_states(&mut self, rows: &[Deployment]) -> sqlx::Result<()> {
        for rows in rows.chunks(ROWS) {
            // Both databases call the columns of VALUES so.
            let mut query = QueryBuilder::new(
                "UPDATE deployments SET is_desired = v.column2, status = v.column3, status_reason = v.column4,
                   requested_at = v.column5, success_at = v.column6 FROM (",
            );
            query.push_values(rows, |mut values, row| {
                values.push_bind(row.id.as_str()).push_bind(row.desired).push_bind(row.status.as_str());
                values.push_bind(row.status_reason.as_str()).push_bind(row.requested_at);
                values.push_bind(row.success_at);
            });
            query.push(") AS v WHERE deployments.id = v.column1");
            query.build().persistent(false).execute(&mut *self).await?;
        }
        Ok(())
    }
}
