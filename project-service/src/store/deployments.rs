//! Deployments in SQL. What changes desired state locks the API's row first and writes its events to
//! the outbox in the same transaction, so that events leave in the order of commits.

use std::collections::BTreeSet;

use async_trait::async_trait;
use proto::project::Api;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
    outbox::Append as _,
};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{SqlStore, apis::read_document, revisions::Freeze as _};
use crate::domain::{
    deployments::{
        Action, CheckApi, Deployment, Report, Status,
        events::{OutboxEvent, TOPIC},
    },
    revisions::NewRevision,
};

/// What a deploy writes.
#[derive(Debug, Clone)]
pub struct DeployOrder {
    /// The API's id.
    pub api_id: String,
    /// The revision to cut from the working copy, if one is needed.
    pub revision: Option<NewRevision>,
    /// The deployments, each with the event for its gateway.
    pub rows: Vec<(Deployment, OutboxEvent)>,
}

/// What an undeploy writes.
#[derive(Debug, Clone)]
pub struct UndeployOrder {
    /// The API's id.
    pub api_id: String,
    /// Gateways, each with the revision that it must have; any when empty.
    pub gateways: Vec<(String, String)>,
    /// When it was asked for, Unix ms.
    pub requested_at: i64,
}

/// What came of an undeploy. Unless it was written nothing was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UndeployOutcome {
    /// The deployments as they now are.
    Written(Vec<Deployment>),
    /// The API is gone.
    Missing,
    /// This gateway is not to run the API.
    NotDeployed(usize),
    /// This gateway is to run another revision.
    OtherRevision(usize),
}

/// What an artifact is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactSource {
    /// The API's id.
    pub api_id: String,
    /// The project's id.
    pub project_id: String,
    /// The deployment's id.
    pub deployment_id: String,
    /// The host that the API is served on; the gateway's default when empty.
    pub vhost: String,
    /// The API at its revision, without private keys.
    pub api: Api,
}

/// Makes the event of a deployment.
pub type MakeEvent<'a> = &'a (dyn Fn(&Deployment) -> OutboxEvent + Send + Sync);

/// Makes the event that tells a gateway that an API is gone.
pub type MakeDeleted<'a> = &'a (dyn Fn(&str) -> OutboxEvent + Send + Sync);

/// Deployments.
#[async_trait]
pub trait DeploymentStore: std::fmt::Debug + Send + Sync + 'static {
    /// Writes deployments over those that their gateways have, with the revision that they need if
    /// `check` accepts the working copy. False when the API is gone.
    async fn deploy(&self, order: &DeployOrder, check: CheckApi<'_>) -> Result<bool>;
    /// Marks deployments as to be undone: all, or none.
    async fn undeploy(&self, order: &UndeployOrder, event: MakeEvent<'_>) -> Result<UndeployOutcome>;
    /// Moves the states of deployments, in the order of the reports.
    async fn report(&self, reports: &[Report]) -> Result<()>;
    /// Marks deployments as failed and not wanted any more.
    async fn give_up(&self, deployment_ids: &[String], reason: &str) -> Result<()>;
    /// The newest deployment of an API on each gateway, newest first.
    async fn current(&self, api_id: &str) -> Result<Vec<Deployment>>;
    /// The newest deployment of each API on a gateway, oldest first.
    async fn on_gateway(&self, gateway_id: &str) -> Result<Vec<Deployment>>;
    /// A deployment to a gateway.
    async fn artifact(&self, gateway_id: &str, deployment_id: &str) -> Result<Option<ArtifactSource>>;
    /// The deployment of an API that a gateway is to run.
    async fn newest_artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<ArtifactSource>>;
    /// Which of these APIs exist in an organization.
    async fn existing_apis(&self, organization_id: &str, api_ids: &[String]) -> Result<Vec<String>>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    api_id: String,
    revision_id: String,
    gateway_id: String,
    name: String,
    vhost: String,
    display_on_devportal: bool,
    is_desired: bool,
    status: String,
    status_reason: String,
    deployed_at: i64,
    requested_at: i64,
    success_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<Deployment> {
        Ok(Deployment {
            id: self.id,
            api_id: self.api_id,
            revision_id: self.revision_id,
            gateway_id: self.gateway_id,
            name: self.name,
            vhost: self.vhost,
            display_on_devportal: self.display_on_devportal,
            desired: self.is_desired,
            status: read_status(&self.status)?,
            status_reason: self.status_reason,
            deployed_at: self.deployed_at,
            requested_at: self.requested_at,
            success_at: self.success_at,
        })
    }
}

fn read_status(name: &str) -> Result<Status> {
    Status::parse(name).ok_or_else(|| Error::internal(anyhow::anyhow!("no such deployment status: {name}")))
}

#[derive(sqlx::FromRow)]
struct SourceRow {
    api_id: String,
    project_id: String,
    id: String,
    vhost: String,
    document: String,
}

impl SourceRow {
    fn read(self) -> Result<ArtifactSource> {
        Ok(ArtifactSource {
            api: read_document(&self.document)?,
            api_id: self.api_id,
            project_id: self.project_id,
            deployment_id: self.id,
            vhost: self.vhost,
        })
    }
}

/// Parts of transactions on deployments; all but the first run behind the lock on their API's row.
#[async_trait]
pub(super) trait Parts {
    /// Locks the APIs of deployments, in the order of their ids, so that no two transactions wait for
    /// each other.
    async fn lock_apis_of(&mut self, deployment_ids: Vec<String>) -> sqlx::Result<()>;
    /// Whether a gateway is to run the API.
    async fn is_deployed(&mut self, api_id: &str) -> sqlx::Result<bool>;
    /// Tells every gateway that ever had the API that it is gone.
    async fn announce_deletion(&mut self, api_id: &str, event: MakeDeleted<'_>) -> sqlx::Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Parts for Connection {
    async fn lock_apis_of(&mut self, deployment_ids: Vec<String>) -> sqlx::Result<()> {
        let mut apis = BTreeSet::new();
        for id in deployment_ids {
            let api: Option<String> = sqlx::query_scalar("SELECT api_id FROM deployments WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *self)
                .await?;
            apis.extend(api);
        }
        for api in apis {
            self.lock_api(&api).await?;
        }
        Ok(())
    }

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
        for gateway in gateways {
            let event = event(&gateway);
            self.append(TOPIC, &event.id, event.payload).await?;
        }
        Ok(())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl DeploymentStore for SqlStore<Pool> {
    async fn deploy(&self, order: &DeployOrder, check: CheckApi<'_>) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        if !tx.lock_api(&order.api_id).await? {
            return Ok(false);
        }
        if let Some(new) = &order.revision {
            check(&tx.working_copy(&order.api_id).await?)?;
            tx.freeze(new).await?;
        }
        for (row, event) in &order.rows {
            sqlx::query(
                "UPDATE deployments SET is_current = FALSE
                 WHERE api_id = $1 AND gateway_id = $2 AND is_current",
            )
            .bind(&row.api_id)
            .bind(&row.gateway_id)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "INSERT INTO deployments (id, api_id, revision_id, gateway_id, name, vhost,
                   display_on_devportal, is_current, is_desired, status, status_reason, deployed_at,
                   requested_at, success_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, TRUE, TRUE, $8, '', $9, $9, NULL)",
            )
            .bind(&row.id)
            .bind(&row.api_id)
            .bind(&row.revision_id)
            .bind(&row.gateway_id)
            .bind(&row.name)
            .bind(&row.vhost)
            .bind(row.display_on_devportal)
            .bind(row.status.as_str())
            .bind(row.deployed_at)
            .execute(&mut *tx)
            .await?;
            tx.append(TOPIC, &event.id, event.payload.clone()).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn undeploy(&self, order: &UndeployOrder, event: MakeEvent<'_>) -> Result<UndeployOutcome> {
        let mut tx = self.pool.begin().await?;
        if !tx.lock_api(&order.api_id).await? {
            return Ok(UndeployOutcome::Missing);
        }
        let mut rows = Vec::with_capacity(order.gateways.len());
        for (i, (gateway, revision)) in order.gateways.iter().enumerate() {
            let row: Option<Row> = sqlx::query_as(
                "UPDATE deployments SET is_desired = FALSE, status = $3, status_reason = '', requested_at = $4
                 WHERE api_id = $1 AND gateway_id = $2 AND is_current AND (is_desired OR status = $5)
                 RETURNING id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal,
                   is_desired, status, status_reason, deployed_at, requested_at, success_at",
            )
            .bind(&order.api_id)
            .bind(gateway)
            .bind(Status::Undeploying.as_str())
            .bind(order.requested_at)
            // What the gateway failed to remove can be tried again.
            .bind(Status::Failed.as_str())
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(UndeployOutcome::NotDeployed(i)) };
            if !revision.is_empty() && row.revision_id != *revision {
                return Ok(UndeployOutcome::OtherRevision(i));
            }
            let row = row.read()?;
            let event = event(&row);
            tx.append(TOPIC, &event.id, event.payload).await?;
            rows.push(row);
        }
        tx.commit().await?;
        Ok(UndeployOutcome::Written(rows))
    }

    async fn report(&self, reports: &[Report]) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.lock_apis_of(reports.iter().map(|report| report.deployment_id.clone()).collect()).await?;
        for report in reports {
            let row: Option<(bool, String)> = sqlx::query_as(
                "SELECT is_desired, status FROM deployments WHERE id = $1 AND gateway_id = $2",
            )
            .bind(&report.deployment_id)
            .bind(&report.gateway_id)
            .fetch_optional(&mut *tx)
            .await?;
            let Some((desired, status)) = row else { continue };
            let Some(next) = read_status(&status)?.after(desired, report.action, report.status) else {
                continue;
            };
            let reason = if next == Status::Failed { report.reason.as_str() } else { "" };
            let success = (next == Status::Deployed).then_some(report.reported_at);
            sqlx::query(
                "UPDATE deployments SET status = $2, status_reason = $3, success_at = COALESCE($4, success_at),
                   is_desired = $5
                 WHERE id = $1",
            )
            .bind(&report.deployment_id)
            .bind(next.as_str())
            .bind(reason)
            .bind(success)
            .bind(desired && report.action != Action::Delete)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn give_up(&self, deployment_ids: &[String], reason: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        tx.lock_apis_of(deployment_ids.to_vec()).await?;
        for id in deployment_ids {
            sqlx::query(
                "UPDATE deployments SET is_desired = FALSE, status = $2, status_reason = $3 WHERE id = $1",
            )
            .bind(id)
            .bind(Status::Failed.as_str())
            .bind(reason)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn current(&self, api_id: &str) -> Result<Vec<Deployment>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal, is_desired,
               status, status_reason, deployed_at, requested_at, success_at
             FROM deployments WHERE api_id = $1 AND is_current ORDER BY deployed_at DESC, id DESC",
        )
        .bind(api_id)
        .fetch_all(self.pool.read())
        .await?;
        rows.into_iter().map(Row::read).collect()
    }

    async fn on_gateway(&self, gateway_id: &str) -> Result<Vec<Deployment>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal, is_desired,
               status, status_reason, deployed_at, requested_at, success_at
             FROM deployments WHERE gateway_id = $1 AND is_current ORDER BY requested_at, id",
        )
        .bind(gateway_id)
        .fetch_all(self.pool.read())
        .await?;
        rows.into_iter().map(Row::read).collect()
    }

    async fn artifact(&self, gateway_id: &str, deployment_id: &str) -> Result<Option<ArtifactSource>> {
        let row: Option<SourceRow> = sqlx::query_as(
            "SELECT d.api_id, a.project_id, d.id, d.vhost, r.document
             FROM deployments d JOIN revisions r ON r.id = d.revision_id JOIN apis a ON a.id = d.api_id
             WHERE d.gateway_id = $1 AND d.id = $2",
        )
        .bind(gateway_id)
        .bind(deployment_id)
        .fetch_optional(self.pool.read())
        .await?;
        row.map(SourceRow::read).transpose()
    }

    async fn newest_artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<ArtifactSource>> {
        let row: Option<SourceRow> = sqlx::query_as(
            "SELECT d.api_id, a.project_id, d.id, d.vhost, r.document
             FROM deployments d JOIN revisions r ON r.id = d.revision_id JOIN apis a ON a.id = d.api_id
             WHERE d.gateway_id = $1 AND d.api_id = $2 AND d.is_current AND d.is_desired",
        )
        .bind(gateway_id)
        .bind(api_id)
        .fetch_optional(self.pool.read())
        .await?;
        row.map(SourceRow::read).transpose()
    }

    async fn existing_apis(&self, organization_id: &str, api_ids: &[String]) -> Result<Vec<String>> {
        if api_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = sqlx::QueryBuilder::new("SELECT id FROM apis WHERE organization_id = ");
        query.push_bind(organization_id).push(" AND id IN (");
        let mut ids = query.separated(", ");
        for id in api_ids {
            ids.push_bind(id);
        }
        query.push(") ORDER BY id");
        Ok(query.build_query_scalar().fetch_all(self.pool.read()).await?)
    }
}
