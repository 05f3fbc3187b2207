//! What project-service knows and this service does not: who may do what in an organization.

use std::fmt;

use async_trait::async_trait;
use service_kit::{AuthContext, Error, Result};

/// What a user may be told of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// A member with this role, who may.
    Allowed(String),
    /// A member with this role, who may not.
    Denied(String),
    /// No member, or no such organization: both look alike.
    Hidden,
}

/// project-service, as this service needs it.
#[async_trait]
pub(crate) trait Organizations: fmt::Debug + Send + Sync {
    /// Whether a user may do something in an organization.
    async fn check(&self, user_id: &str, organization_id: &str, permission: &str) -> Result<Decision>;
    /// Makes a service account a member with a role. Doing it again is fine.
    async fn put_service_account(&self, organization_id: &str, id: &str, role: &str) -> Result<()>;
    /// Ends the membership of a service account. Doing it again is fine.
    async fn remove_service_account(&self, organization_id: &str, id: &str) -> Result<()>;
}

/// The caller's role, if it holds `permission`. NOT_FOUND of `what` when the caller is no member,
/// PERMISSION_DENIED when the role lacks the permission.
pub(crate) async fn authorize(
    organizations: &dyn Organizations,
    caller: &AuthContext,
    organization_id: &str,
    permission: &str,
    what: &str,
) -> Result<String> {
    match organizations.check(caller.user_id(), organization_id, permission).await? {
        Decision::Allowed(role) => Ok(role),
        Decision::Denied(role) => {
            Err(Error::permission_denied(format!("the role {role} lacks {permission}")))
        }
        Decision::Hidden => Err(Error::not_found(what)),
    }
}
