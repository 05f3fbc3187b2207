//! SQL of gateways.

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool, is_unique_violation},
    outbox::Append as _,
    page::Page,
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{GatewayStore, SqlStore, connections::Steps as _, events::LOCK, push_in};
use crate::domain::{
    acks::{REPORTS, deleted_report},
    gateways::{Details, Functionality, Gateway},
};

/// The newest deployment of each artifact of a gateway.
const NEWEST_DEPLOYMENTS: &str = "SELECT e.deployment_id FROM gateway_events e
     JOIN (SELECT artifact_id, MAX(revision) AS revision FROM gateway_events
           WHERE gateway_id = $1 AND deployment_id <> '' GROUP BY artifact_id) newest
       ON newest.revision = e.revision
     WHERE e.gateway_id = $1 ORDER BY e.revision";

/// Everything but the manifest, which may be long.
macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization_id, name, display_name, description, vhost, endpoints, functionality_type, ",
            "is_critical, version, created_at, updated_at ",
            $after
        )
    };
}

#[derive(sqlx::FromRow)]
struct GatewayRow {
    id: String,
    organization_id: String,
    name: String,
    display_name: String,
    description: String,
    vhost: String,
    endpoints: String,
    functionality_type: String,
    is_critical: bool,
    version: String,
    created_at: i64,
    updated_at: i64,
}

impl GatewayRow {
    fn gateway(self) -> Result<Gateway> {
        let functionality = Functionality::of(&self.functionality_type).ok_or_else(|| {
            Error::internal(anyhow::anyhow!("gateway {} has no known functionality", self.id))
        })?;
        Ok(Gateway {
            functionality,
            details: Details {
                display_name: self.display_name,
                description: self.description,
                vhost: self.vhost,
                endpoints: serde_json::from_str(&self.endpoints).map_err(Error::internal)?,
                is_critical: self.is_critical,
            },
            id: self.id,
            organization_id: self.organization_id,
            name: self.name,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

fn gateways(rows: Vec<GatewayRow>) -> Result<Vec<Gateway>> {
    rows.into_iter().map(GatewayRow::gateway).collect()
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl GatewayStore for SqlStore<Pool> {
    async fn insert(&self, gateway: &Gateway) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO gateways (id, organization_id, name, display_name, description, vhost, endpoints,
               functionality_type, is_critical, version, manifest, head, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '', '', 0, $10, $11)",
        )
        .bind(&gateway.id)
        .bind(&gateway.organization_id)
        .bind(&gateway.name)
        .bind(&gateway.details.display_name)
        .bind(&gateway.details.description)
        .bind(&gateway.details.vhost)
        .bind(serde_json::to_string(&gateway.details.endpoints).map_err(Error::internal)?)
        .bind(gateway.functionality.name())
        .bind(gateway.details.is_critical)
        .bind(gateway.created_at)
        .bind(gateway.updated_at)
        .execute(&mut *tx)
        .await;
        match inserted {
            Ok(_) => tx.commit().await.map(|()| true).map_err(Error::from),
            Err(error) if is_unique_violation(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn find(&self, id: &str) -> Result<Option<Gateway>> {
        let row: Option<GatewayRow> = sqlx::query_as(columns!("SELECT", "FROM gateways WHERE id = $1"))
            .bind(id)
            .fetch_optional(self.pool.read())
            .await?;
        row.map(GatewayRow::gateway).transpose()
    }

    async fn list(&self, organization_ids: &[String], page: Page) -> Result<(Vec<Gateway>, i64)> {
        let mut count = QueryBuilder::new("SELECT COUNT(*) FROM gateways WHERE ");
        push_in!(count, "organization_id", organization_ids);
        let total: i64 = count.build_query_scalar().fetch_one(self.pool.read()).await?;
        let mut query = QueryBuilder::new(columns!("SELECT", "FROM gateways WHERE "));
        push_in!(query, "organization_id", organization_ids);
        query.push(" ORDER BY name, id LIMIT ").push_bind(page.sql_limit());
        query.push(" OFFSET ").push_bind(page.sql_offset());
        let rows: Vec<GatewayRow> = query.build_query_as().fetch_all(self.pool.read()).await?;
        Ok((gateways(rows)?, total))
    }

    async fn resolve(&self, organization_id: &str, ids: &[String]) -> Result<Vec<Gateway>> {
        let mut query = QueryBuilder::new(columns!("SELECT", "FROM gateways WHERE organization_id = "));
        query.push_bind(organization_id).push(" AND ");
        push_in!(query, "id", ids);
        query.push(" ORDER BY id");
        gateways(query.build_query_as().fetch_all(self.pool.read()).await?)
    }

    async fn update(&self, id: &str, details: &Details, now: i64) -> Result<Option<Gateway>> {
        let mut tx = self.pool.begin().await?;
        let row: Option<GatewayRow> = sqlx::query_as(columns!(
            "UPDATE gateways SET display_name = $2, description = $3, vhost = $4, endpoints = $5,
               is_critical = $6, updated_at = $7
             WHERE id = $1 RETURNING",
            ""
        ))
        .bind(id)
        .bind(&details.display_name)
        .bind(&details.description)
        .bind(&details.vhost)
        .bind(serde_json::to_string(&details.endpoints).map_err(Error::internal)?)
        .bind(details.is_critical)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.map(GatewayRow::gateway).transpose()
    }

    async fn put_manifest(&self, id: &str, version: &str, manifest: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("UPDATE gateways SET version = $2, manifest = $3 WHERE id = $1")
            .bind(id)
            .bind(version)
            .bind(manifest)
            .execute(&mut *tx)
            .await?;
        // Those that say who they are said their version too.
        sqlx::query("UPDATE connections SET version = $2 WHERE gateway_id = $1 AND instance_id = ''")
            .bind(id)
            .bind(version)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn delete(&self, id: &str, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(id).execute(&mut *tx).await?;
        let deployments: Vec<String> =
            sqlx::query_scalar(NEWEST_DEPLOYMENTS).bind(id).fetch_all(&mut *tx).await?;
        for deployment in deployments {
            let report = deleted_report(id, &deployment, now);
            tx.append(REPORTS, &format!("{id}:{deployment}:deleted"), report).await?;
        }
        let connections: Vec<String> = sqlx::query_scalar("SELECT id FROM connections WHERE gateway_id = $1")
            .bind(id)
            .fetch_all(&mut *tx)
            .await?;
        if !connections.is_empty() {
            tx.forget(&connections, now).await?;
        }
        // Tokens, events and artifacts go with it: ON DELETE CASCADE.
        let deleted = sqlx::query("DELETE FROM gateways WHERE id = $1").bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }
}
