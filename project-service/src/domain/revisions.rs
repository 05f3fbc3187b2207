//! Revisions: APIs frozen at a moment, numbered from 1 without gaps. A revision never changes; it goes
//! only with its API.

use std::sync::Arc;

use proto::{project::Api, time::Timestamp};
use service_kit::{AuthContext, Clock, Error, Ids, Result, field::Checks, page::Page};

use super::{Listed, access::Permission, apis::Apis};
use crate::store::revisions::RevisionStore;

/// A frozen copy of an API.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// The id.
    pub id: String,
    /// The API's id.
    pub api_id: String,
    /// The number, from 1.
    pub number: u32,
    /// What changed.
    pub description: String,
    /// When it was cut, Unix ms.
    pub created_at: i64,
    /// The user who cut it.
    pub created_by: String,
}

/// A revision to cut out of the working copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRevision {
    /// The id.
    pub id: String,
    /// The API's id.
    pub api_id: String,
    /// What changed.
    pub description: String,
    /// The user who cuts it.
    pub created_by: String,
    /// When it is cut, Unix ms.
    pub created_at: i64,
}

/// The rules of revisions.
#[derive(Debug, Clone)]
pub struct Revisions {
    apis: Apis,
    store: Arc<dyn RevisionStore>,
    clock: Clock,
    ids: Ids,
}

impl Revisions {
    /// Revisions of these APIs, in `store`.
    pub fn new(apis: Apis, store: Arc<dyn RevisionStore>, clock: Clock, ids: Ids) -> Self {
        Self { apis, store, clock, ids }
    }

    /// Freezes the working copy.
    pub async fn create(&self, caller: &AuthContext, api_id: &str, description: &str) -> Result<Revision> {
        self.apis.authorized(caller, api_id, Permission::ApisWrite).await?;
        let mut checks = Checks::new();
        checks.length("description", description, 0, 1_024).printable("description", description, true);
        checks.done()?;
        let new = NewRevision {
            id: self.ids.next(),
            api_id: api_id.to_owned(),
            description: description.to_owned(),
            created_by: caller.user_id().to_owned(),
            created_at: self.clock.now_ms(),
        };
        let made = self.store.create_revision(&new).await?.ok_or_else(|| Error::not_found("API"))?;
        tracing::info!(api = api_id, revision = made.number, "revision cut");
        Ok(made)
    }

    /// The revisions of an API, newest first.
    pub async fn list(&self, caller: &AuthContext, api_id: &str, page: Page) -> Result<Listed<Revision>> {
        self.apis.authorized(caller, api_id, Permission::ApisRead).await?;
        self.store.list_revisions(api_id, page).await
    }

    /// A revision and the API as it was, marked as a revision, without private keys.
    pub async fn get(&self, caller: &AuthContext, api_id: &str, id: &str) -> Result<(Revision, Api)> {
        let working = self.apis.authorized(caller, api_id, Permission::ApisRead).await?.api;
        if !service_kit::id::is_id(id) {
            return Err(Error::not_found("revision"));
        }
        let found = self.store.revision(api_id, id).await?;
        let (revision, frozen) = found.ok_or_else(|| Error::not_found("revision"))?;
        let api = Api { project_id: working.project_id, ..as_revision(&revision, frozen) };
        Ok((revision, api))
    }
}

/// A frozen API with what tells it from the working copy.
pub(super) fn as_revision(revision: &Revision, frozen: Api) -> Api {
    let cut = Some(Timestamp::from_unix_ms(revision.created_at));
    Api {
        id: revision.id.clone(),
        is_revision: true,
        revisioned_api_id: revision.api_id.clone(),
        revision_id: revision.number,
        created_at: cut,
        updated_at: cut,
        ..frozen
    }
}
