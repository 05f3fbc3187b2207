//! Deployments in SQL. What changes desired state locks the API's row first and writes its events to
//! the outbox in the same transaction, so that events leave in the order of commits.

mod parts;

use std::collections::{BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use proto::project::Api;
use service_kit::{
    Error, Result,
    db::{PostgresPool, SqlitePool},
    outbox::Append as _,
    page::Page,
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

pub(super) use self::parts::Parts;
use self::parts::{LockApis as _, ROWS};

use super::{
    SqlStore,
    apis::read_document,
    changes::{Changed, Tell as _},
    revisions::Freeze as _,
};
use crate::domain::{
    artifact::Kept,
    deployments::{
        CheckApi, Deployment, Report, Status,
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
    /// What came with the API, if it was imported from a gateway.
    pub kept: Option<Kept>,
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
    /// The state of an API's newest deployment on each of its gateways.
    async fn states(&self, api_id: &str) -> Result<Vec<(String, Status)>>;
    /// A page of the newest deployments of an API, one for each gateway, newest first.
    async fn current(&self, api_id: &str, page: Page) -> Result<Vec<Deployment>>;
    /// The newest deployment of each API on a gateway, oldest first.
    async fn on_gateway(&self, gateway_id: &str) -> Result<Vec<Deployment>>;
    /// Those of these events that have not been delivered yet.
    async fn waiting(&self, event_ids: Vec<String>) -> Result<HashSet<String>>;
    /// A deployment to a gateway.
    async fn artifact(&self, gateway_id: &str, deployment_id: &str) -> Result<Option<ArtifactSource>>;
    /// The deployment of an API that a gateway is to run.
    async fn newest_artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<ArtifactSource>>;
    /// The gateways that are to run other APIs of this API's name, with the versions of these.
    async fn namesakes(&self, api_id: &str) -> Result<Vec<(String, String)>>;
    /// Which of these APIs exist in an organization.
    async fn existing_apis(&self, organization_id: &str, api_ids: &[String]) -> Result<Vec<String>>;
}

#[derive(sqlx::FromRow)]
pub(super) struct Row {
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
    pub(super) fn read(self) -> Result<Deployment> {
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
    kept: Option<String>,
}

impl SourceRow {
    fn read(self) -> Result<ArtifactSource> {
        let kept = self.kept.as_deref().map(serde_json::from_str).transpose().map_err(Error::internal)?;
        Ok(ArtifactSource {
            kept,
            api: read_document(&self.document)?,
            api_id: self.api_id,
            project_id: self.project_id,
            deployment_id: self.id,
            vhost: self.vhost,
        })
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
        tx.insert(order.rows.iter().map(|(row, _)| row).collect()).await?;
        let events = order.rows.iter().map(|(_, event)| (event.id.clone(), event.payload.clone()));
        tx.append_all(TOPIC, events.collect()).await?;
        if order.revision.is_some() {
            tx.tell(&[Changed::Api(&order.api_id)]).await?;
        }
        tx.commit().await?;
        self.changes.now();
        Ok(true)
    }

    async fn undeploy(&self, order: &UndeployOrder, event: MakeEvent<'_>) -> Result<UndeployOutcome> {
        let mut tx = self.pool.begin().await?;
        if !tx.lock_api(&order.api_id).await? {
            return Ok(UndeployOutcome::Missing);
        }
        let gateways: Vec<&String> = order.gateways.iter().map(|(gateway, _)| gateway).collect();
        let current = tx.current_on(&order.api_id, &gateways).await?;
        let mut current: HashMap<String, Deployment> =
            current.into_iter().map(|row| (row.gateway_id.clone(), row)).collect();
        let mut rows = Vec::with_capacity(order.gateways.len());
        for (i, (gateway, revision)) in order.gateways.iter().enumerate() {
            // What the gateway failed to remove can be tried again.
            let there = current.remove(gateway).filter(|row| row.desired || row.status == Status::Failed);
            let Some(mut row) = there else { return Ok(UndeployOutcome::NotDeployed(i)) };
            if !revision.is_empty() && row.revision_id != *revision {
                return Ok(UndeployOutcome::OtherRevision(i));
            }
            row.desired = false;
            row.status = Status::Undeploying;
            row.status_reason.clear();
            // Each request is later than the one before, so that its event is another one.
            row.requested_at = order.requested_at.max(row.requested_at + 1);
            rows.push(row);
        }
        tx.put_states(&rows).await?;
        let events = rows.iter().map(event).map(|event| (event.id, event.payload));
        tx.append_all(TOPIC, events.collect()).await?;
        tx.commit().await?;
        Ok(UndeployOutcome::Written(rows))
    }

    async fn report(&self, reports: &[Report]) -> Result<()> {
        let ids: BTreeSet<&String> = reports.iter().map(|report| &report.deployment_id).collect();
        let ids: Vec<&String> = ids.into_iter().collect();
        let mut tx = self.pool.begin().await?;
        tx.lock_apis_of(&ids).await?;
        let known = tx.by_ids(&ids).await?;
        let mut known: HashMap<String, Deployment> =
            known.into_iter().map(|row| (row.id.clone(), row)).collect();
        let mut moved = BTreeSet::new();
        for report in reports {
            if known.get_mut(&report.deployment_id).is_some_and(|row| report.apply(row)) {
                moved.insert(&report.deployment_id);
            }
        }
        known.retain(|id, _| moved.contains(id));
        tx.put_states(&known.into_values().collect::<Vec<_>>()).await?;
        Ok(tx.commit().await?)
    }

    async fn give_up(&self, deployment_ids: &[String], reason: &str) -> Result<()> {
        let ids: Vec<&String> = deployment_ids.iter().collect();
        let mut tx = self.pool.begin().await?;
        tx.lock_apis_of(&ids).await?;
        let mut rows = tx.by_ids(&ids).await?;
        for row in &mut rows {
            row.desired = false;
            row.status = Status::Failed;
            reason.clone_into(&mut row.status_reason);
        }
        tx.put_states(&rows).await?;
        Ok(tx.commit().await?)
    }

    async fn states(&self, api_id: &str) -> Result<Vec<(String, Status)>> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT gateway_id, status FROM deployments WHERE api_id = $1 AND is_current")
                .bind(api_id)
                .fetch_all(self.pool.read())
                .await?;
        rows.into_iter().map(|(gateway, status)| Ok((gateway, read_status(&status)?))).collect()
    }

    async fn current(&self, api_id: &str, page: Page) -> Result<Vec<Deployment>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, api_id, revision_id, gateway_id, name, vhost, display_on_devportal, is_desired,
               status, status_reason, deployed_at, requested_at, success_at
             FROM deployments WHERE api_id = $1 AND is_current
             ORDER BY deployed_at DESC, id DESC LIMIT $2 OFFSET $3",
        )
        .bind(api_id)
        .bind(page.sql_limit())
        .bind(page.sql_offset())
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

    async fn waiting(&self, event_ids: Vec<String>) -> Result<HashSet<String>> {
        let mut waiting = HashSet::new();
        for ids in event_ids.chunks(ROWS) {
            let mut query = QueryBuilder::new("SELECT id FROM outbox WHERE topic = ");
            query.push_bind(TOPIC).push(" AND ");
            push_in!(query, "id", ids);
            let found: Vec<String> = query.build_query_scalar().fetch_all(self.pool.read()).await?;
            waiting.extend(found);
        }
        Ok(waiting)
    }

    async fn artifact(&self, gateway_id: &str, deployment_id: &str) -> Result<Option<ArtifactSource>> {
        let row: Option<SourceRow> = sqlx::query_as(
            "SELECT d.api_id, a.project_id, d.id, d.vhost, r.document, i.kept
             FROM deployments d JOIN revisions r ON r.id = d.revision_id JOIN apis a ON a.id = d.api_id
               LEFT JOIN imported_artifacts i ON i.api_id = d.api_id
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
            "SELECT d.api_id, a.project_id, d.id, d.vhost, r.document, i.kept
             FROM deployments d JOIN revisions r ON r.id = d.revision_id JOIN apis a ON a.id = d.api_id
               LEFT JOIN imported_artifacts i ON i.api_id = d.api_id
             WHERE d.gateway_id = $1 AND d.api_id = $2 AND d.is_current AND d.is_desired",
        )
        .bind(gateway_id)
        .bind(api_id)
        .fetch_optional(self.pool.read())
        .await?;
        row.map(SourceRow::read).transpose()
    }

    async fn namesakes(&self, api_id: &str) -> Result<Vec<(String, String)>> {
        Ok(sqlx::query_as(
            "SELECT d.gateway_id, other.version FROM apis mine
             JOIN apis other ON other.organization_id = mine.organization_id AND other.name = mine.name
               AND other.id <> mine.id
             JOIN deployments d ON d.api_id = other.id AND d.is_current AND d.is_desired
             WHERE mine.id = $1",
        )
        .bind(api_id)
        .fetch_all(self.pool.read())
        .await?)
    }

    async fn existing_apis(&self, organization_id: &str, api_ids: &[String]) -> Result<Vec<String>> {
        if api_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new("SELECT id FROM apis WHERE organization_id = ");
        query.push_bind(organization_id).push(" AND ");
        push_in!(query, "id", api_ids);
        query.push(" ORDER BY id");
        Ok(query.build_query_scalar().fetch_all(self.pool.read()).await?)
    }
}
