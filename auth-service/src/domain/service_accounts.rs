//! Service accounts: members of an organization that are programs. What they may do there is a membership
//! that project-service keeps; it is told through the outbox.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use service_kit::{
    AuthContext, ClientInfo, Error, Kind as ErrorKind, Result,
    field::Checks,
    id::is_id,
    outbox::{Entry, Sink},
    page::Page,
};

use super::{
    Shared,
    accounts::check_name,
    audit::{Action, Chain, Event},
    opaque_tokens::{Asked, Kind, NewToken, OpaqueTokens, Token},
    organizations::{Organizations, authorize},
};
use crate::store::service_accounts::ServiceAccountStore;

/// The topic of the outbox that tells of memberships.
pub(crate) const TOPIC: &str = "service-accounts";
/// How many service accounts an organization may have.
pub(crate) const MAX_PER_ORGANIZATION: i64 = 100;

const READ: &str = "service-accounts:read";
const WRITE: &str = "service-accounts:write";
/// Every role, the highest first. The first is a person's.
const ROLES: [&str; 5] = ["owner", "admin", "developer", "viewer", "consumer"];

/// A service account. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) id: String,
    pub(crate) organization_id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) created_by: String,
    pub(crate) created_at: i64,
}

/// Says that something about a service account has changed. What is true now is looked up when it is told,
/// so that it does not matter which of several instances tells, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) id: String,
    pub(crate) organization_id: String,
    pub(crate) service_account_id: String,
}

/// What became of a new service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// It is stored.
    Stored,
    /// The organization has one of this name.
    NameTaken,
    /// The organization has [`MAX_PER_ORGANIZATION`] already.
    TooMany,
}

/// Everything about service accounts.
#[derive(Debug)]
pub(crate) struct ServiceAccounts {
    shared: Shared,
    keys: OpaqueTokens,
}

impl ServiceAccounts {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone(), keys: OpaqueTokens::new(shared) }
    }

    /// Makes a service account. PERMISSION_DENIED when its role would be above the caller's; ALREADY_EXISTS
    /// (`NAME_TAKEN`); FAILED_PRECONDITION (`TOO_MANY_SERVICE_ACCOUNTS`).
    pub(crate) async fn create(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        name: &str,
        role: &str,
        client: &ClientInfo,
    ) -> Result<ServiceAccount> {
        let own = self.authorize(caller, organization_id, WRITE, "organization").await?;
        let mut checks = Checks::new();
        let name = check_name(&mut checks, name);
        let rule = "must be admin, developer, viewer or consumer";
        checks.that(ROLES[1..].contains(&role), "role", rule).done()?;
        check_not_above(role, &own)?;
        let account = ServiceAccount {
            id: self.shared.ids.next(),
            organization_id: organization_id.to_owned(),
            name,
            role: role.to_owned(),
            created_by: caller.user_id().to_owned(),
            created_at: self.shared.clock.now_ms(),
        };
        let event = self.event(caller, &account, Action::ServiceAccountCreate, client).on(&account.id);
        match self.shared.stores.service_accounts.create(&account, &self.notice(&account), &event).await? {
            Created::Stored => {
                self.shared.membership_nudge.now();
                tracing::info!(service_account_id = account.id, organization_id, "service account created");
                Ok(account)
            }
            Created::NameTaken => Err(Error::new(
                ErrorKind::AlreadyExists,
                "NAME_TAKEN",
                "the organization has a service account of this name",
            )
            .naming("name", "belongs to another service account")),
            Created::TooMany => Err(Error::new(
                ErrorKind::FailedPrecondition,
                "TOO_MANY_SERVICE_ACCOUNTS",
                format!("the organization has {MAX_PER_ORGANIZATION} service accounts already"),
            )),
        }
    }

    /// The service accounts of an organization, newest first, and how many there are.
    pub(crate) async fn list(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        page: Page,
    ) -> Result<(Vec<ServiceAccount>, i64)> {
        self.authorize(caller, organization_id, READ, "organization").await?;
        self.shared.stores.service_accounts.list(organization_id, page).await
    }

    /// A service account of an organization of the caller's.
    pub(crate) async fn get(&self, caller: &AuthContext, id: &str) -> Result<ServiceAccount> {
        Ok(self.permitted(caller, id, READ).await?.0)
    }

    /// Deletes a service account and revokes its keys.
    pub(crate) async fn delete(&self, caller: &AuthContext, id: &str, client: &ClientInfo) -> Result<()> {
        let (account, _) = self.permitted(caller, id, WRITE).await?;
        let event = self.event(caller, &account, Action::ServiceAccountDelete, client).on(id);
        if !self.shared.stores.service_accounts.delete(&account, &self.notice(&account), &event).await? {
            return Err(not_found());
        }
        self.shared.membership_nudge.now();
        tracing::info!(service_account_id = id, "service account deleted");
        Ok(())
    }

    /// Makes a key of a service account, by the rules of [`OpaqueTokens::issue`]. PERMISSION_DENIED when its
    /// role is above the caller's.
    pub(crate) async fn create_key(
        &self,
        caller: &AuthContext,
        id: &str,
        asked: Asked,
        client: &ClientInfo,
    ) -> Result<NewToken> {
        let (account, own) = self.permitted(caller, id, WRITE).await?;
        check_not_above(&account.role, &own)?;
        let event = self.event(caller, &account, Action::ServiceAccountKeyCreate, client).because(id);
        self.keys.issue(caller, Kind::Service, id, asked, event).await
    }

    /// The keys of a service account that are not revoked, newest first, and how many there are.
    pub(crate) async fn list_keys(
        &self,
        caller: &AuthContext,
        id: &str,
        page: Page,
    ) -> Result<(Vec<Token>, i64)> {
        self.permitted(caller, id, READ).await?;
        self.shared.stores.opaque_tokens.list(Kind::Service, id, page).await
    }

    /// Revokes a key. Revoking it again is fine.
    pub(crate) async fn revoke_key(
        &self,
        caller: &AuthContext,
        id: &str,
        key_id: &str,
        client: &ClientInfo,
    ) -> Result<()> {
        let (account, _) = self.permitted(caller, id, WRITE).await?;
        let event = self.event(caller, &account, Action::ServiceAccountKeyRevoke, client).because(id);
        self.keys.end(Kind::Service, id, key_id, event).await
    }

    /// A service account, and the caller's role in its organization.
    async fn permitted(
        &self,
        caller: &AuthContext,
        id: &str,
        permission: &str,
    ) -> Result<(ServiceAccount, String)> {
        let found = if is_id(id) { self.shared.stores.service_accounts.find(id).await? } else { None };
        let account = found.ok_or_else(not_found)?;
        let role = self.authorize(caller, &account.organization_id, permission, "service account").await?;
        Ok((account, role))
    }

    async fn authorize(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        permission: &str,
        what: &str,
    ) -> Result<String> {
        authorize(&*self.shared.organizations, caller, organization_id, permission, what).await
    }

    fn event(
        &self,
        caller: &AuthContext,
        account: &ServiceAccount,
        action: Action,
        client: &ClientInfo,
    ) -> Event {
        let chain = Chain::Organization(account.organization_id.clone());
        self.shared.journal.event(chain, action, client).by(caller.user_id())
    }

    fn notice(&self, account: &ServiceAccount) -> Notice {
        Notice {
            id: self.shared.ids.next(),
            organization_id: account.organization_id.clone(),
            service_account_id: account.id.clone(),
        }
    }
}

/// Brings memberships from the outbox to project-service.
#[derive(Debug)]
pub(crate) struct Memberships {
    pub(crate) store: Arc<dyn ServiceAccountStore>,
    pub(crate) organizations: Arc<dyn Organizations>,
}

#[async_trait]
impl Sink for Memberships {
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        for entry in entries {
            let Ok(notice) = serde_json::from_slice::<Notice>(&entry.payload) else {
                // It would stop all that come behind it, for good.
                tracing::error!(id = entry.id, "a notice in the outbox cannot be read");
                continue;
            };
            let (organization_id, id) = (&notice.organization_id, &notice.service_account_id);
            let told = match self.store.find(id).await? {
                Some(account) => {
                    self.organizations.put_service_account(organization_id, id, &account.role).await
                }
                None => self.organizations.remove_service_account(organization_id, id).await,
            };
            match told {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument) => {
                    tracing::warn!(organization_id, id, %error, "a membership is refused for good");
                }
                told => told?,
            }
        }
        Ok(())
    }
}

/// Nobody gives what he has not.
fn check_not_above(role: &str, own: &str) -> Result<()> {
    let rank = |role: &str| ROLES.iter().position(|known| *known == role);
    match (rank(role), rank(own)) {
        (Some(asked), Some(own)) if asked >= own => Ok(()),
        _ => Err(Error::permission_denied(format!("the role {role} is above yours"))),
    }
}

fn not_found() -> Error {
    Error::not_found("service account")
}

#[cfg(test)]
mod tests {
    use super::{ROLES, check_not_above};

    #[test]
    fn nobody_gives_a_role_above_his_own() {
        for (above, role) in ROLES.iter().enumerate() {
            for (at, own) in ROLES.iter().enumerate() {
                assert_eq!(check_not_above(role, own).is_ok(), above >= at, "{role} by {own}");
            }
            assert!(check_not_above(role, "").is_err() && check_not_above(role, "king").is_err());
        }
        assert!(check_not_above("king", "owner").is_err());
    }
}
