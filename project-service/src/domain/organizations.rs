//! Organizations: made with an owner and a first project; seen by their members only.

use std::sync::Arc;

use regex_lite::Regex;
use service_kit::{
    AuthContext, Clock, Error, Ids, Kind, Result, field::Checks, page::Page, token::AMR_SERVICE_KEY,
};

use super::{
    Listed,
    access::{Access, Permission, Role},
};
use crate::store::organizations::OrganizationStore;

/// The first project of every organization.
const FIRST_PROJECT: &str = "Default";

/// An organization as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    /// The id.
    pub id: String,
    /// The handle, unique.
    pub handle: String,
    /// The name to show.
    pub name: String,
    /// The member's role.
    pub role: Role,
    /// When it was created, Unix ms.
    pub created_at: i64,
    /// When it was last changed, Unix ms.
    pub updated_at: i64,
}

/// An organization to write, with its owner and its first project.
#[derive(Debug, Clone)]
pub struct NewOrganization {
    /// The id.
    pub id: String,
    /// The handle.
    pub handle: String,
    /// The name to show.
    pub name: String,
    /// The user who owns it.
    pub owner_id: String,
    /// The first project's id.
    pub project_id: String,
    /// The first project's name.
    pub project_name: &'static str,
    /// Now, Unix ms.
    pub now: i64,
}

/// What came of writing an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOutcome {
    /// It is there.
    Created,
    /// Another organization has the handle.
    HandleTaken,
    /// There is an organization with the id.
    IdTaken,
}

/// What came of writing the membership of a service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is as it was asked for.
    Done,
    /// There is no such organization.
    NoOrganization,
    /// The membership is an owner's.
    Owner,
}

/// The rules of organizations.
#[derive(Debug, Clone)]
pub struct Organizations {
    store: Arc<dyn OrganizationStore>,
    access: Access,
    clock: Clock,
    ids: Ids,
}

impl Organizations {
    /// Organizations in `store`.
    pub fn new(store: Arc<dyn OrganizationStore>, access: Access, clock: Clock, ids: Ids) -> Self {
        Self { store, access, clock, ids }
    }

    /// Creates an organization that the caller owns. `id` may be empty. PERMISSION_DENIED
    /// (`SERVICE_ACCOUNT`) when the caller is a service account: it belongs to its organization and owns none.
    pub async fn create(
        &self,
        caller: &AuthContext,
        id: &str,
        handle: &str,
        name: &str,
    ) -> Result<Organization> {
        if caller.claims().amr.iter().any(|method| method == AMR_SERVICE_KEY) {
            return Err(Error::new(
                Kind::PermissionDenied,
                "SERVICE_ACCOUNT",
                "a service account cannot own an organization",
            ));
        }
        let (id, name) = (id.to_ascii_lowercase(), name.trim());
        let mut checks = Checks::new();
        if !id.is_empty() {
            checks.id("id", &id);
        }
        check_handle(&mut checks, handle);
        check_name(&mut checks, name);
        checks.done()?;
        let new = NewOrganization {
            id: if id.is_empty() { self.ids.next() } else { id },
            handle: handle.to_owned(),
            name: name.to_owned(),
            owner_id: caller.user_id().to_owned(),
            project_id: self.ids.next(),
            project_name: FIRST_PROJECT,
            now: self.clock.now_ms(),
        };
        match self.store.create_organization(&new).await? {
            CreateOutcome::Created => {
                tracing::info!(organization = new.id, handle, "organization created");
                Ok(Organization {
                    id: new.id,
                    handle: new.handle,
                    name: new.name,
                    role: Role::Owner,
                    created_at: new.now,
                    updated_at: new.now,
                })
            }
            CreateOutcome::HandleTaken => Err(Error::new(
                Kind::AlreadyExists,
                "HANDLE_TAKEN",
                format!("handle {handle} belongs to another organization"),
            )
            .naming("handle", "belongs to another organization")),
            CreateOutcome::IdTaken => {
                Err(Error::new(Kind::AlreadyExists, "ID_TAKEN", "an organization with this id exists")
                    .naming("id", "belongs to an existing organization"))
            }
        }
    }

    /// The caller's organizations, newest first.
    pub async fn list(&self, caller: &AuthContext, page: Page) -> Result<Listed<Organization>> {
        self.store.list_organizations(caller.user_id(), page).await
    }

    /// An organization of the caller's.
    pub async fn get(&self, caller: &AuthContext, id: &str) -> Result<Organization> {
        self.access.authorize(caller, id, Permission::OrganizationsRead, "organization").await?;
        self.seen(caller, id).await
    }

    /// Changes the name.
    pub async fn rename(&self, caller: &AuthContext, id: &str, name: &str) -> Result<Organization> {
        self.access.authorize(caller, id, Permission::OrganizationsWrite, "organization").await?;
        let name = name.trim();
        let mut checks = Checks::new();
        check_name(&mut checks, name);
        checks.done()?;
        self.store.rename_organization(id, name, self.clock.now_ms()).await?;
        self.seen(caller, id).await
    }

    /// Makes a service account a member with a role, or changes its role. NOT_FOUND when there is no such
    /// organization; PERMISSION_DENIED for the membership of an owner, which never changes so.
    pub async fn put_service_account(&self, organization_id: &str, id: &str, role: &str) -> Result<()> {
        Checks::new().id("organizationId", organization_id).id("serviceAccountId", id).done()?;
        let role = Role::parse(role)
            .filter(|role| *role != Role::Owner)
            .ok_or_else(|| Error::field("role", "must be admin, developer, viewer or consumer"))?;
        match self.store.put_service_account(organization_id, id, role, self.clock.now_ms()).await? {
            PutOutcome::Done => Ok(()),
            PutOutcome::NoOrganization => Err(Error::not_found("organization")),
            PutOutcome::Owner => Err(Error::permission_denied("an owner stays an owner")),
        }
    }

    /// Ends the membership of a service account, if there is one; never that of an owner.
    pub async fn remove_service_account(&self, organization_id: &str, id: &str) -> Result<()> {
        Checks::new().id("organizationId", organization_id).id("serviceAccountId", id).done()?;
        self.store.remove_service_account(organization_id, id).await
    }

    async fn seen(&self, caller: &AuthContext, id: &str) -> Result<Organization> {
        let seen = self.store.organization(id, caller.user_id()).await?;
        seen.ok_or_else(|| Error::not_found("organization"))
    }
}

fn check_handle(checks: &mut Checks, handle: &str) {
    static PATTERN: std::sync::LazyLock<Regex> =
        std::sync::LazyLock::new(|| Regex::new("^[a-z0-9]+(-[a-z0-9]+)*$").expect("a pattern"));
    checks.length("handle", handle, 3, 40);
    if !handle.is_empty() {
        let rule = "must consist of a-z and 0-9, with single hyphens between";
        checks.that(handle.len() <= 256 && PATTERN.is_match(handle), "handle", rule);
    }
}

fn check_name(checks: &mut Checks, name: &str) {
    checks.length("name", name, 1, 128).printable("name", name, false);
}

#[cfg(test)]
mod tests {
    use service_kit::field::Checks;

    use super::check_handle;

    #[test]
    fn handles_are_lower_case_words_between_single_hyphens() {
        let good = |handle: &str| {
            let mut checks = Checks::new();
            check_handle(&mut checks, handle);
            checks.done().is_ok()
        };
        for handle in ["abc", "a-b", "a1-2b-c", "000", &"a".repeat(40)] {
            assert!(good(handle), "{handle}");
        }
        for handle in ["", "ab", "-ab", "ab-", "a--b", "aBc", "a_b", "a b", "äbc", "abc\n", &"a".repeat(41)]
        {
            assert!(!good(handle), "{handle}");
        }
    }
}
