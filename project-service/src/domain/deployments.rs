//! Deployments: which revision of an API each gateway is to run, and what is known of it there.
//!
//! A deployment is desired state, written together with the event that tells its gateway. Nothing here
//! waits for a gateway: what gateways do comes back as reports.

pub mod events;
mod state;
mod targets;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{
    gateway::{NewEvent, ResolvedGateway},
    project::Api,
};
use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, outbox::Nudge, page::Page};

pub(super) use self::targets::is_host;
use self::{
    events::{Gateways, OutboxEvent},
    targets::{at, revision_of},
};
pub use self::{
    state::{Action, Report, Status},
    targets::Target,
};
use super::{
    Listed,
    access::Permission,
    apis::{Apis, StoredApi},
    artifact,
    revisions::NewRevision,
};
use crate::store::{
    deployments::{ArtifactSource, DeployOrder, DeploymentStore, UndeployOrder, UndeployOutcome},
    revisions::RevisionStore,
};

/// The most gateways that are asked for at once.
const RESOLVE_MOST: usize = 1_000;

/// An API on a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// The id; a new one for each deploy.
    pub id: String,
    /// The API's id.
    pub api_id: String,
    /// The revision's id.
    pub revision_id: String,
    /// The gateway's id.
    pub gateway_id: String,
    /// The name.
    pub name: String,
    /// The host that the API is served on; the gateway's default when empty.
    pub vhost: String,
    /// Whether developers see it.
    pub display_on_devportal: bool,
    /// Whether the gateway is to run it, or to have it gone.
    pub desired: bool,
    /// What is known of it.
    pub status: Status,
    /// Why it failed; empty otherwise.
    pub status_reason: String,
    /// When it was asked for, Unix ms.
    pub deployed_at: i64,
    /// When it was asked for, or asked to be undone, Unix ms.
    pub requested_at: i64,
    /// When the gateway last acknowledged it with success, Unix ms.
    pub success_at: Option<i64>,
}

/// How an API does over all its gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// How many are connected.
    pub live: u32,
    /// How many run it.
    pub deployed: u32,
    /// How many failed with it.
    pub failed: u32,
}

/// What a gateway is to do with one API.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The newest deployment of the API.
    pub deployment: Deployment,
    /// The event that tells the gateway.
    pub event: NewEvent,
    /// Whether that event is still in the outbox.
    pub on_its_way: bool,
}

/// An artifact for a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The API's id.
    pub api_id: String,
    /// The deployment's id.
    pub deployment_id: String,
    /// The YAML document.
    pub yaml: String,
}

/// The rules of deployments.
#[derive(Debug, Clone)]
pub struct Deployments {
    apis: Apis,
    store: Arc<dyn DeploymentStore>,
    revisions: Arc<dyn RevisionStore>,
    gateways: Arc<dyn Gateways>,
    nudge: Nudge,
    clock: Clock,
    ids: Ids,
}

impl Deployments {
    /// Deployments in `store` to `gateways`; `nudge` wakes the relay of their events.
    pub fn new(
        apis: Apis,
        store: Arc<dyn DeploymentStore>,
        revisions: Arc<dyn RevisionStore>,
        gateways: Arc<dyn Gateways>,
        nudge: Nudge,
        (clock, ids): (Clock, Ids),
    ) -> Self {
        Self { apis, store, revisions, gateways, nudge, clock, ids }
    }

    /// Asks gateways to run a revision; those targets for which none is named get one that is cut from
    /// the working copy. Nothing is written unless all of it can be.
    pub async fn deploy(
        &self,
        caller: &AuthContext,
        api_id: &str,
        revision_id: &str,
        targets: &[Target],
    ) -> Result<(Vec<Deployment>, Counts)> {
        let api = self.apis.authorized(caller, api_id, Permission::ApisDeploy).await?;
        targets::check(revision_id, targets)?;
        self.check_revisions(api_id, revision_id, targets).await?;
        let known = self.resolve(&api, targets).await?;
        let gone = |(i, target): (usize, &Target)| (!known.contains_key(&target.gateway_id)).then_some(i);
        let gone: Vec<_> = targets.iter().enumerate().filter_map(gone).collect();
        if !gone.is_empty() {
            let violation = |i| service_kit::error::FieldViolation {
                field: at(i, "gatewayId"),
                message: "must be a gateway of the API's organization".to_owned(),
            };
            return Err(Error::fields(gone.into_iter().map(violation).collect()));
        }
        self.check_names(&api, targets).await?;
        let order = self.order(caller, api_id, revision_id, targets, &known);
        if !self.store.deploy(&order, &artifact::check).await? {
            return Err(Error::not_found("API"));
        }
        self.nudge.now();
        tracing::info!(api = api_id, gateways = targets.len(), "deployment asked for");
        let rows = order.rows.into_iter().map(|(row, _)| row).collect();
        Ok((rows, counts(&self.store.states(api_id).await?, &known)))
    }

    /// Asks gateways to stop running an API. Each must be running it, at the revision that is named.
    pub async fn undeploy(
        &self,
        caller: &AuthContext,
        api_id: &str,
        revision_id: &str,
        targets: &[Target],
    ) -> Result<(Vec<Deployment>, Counts)> {
        let api = self.apis.authorized(caller, api_id, Permission::ApisDeploy).await?;
        targets::check(revision_id, targets)?;
        let wanted = |(i, target): (usize, &Target)| {
            (target.gateway_id.clone(), revision_of(revision_id, i, target).0.to_owned())
        };
        let order = UndeployOrder {
            api_id: api_id.to_owned(),
            gateways: targets.iter().enumerate().map(wanted).collect(),
            requested_at: self.clock.now_ms(),
        };
        let event = |row: &Deployment| OutboxEvent::of(row, "");
        let rows = match self.store.undeploy(&order, &event).await? {
            UndeployOutcome::Written(rows) => rows,
            UndeployOutcome::Missing => return Err(Error::not_found("API")),
            UndeployOutcome::NotDeployed(i) => {
                return Err(not_deployed(i, "must be a gateway with this API"));
            }
            UndeployOutcome::OtherRevision(i) => {
                return Err(not_deployed(i, "must be a gateway with this revision of the API"));
            }
        };
        self.nudge.now();
        tracing::info!(api = api_id, gateways = targets.len(), "undeployment asked for");
        let known = self.resolve_or_none(&api, targets).await;
        Ok((rows, counts(&self.store.states(api_id).await?, &known)))
    }

    /// The newest deployment of an API on each of its gateways, newest first.
    pub async fn list(
        &self,
        caller: &AuthContext,
        api_id: &str,
        page: Page,
    ) -> Result<(Listed<Deployment>, Counts)> {
        let api = self.apis.authorized(caller, api_id, Permission::ApisRead).await?;
        let known = self.resolve_or_none(&api, &[]).await;
        let mut states = self.store.states(api_id).await?;
        let total = i64::try_from(states.len()).unwrap_or(i64::MAX);
        let list = self.store.current(api_id, page).await?;
        // A report may have come between the two: what is listed is what is counted.
        let listed: BTreeMap<&str, Status> = list.iter().map(|one| (&*one.gateway_id, one.status)).collect();
        for (gateway, status) in &mut states {
            *status = listed.get(&**gateway).copied().unwrap_or(*status);
        }
        Ok((Listed { list, total }, counts(&states, &known)))
    }

    /// Records what gateways reported. What is unknown, or changes nothing, is passed over.
    pub async fn report(&self, reports: &[Report]) -> Result<()> {
        self.store.report(reports).await
    }

    /// What a gateway, which serves on `vhost`, is to run: the newest deployment of each API, undeployed
    /// ones included. An API that is in nothing of this is gone: its deployments go with it, and only then.
    pub async fn desired(&self, gateway_id: &str, vhost: &str) -> Result<Vec<Desired>> {
        let deployments = self.store.on_gateway(gateway_id).await?;
        let desired = |deployment: Deployment| {
            let event = events::event_of(&deployment, vhost);
            Desired { deployment, event, on_its_way: false }
        };
        let mut desired: Vec<_> = deployments.into_iter().map(desired).collect();
        // What a gateway has answered has left.
        let unanswered =
            |one: &&Desired| matches!(one.deployment.status, Status::Pending | Status::Undeploying);
        let asked = desired.iter().filter(unanswered).map(|one| one.event.id.clone()).collect();
        // After the deployments were read: what has left in between is in the gateway's log by now.
        let waiting = self.store.waiting(asked).await?;
        for one in &mut desired {
            one.on_its_way = waiting.contains(&one.event.id);
        }
        Ok(desired)
    }

    /// Artifacts of deployments to a gateway; those that are not its own are left out.
    pub async fn artifacts(&self, gateway_id: &str, deployment_ids: &[String]) -> Result<Vec<Artifact>> {
        let mut artifacts = Vec::with_capacity(deployment_ids.len());
        for id in deployment_ids {
            artifacts.extend(self.store.artifact(gateway_id, id).await?.map(artifact_of).transpose()?);
        }
        Ok(artifacts)
    }

    /// The artifact of the newest deployment of an API that a gateway is to run.
    pub async fn newest_artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<Artifact>> {
        self.store.newest_artifact(gateway_id, api_id).await?.map(artifact_of).transpose()
    }

    /// Which of these APIs exist in an organization.
    pub async fn existing(&self, organization_id: &str, api_ids: &[String]) -> Result<Vec<String>> {
        self.store.existing_apis(organization_id, api_ids).await
    }

    /// Every revision that is named must be one of the API, and gateways must accept it.
    async fn check_revisions(&self, api_id: &str, revision_id: &str, targets: &[Target]) -> Result<()> {
        let mut named = BTreeMap::new();
        for (i, target) in targets.iter().enumerate() {
            let (id, field) = revision_of(revision_id, i, target);
            if !id.is_empty() {
                named.entry(id).or_insert(field);
            }
        }
        for (id, field) in named {
            let found = self.revisions.revision(api_id, id).await?;
            let (_, frozen) = found.ok_or_else(|| Error::field(field, "must be a revision of the API"))?;
            artifact::check(&frozen)?;
        }
        Ok(())
    }

    /// A gateway takes one API of a name and version.
    async fn check_names(&self, api: &StoredApi, targets: &[Target]) -> Result<()> {
        let Some(version) = artifact::shown_version(&api.api) else { return Ok(()) };
        let others = self.store.namesakes(&api.api.id).await?;
        let taken = |target: &Target| {
            let is_there = |(gateway, other): &(String, String)| {
                *gateway == target.gateway_id && artifact::gateway_version(other) == Some(version)
            };
            others.iter().any(is_there)
        };
        let mut broken = targets.iter().enumerate().filter(|(_, target)| taken(target)).peekable();
        let Some((first, _)) = broken.peek() else { return Ok(()) };
        let rule = "must not have another API with this name and version";
        let message = format!("the API cannot be deployed: {} {rule}", at(*first, "gatewayId"));
        let error = Error::new(Kind::FailedPrecondition, "NOT_DEPLOYABLE", message);
        Err(broken.take(artifact::MOST).fold(error, |error, (i, _)| error.naming(at(i, "gatewayId"), rule)))
    }

    /// Everything that a deploy writes.
    fn order(
        &self,
        caller: &AuthContext,
        api_id: &str,
        revision_id: &str,
        targets: &[Target],
        known: &BTreeMap<String, ResolvedGateway>,
    ) -> DeployOrder {
        let now = self.clock.now_ms();
        let cut = NewRevision {
            id: self.ids.next(),
            api_id: api_id.to_owned(),
            description: String::new(),
            created_by: caller.user_id().to_owned(),
            created_at: now,
        };
        let row = |(i, target): (usize, &Target)| {
            let revision = revision_of(revision_id, i, target).0;
            let row = Deployment {
                id: self.ids.next(),
                api_id: api_id.to_owned(),
                revision_id: if revision.is_empty() { &cut.id } else { revision }.to_owned(),
                gateway_id: target.gateway_id.clone(),
                name: target.name.clone(),
                vhost: target.vhost.clone(),
                display_on_devportal: target.display_on_devportal,
                desired: true,
                status: Status::Pending,
                status_reason: String::new(),
                deployed_at: now,
                requested_at: now,
                success_at: None,
            };
            let default =
                known.get(&row.gateway_id).map(|gateway| gateway.vhost.as_str()).unwrap_or_default();
            let event = OutboxEvent::of(&row, default);
            (row, event)
        };
        let rows: Vec<_> = targets.iter().enumerate().map(row).collect();
        let needed = rows.iter().any(|(row, _)| row.revision_id == cut.id);
        DeployOrder { api_id: api_id.to_owned(), revision: needed.then_some(cut), rows }
    }

    /// The gateways of the targets, and those that have the API already, as far as they exist.
    async fn resolve(
        &self,
        api: &StoredApi,
        targets: &[Target],
    ) -> Result<BTreeMap<String, ResolvedGateway>> {
        let mut ids: BTreeSet<String> = targets.iter().map(|target| target.gateway_id.clone()).collect();
        ids.extend(self.store.states(&api.api.id).await?.into_iter().map(|(gateway, _)| gateway));
        let ids: Vec<String> = ids.into_iter().collect();
        let mut known = BTreeMap::new();
        for some in ids.chunks(RESOLVE_MOST) {
            let found = self.gateways.resolve(&api.organization_id, some).await?;
            known.extend(found.into_iter().map(|gateway| (gateway.id.clone(), gateway)));
        }
        Ok(known)
    }

    /// As [`Self::resolve`], for answers that are still useful when nobody knows who is connected.
    async fn resolve_or_none(
        &self,
        api: &StoredApi,
        targets: &[Target],
    ) -> BTreeMap<String, ResolvedGateway> {
        self.resolve(api, targets).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot ask which gateways are connected");
            BTreeMap::new()
        })
    }
}

/// The counts over the states on all gateways of an API.
fn counts(states: &[(String, Status)], known: &BTreeMap<String, ResolvedGateway>) -> Counts {
    let of = |holds: &dyn Fn(&str, Status) -> bool| {
        let count = states.iter().filter(|(gateway, status)| holds(gateway, *status)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let connected = |gateway: &str| known.get(gateway).is_some_and(|known| known.connected);
    Counts {
        live: of(&|gateway, status| status != Status::Undeployed && connected(gateway)),
        deployed: of(&|_, status| status == Status::Deployed),
        failed: of(&|_, status| status == Status::Failed),
    }
}

/// The check of a working copy that a deploy freezes.
pub type CheckApi<'a> = &'a (dyn Fn(&Api) -> Result<()> + Send + Sync);

fn artifact_of(source: ArtifactSource) -> Result<Artifact> {
    let yaml =
        artifact::yaml(&source.api, &source.api_id, &source.project_id, &source.vhost, source.kept.as_ref())?;
    Ok(Artifact { api_id: source.api_id, deployment_id: source.deployment_id, yaml })
}

fn not_deployed(index: usize, rule: &str) -> Error {
    let field = at(index, "gatewayId");
    let message = format!("{field} {rule}");
    Error::new(Kind::FailedPrecondition, "NOT_DEPLOYED", message).naming(field, rule)
}
