//! Projects: names unique in an organization, never the last one gone, never one that holds APIs.

use std::sync::Arc;

use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, field::Checks, page::Page};

use super::{
    Listed,
    access::{Access, Permission},
};
use crate::store::projects::ProjectStore;

/// A place for APIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The id.
    pub id: String,
    /// The organization's id.
    pub organization_id: String,
    /// The name, unique in the organization.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The user who created it.
    pub created_by: String,
    /// When it was created, Unix ms.
    pub created_at: i64,
    /// When it was last changed, Unix ms.
    pub updated_at: i64,
}

/// What came of deleting a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// It is gone.
    Deleted,
    /// It was not there.
    Missing,
    /// It holds APIs.
    NotEmpty,
    /// The organization has no other.
    Last,
}

/// The rules of projects.
#[derive(Debug, Clone)]
pub struct Projects {
    store: Arc<dyn ProjectStore>,
    access: Access,
    clock: Clock,
    ids: Ids,
}

impl Projects {
    /// Projects in `store`.
    pub fn new(store: Arc<dyn ProjectStore>, access: Access, clock: Clock, ids: Ids) -> Self {
        Self { store, access, clock, ids }
    }

    /// Creates a project.
    pub async fn create(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        name: &str,
        description: &str,
    ) -> Result<Project> {
        let name = name.trim();
        if organization_id.is_empty() {
            let mut checks = Checks::new();
            checks.that(false, "organizationId", "is required");
            check(&mut checks, name, description);
            checks.done()?;
        }
        self.access.authorize(caller, organization_id, Permission::ProjectsWrite, "organization").await?;
        let mut checks = Checks::new();
        check(&mut checks, name, description);
        checks.done()?;
        let now = self.clock.now_ms();
        let project = Project {
            id: self.ids.next(),
            organization_id: organization_id.to_owned(),
            name: name.to_owned(),
            description: description.to_owned(),
            created_by: caller.user_id().to_owned(),
            created_at: now,
            updated_at: now,
        };
        if !self.store.create_project(&project).await? {
            return Err(name_taken(name));
        }
        tracing::info!(project = project.id, organization = organization_id, "project created");
        Ok(project)
    }

    /// Projects by name: of one organization, or of all of the caller's when `organization_id` is empty.
    pub async fn list(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        page: Page,
    ) -> Result<Listed<Project>> {
        if !organization_id.is_empty() {
            self.access.authorize(caller, organization_id, Permission::ProjectsRead, "organization").await?;
        }
        let roles = Permission::ProjectsRead.roles();
        self.store.list_projects(caller.user_id(), &roles, organization_id, page).await
    }

    /// A project in which the caller holds `permission`.
    pub async fn authorized(
        &self,
        caller: &AuthContext,
        id: &str,
        permission: Permission,
    ) -> Result<Project> {
        let project = self.find(id).await?;
        self.access.authorize(caller, &project.organization_id, permission, "project").await?;
        Ok(project)
    }

    /// Changes name and description.
    pub async fn update(
        &self,
        caller: &AuthContext,
        id: &str,
        name: &str,
        description: &str,
    ) -> Result<Project> {
        let project = self.authorized(caller, id, Permission::ProjectsWrite).await?;
        let name = name.trim();
        let mut checks = Checks::new();
        check(&mut checks, name, description);
        checks.done()?;
        let now = self.clock.now_ms();
        if !self.store.update_project(id, name, description, now).await? {
            return Err(name_taken(name));
        }
        Ok(Project { name: name.to_owned(), description: description.to_owned(), updated_at: now, ..project })
    }

    /// Deletes a project.
    pub async fn delete(&self, caller: &AuthContext, id: &str) -> Result<()> {
        let project = self.find(id).await?;
        let organization = &project.organization_id;
        self.access
            .authorize_delete(
                caller,
                organization,
                Permission::ProjectsDelete,
                &project.created_by,
                "project",
            )
            .await?;
        let refused = |reason, message| Err(Error::new(Kind::FailedPrecondition, reason, message));
        match self.store.delete_project(organization, id).await? {
            DeleteOutcome::Deleted => {
                tracing::info!(project = id, organization, "project deleted");
                Ok(())
            }
            DeleteOutcome::Missing => Err(Error::not_found("project")),
            DeleteOutcome::NotEmpty => refused("PROJECT_NOT_EMPTY", "the project holds APIs"),
            DeleteOutcome::Last => refused("LAST_PROJECT", "the last project of an organization must stay"),
        }
    }

    async fn find(&self, id: &str) -> Result<Project> {
        if !service_kit::id::is_id(id) {
            return Err(Error::not_found("project"));
        }
        self.store.project(id).await?.ok_or_else(|| Error::not_found("project"))
    }
}

fn check(checks: &mut Checks, name: &str, description: &str) {
    checks
        .length("name", name, 1, 128)
        .printable("name", name, false)
        .length("description", description, 0, 1_024)
        .printable("description", description, true);
}

fn name_taken(name: &str) -> Error {
    Error::new(Kind::AlreadyExists, "NAME_TAKEN", format!("the organization has a project named {name:?}"))
        .naming("name", "belongs to another project of the organization")
}
