//! Imports: APIs that a gateway had before the platform knew them become APIs of the project that they name, with a
//! revision and a deployment that needs no event: the gateway runs it already.
//!
//! A gateway's own id names the same API each time. What the gateway changes after that is not taken over: from the
//! import on the platform says what runs.

mod read;

use std::sync::Arc;

use proto::time::Timestamp;
use service_kit::{Clock, Error, Ids, Result, field::Checks};

use super::{
    apis::StoredApi,
    artifact::Kept,
    deployments::{Deployment, Status},
    revisions::NewRevision,
};
use crate::store::imports::ImportStore;

/// How far ahead of ours the clock of a gateway may be: a day.
const MAX_AHEAD_MS: i64 = 24 * 60 * 60 * 1_000;

/// An artifact as a gateway hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The gateway's own id of it.
    pub dpid: String,
    /// The artifact as JSON.
    pub configuration: String,
    /// Whether the gateway runs it.
    pub deployed: bool,
    /// When it was deployed there, Unix ms.
    pub deployed_at: i64,
}

/// What an import writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    /// The gateway's own id of it.
    pub dpid: String,
    /// The API.
    pub api: StoredApi,
    /// Its first revision.
    pub revision: NewRevision,
    /// What runs on the gateway.
    pub deployment: Deployment,
    /// What the API has no place for.
    pub kept: Kept,
}

/// An API that was imported, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The deployment that it was imported with.
    pub deployment: Deployment,
    /// When the API was created, Unix ms.
    pub created_at: i64,
    /// When the API was last changed, Unix ms.
    pub updated_at: i64,
}

/// What came of one import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Imported(Box<Imported>),
    /// The organization has no such project.
    NoProject,
    /// The project has another API with its name, context and version.
    Taken,
}

impl Import {
    /// What a repeat is answered as well.
    pub fn outcome(&self) -> Imported {
        let created_at = self.revision.created_at;
        Imported { deployment: self.deployment.clone(), created_at, updated_at: created_at }
    }
}

/// The rules of imports.
#[derive(Debug, Clone)]
pub struct Imports {
    store: Arc<dyn ImportStore>,
    clock: Clock,
    ids: Ids,
}

impl Imports {
    /// Imports into `store`.
    pub fn new(store: Arc<dyn ImportStore>, clock: Clock, ids: Ids) -> Self {
        Self { store, clock, ids }
    }

    /// Imports artifacts of an organization's gateway. For each, in order, what it became or why it was refused: one
    /// bad artifact does not keep the others out.
    pub async fn import(
        &self,
        organization_id: &str,
        gateway_id: &str,
        artifacts: &[Artifact],
    ) -> Result<Vec<Result<Imported>>> {
        Checks::new().id("organizationId", organization_id).id("gatewayId", gateway_id).done()?;
        let read = artifacts.iter().map(|artifact| self.read(organization_id, gateway_id, artifact));
        let (mut good, mut answers) = (Vec::new(), Vec::new());
        for read in read {
            answers.push(read.map(|import| good.push(import)));
        }
        let mut outcomes = match good.as_slice() {
            [] => Vec::new(),
            good => self.store.import(organization_id, good).await?,
        }
        .into_iter();
        let missing = || Error::internal(anyhow::anyhow!("an import without an outcome"));
        let answer = |read: Result<()>| read.and_then(|()| outcomes.next().ok_or_else(missing)?.answer());
        let answers: Vec<_> = answers.into_iter().map(answer).collect();
        let refused = answers.iter().filter(|answer| answer.is_err()).count();
        tracing::info!(gateway = gateway_id, artifacts = answers.len(), refused, "artifacts imported");
        Ok(answers)
    }

    fn read(&self, organization_id: &str, gateway_id: &str, artifact: &Artifact) -> Result<Import> {
        let now = self.clock.now_ms();
        Checks::new()
            .length("dpid", &artifact.dpid, 1, 128)
            .printable("dpid", &artifact.dpid, false)
            .that(artifact.deployed_at > 0, "deployedAt", "must be a time after 1970")
            .that(
                artifact.deployed_at <= now + MAX_AHEAD_MS,
                "deployedAt",
                "must not be more than a day ahead",
            )
            .done()?;
        let read::Read { mut api, project_id, vhost, kept } = read::read(&artifact.configuration)?;
        let created = Some(Timestamp::from_unix_ms(now));
        (api.id, api.project_id) = (self.ids.next(), project_id);
        (api.created_at, api.updated_at) = (created, created);
        let created_by = format!("gateway:{gateway_id}");
        let revision = NewRevision {
            id: self.ids.next(),
            api_id: api.id.clone(),
            description: "imported from a gateway".to_owned(),
            created_by: created_by.clone(),
            created_at: now,
        };
        let deployment = Deployment {
            id: self.ids.next(),
            api_id: api.id.clone(),
            revision_id: revision.id.clone(),
            gateway_id: gateway_id.to_owned(),
            name: String::new(),
            vhost,
            display_on_devportal: false,
            desired: artifact.deployed,
            status: if artifact.deployed { Status::Deployed } else { Status::Undeployed },
            status_reason: String::new(),
            deployed_at: artifact.deployed_at,
            requested_at: artifact.deployed_at,
            success_at: artifact.deployed.then_some(artifact.deployed_at),
        };
        let api = StoredApi { organization_id: organization_id.to_owned(), created_by, api };
        Ok(Import { dpid: artifact.dpid.clone(), api, revision, deployment, kept })
    }
}

impl Outcome {
    fn answer(self) -> Result<Imported> {
        match self {
            Self::Imported(imported) => Ok(*imported),
            Self::NoProject => {
                Err(Error::field(read::PROJECT, "must be the id of a project of the gateway's organization"))
            }
            Self::Taken => {
                let rule = "together with the others belongs to another API of the project";
                let error = Error::field("configuration.spec.displayName", rule);
                let more = ["configuration.spec.version", "configuration.spec.context"];
                Err(more.into_iter().fold(error, |error, field| error.naming(field, rule)))
            }
        }
    }
}
