//! APIs: complete descriptions of what a project offers. Checked whole, written whole, read back whole.
//!
//! The model is the contract's own message ([`Api`]): a second copy of its sixty fields could only drift.
//! An `Api` outside of this module never holds a private key.

mod keys;
mod normalize;
mod validate;

use std::sync::Arc;

use proto::{project::Api, time::Timestamp};
use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, outbox::Nudge, page::Page, seal::Sealer};

pub use self::keys::PrivateKeys;
use super::{
    Listed,
    access::{Access, Permission},
    deployments::events::OutboxEvent,
    projects::Projects,
};
use crate::store::apis::ApiStore;

/// An API and whom it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredApi {
    /// The organization's id.
    pub organization_id: String,
    /// The user who created it.
    pub created_by: String,
    /// The API, with its id, project and times, without private keys.
    pub api: Api,
}

/// The document that an API was imported from, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// `application/json` or `application/yaml`.
    pub media_type: String,
    /// The document.
    pub document: Vec<u8>,
}

/// What came of writing an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is there.
    Written,
    /// Its project, or itself, is gone.
    Missing,
    /// The project has another API with its name, context and version.
    Taken,
}

/// What came of deleting an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// It is gone.
    Deleted,
    /// It was not there.
    Missing,
    /// A gateway is to run it.
    Deployed,
}

/// The rules of APIs.
#[derive(Debug, Clone)]
pub struct Apis {
    store: Arc<dyn ApiStore>,
    projects: Projects,
    access: Access,
    sealer: Sealer,
    nudge: Nudge,
    clock: Clock,
    ids: Ids,
}

impl Apis {
    /// APIs in `store`, their private keys under `sealer`; `nudge` wakes the outbox.
    pub fn new(
        store: Arc<dyn ApiStore>,
        projects: Projects,
        access: Access,
        sealer: Sealer,
        nudge: Nudge,
        clock: Clock,
        ids: Ids,
    ) -> Self {
        Self { store, projects, access, sealer, nudge, clock, ids }
    }

    /// Creates an API in the project that its path or its `projectId` names; with the document that it
    /// was imported from, if it was.
    pub async fn create(
        &self,
        caller: &AuthContext,
        project_id: &str,
        mut api: Api,
        definition: Option<Definition>,
    ) -> Result<StoredApi> {
        let project_id = match (project_id, api.project_id.as_str()) {
            ("", "") => return Err(wrong_project(api, "is required")),
            ("", id) | (id, "") => id.to_owned(),
            (path, body) if path == body => path.to_owned(),
            _ => return Err(wrong_project(api, "must be the project of the path, or be left out")),
        };
        let organization_id = self.authorize_create(caller, &project_id).await?;
        validate::accept(&mut api, None)?;
        let keys = PrivateKeys::take_from(&mut api);
        let now = Timestamp::from_unix_ms(self.clock.now_ms());
        api.id = self.ids.next();
        api.project_id = project_id;
        (api.created_at, api.updated_at) = (Some(now), Some(now));
        let new = StoredApi { organization_id, created_by: caller.user_id().to_owned(), api };
        let sealed = keys.seal(&self.sealer, &new.api.id)?;
        match self.store.create_api(&new, sealed, definition.as_ref()).await? {
            WriteOutcome::Written => {
                tracing::info!(api = new.api.id, project = new.api.project_id, "API created");
                Ok(new)
            }
            WriteOutcome::Missing => Err(Error::not_found("project")),
            WriteOutcome::Taken => Err(taken(&new.api)),
        }
    }

    /// Whether the caller may create APIs in a project; the project's organization.
    pub async fn authorize_create(&self, caller: &AuthContext, project_id: &str) -> Result<String> {
        let project = self.projects.authorized(caller, project_id, Permission::ApisWrite).await?;
        Ok(project.organization_id)
    }

    /// APIs by name and version: of one project, or of all that the caller may see when `project_id` is
    /// empty. Without backend services and operations: a hundred large APIs would make an answer of
    /// a hundred megabytes.
    pub async fn list(
        &self,
        caller: &AuthContext,
        project_id: &str,
        page: Page,
    ) -> Result<Listed<StoredApi>> {
        if !project_id.is_empty() {
            self.projects.authorized(caller, project_id, Permission::ApisRead).await?;
        }
        let roles = Permission::ApisRead.roles();
        let mut listed = self.store.list_apis(caller.user_id(), &roles, project_id, page).await?;
        for stored in &mut listed.list {
            stored.api.backend_services = Vec::new();
            stored.api.operations = Vec::new();
        }
        Ok(listed)
    }

    /// An API in whose organization the caller holds `permission`.
    pub async fn authorized(
        &self,
        caller: &AuthContext,
        id: &str,
        permission: Permission,
    ) -> Result<StoredApi> {
        let found = self.find(id).await?;
        self.access.authorize(caller, &found.organization_id, permission, "API").await?;
        Ok(found)
    }

    /// Replaces an API. A private key that is left out stays as it is.
    pub async fn update(&self, caller: &AuthContext, id: &str, mut api: Api) -> Result<StoredApi> {
        let stored = self.authorized(caller, id, Permission::ApisWrite).await?;
        if !api.project_id.is_empty() && api.project_id != stored.api.project_id {
            return Err(wrong_project(api, "must be the API's project, or be left out"));
        }
        validate::accept(&mut api, Some(&stored.api))?;
        let keys = PrivateKeys::take_from(&mut api);
        let places = keys::places(&api);
        api.id = id.to_owned();
        api.project_id = stored.api.project_id;
        api.created_at = stored.api.created_at;
        api.updated_at = Some(Timestamp::from_unix_ms(self.clock.now_ms()));
        let changed = StoredApi { api, ..stored };
        let merge = |sealed: Option<Vec<u8>>| {
            let known = PrivateKeys::open(&self.sealer, id, sealed.as_deref())?;
            known.kept_at(&places, &keys).seal(&self.sealer, id)
        };
        match self.store.update_api(&changed, &merge).await? {
            WriteOutcome::Written => {
                tracing::info!(api = id, "API changed");
                Ok(changed)
            }
            WriteOutcome::Missing => Err(Error::not_found("API")),
            WriteOutcome::Taken => Err(taken(&changed.api)),
        }
    }

    /// Deletes an API that no gateway is to run.
    pub async fn delete(&self, caller: &AuthContext, id: &str) -> Result<()> {
        let found = self.find(id).await?;
        let (organization, owner) = (&found.organization_id, &found.created_by);
        self.access.authorize_delete(caller, organization, Permission::ApisDelete, owner, "API").await?;
        let event = |gateway: &str| OutboxEvent::deleted(id, gateway);
        match self.store.delete_api(id, &event).await? {
            DeleteOutcome::Deleted => {
                self.nudge.now();
                tracing::info!(api = id, "API deleted");
                Ok(())
            }
            DeleteOutcome::Missing => Err(Error::not_found("API")),
            DeleteOutcome::Deployed => Err(Error::new(
                Kind::FailedPrecondition,
                "API_DEPLOYED",
                "the API is deployed; undeploy it from all gateways first",
            )),
        }
    }

    /// The document that an API was imported from.
    pub async fn definition(&self, caller: &AuthContext, id: &str) -> Result<Definition> {
        self.authorized(caller, id, Permission::ApisRead).await?;
        self.store
            .definition(id)
            .await?
            .ok_or_else(|| Error::not_found("definition: the API was not imported"))
    }

    async fn find(&self, id: &str) -> Result<StoredApi> {
        if !service_kit::id::is_id(id) {
            return Err(Error::not_found("API"));
        }
        self.store.api(id).await?.ok_or_else(|| Error::not_found("API"))
    }
}

/// Brings an API into the form in which it is kept, and checks it as any new one.
pub(super) fn accept(api: &mut Api) -> Result<()> {
    validate::accept(api, None)
}

/// The project of a request is wrong; so may be other fields, which are told as well.
fn wrong_project(mut api: Api, rule: &str) -> Error {
    match validate::accept(&mut api, None) {
        Ok(()) => Error::field("projectId", rule),
        Err(error) => error.naming("projectId", rule),
    }
}

fn taken(api: &Api) -> Error {
    let message = format!(
        "the project has an API {:?} with context {} and version {}",
        api.name, api.context, api.version
    );
    let mut error = Error::new(Kind::AlreadyExists, "API_EXISTS", message);
    for field in ["name", "context", "version"] {
        error = error.naming(field, "together with the others belongs to another API of the project");
    }
    error
}
