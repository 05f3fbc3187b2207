//! Imports from gateways in SQL: an API, its first revision, its deployment and the id that the gateway has for it,
//! all or nothing of a batch.

use std::collections::BTreeSet;

use async_trait::async_trait;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    SqlStore,
    apis::{InsertApi as _, write_document},
    changes::{Changed, Tell as _},
    deployments::Row as DeploymentRow,
    revisions::Freeze as _,
};
use crate::domain::imports::{Import, Imported, Outcome};

/// Imports.
#[async_trait]
pub trait ImportStore: std::fmt::Debug + Send + Sync + 'static {
    /// Writes imports in order, all or none; what is known by the gateway's id stays as it is.
    async fn import(&self, organization_id: &str, imports: &[Import]) -> Result<Vec<Outcome>>;
}

/// Parts of the transaction, behind the locks on the projects.
#[async_trait]
trait Parts {
    /// Locks those of the projects that the organization has, in the order of their ids: batches that come at once
    /// queue here, and cannot wait for each other. Says which there are.
    async fn lock_projects(
        &mut self,
        organization_id: &str,
        ids: &BTreeSet<&str>,
    ) -> sqlx::Result<Vec<String>>;
    /// What a gateway's id stands for already.
    async fn known(&mut self, gateway_id: &str, dpid: &str) -> Result<Option<Imported>>;
    /// Writes the API; false when its name, context and version belong to another.
    async fn write(&mut self, import: &Import) -> Result<bool>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Parts for Connection {
    async fn lock_projects(
        &mut self,
        organization_id: &str,
        ids: &BTreeSet<&str>,
    ) -> sqlx::Result<Vec<String>> {
        let mut there = Vec::new();
        for id in ids {
            let locked = sqlx::query(
                "UPDATE projects SET updated_at = updated_at WHERE id = $1 AND organization_id = $2",
            )
            .bind(id)
            .bind(organization_id)
            .execute(&mut *self)
            .await?;
            if locked.rows_affected() > 0 {
                there.push((*id).to_owned());
            }
        }
        Ok(there)
    }

    async fn known(&mut self, gateway_id: &str, dpid: &str) -> Result<Option<Imported>> {
        let times: Option<(String, i64, i64)> = sqlx::query_as(
            "SELECT i.deployment_id, a.created_at, a.updated_at
             FROM imported_artifacts i JOIN apis a ON a.id = i.api_id WHERE i.gateway_id = $1 AND i.dpid = $2",
        )
        .bind(gateway_id)
        .bind(dpid)
        .fetch_optional(&mut *self)
        .await?;
        let Some((deployment_id, created_at, updated_at)) = times else { return Ok(None) };
        let row: DeploymentRow = sqlx::query_as(
            "SELECT id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal, is_desired,
               status, status_reason, deployed_at, requested_at, success_at
             FROM deployments WHERE id = $1",
        )
        .bind(deployment_id)
        .fetch_one(&mut *self)
        .await?;
        Ok(Some(Imported { deployment: row.read()?, created_at, updated_at }))
    }

    async fn write(&mut self, import: &Import) -> Result<bool> {
        let Import { dpid, api, revision, deployment, kept } = import;
        if !self.insert_api(api, &write_document(&api.api)?).await? {
            return Ok(false);
        }
        self.freeze(revision).await?;
        sqlx::query(
            "INSERT INTO deployments (id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal,
               is_current, is_desired, status, status_reason, deployed_at, requested_at, success_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, TRUE, $8, $9, '', $10, $10, $11)",
        )
        .bind(&deployment.id)
        .bind(&deployment.api_id)
        .bind(&deployment.revision_id)
        .bind(&deployment.gateway_id)
        .bind(&deployment.name)
        .bind(&deployment.vhost)
        .bind(deployment.display_on_devportal)
        .bind(deployment.desired)
        .bind(deployment.status.as_str())
        .bind(deployment.deployed_at)
        .bind(deployment.success_at)
        .execute(&mut *self)
        .await?;
        sqlx::query(
            "INSERT INTO imported_artifacts (gateway_id, dpid, api_id, deployment_id, kept)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&deployment.gateway_id)
        .bind(dpid)
        .bind(&deployment.api_id)
        .bind(&deployment.id)
        .bind(serde_json::to_string(kept).map_err(Error::internal)?)
        .execute(&mut *self)
        .await?;
        Ok(true)
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ImportStore for SqlStore<Pool> {
    async fn import(&self, organization_id: &str, imports: &[Import]) -> Result<Vec<Outcome>> {
        let mut tx = self.pool.begin().await?;
        let projects: BTreeSet<&str> = imports.iter().map(|one| one.api.api.project_id.as_str()).collect();
        let projects = tx.lock_projects(organization_id, &projects).await?;
        let mut outcomes = Vec::with_capacity(imports.len());
        for import in imports {
            let known = tx.known(&import.deployment.gateway_id, &import.dpid).await?;
            outcomes.push(match known {
                Some(known) => Outcome::Imported(Box::new(known)),
                None if !projects.contains(&import.api.api.project_id) => Outcome::NoProject,
                None if tx.write(import).await? => Outcome::Imported(Box::new(import.outcome())),
                None => Outcome::Taken,
            });
        }
        // Which of them were there already does not matter: a hint too many costs a read.
        let changes: Vec<Changed<'_>> = projects.iter().map(|id| Changed::Project(id)).collect();
        tx.tell(&changes).await?;
        tx.commit().await?;
        self.changes.now();
        Ok(outcomes)
    }
}
