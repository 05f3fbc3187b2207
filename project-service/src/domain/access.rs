//! Who may do what in an organization: five roles, one static table. Deny by default.
//!
//! A token's scopes are checked before (service-kit); they only narrow what the table allows.

use std::sync::Arc;

use service_kit::{AuthContext, Error, Result};

use crate::store::organizations::OrganizationStore;

/// A member's role in an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// May do everything.
    Owner,
    /// May do everything but end the organization.
    Admin,
    /// Makes and deploys APIs.
    Developer,
    /// Reads.
    Viewer,
    /// Sees the organization and what it offers.
    Consumer,
}

/// Something that a role may hold: `resource:action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    OrganizationsRead,
    OrganizationsWrite,
    ProjectsRead,
    ProjectsWrite,
    ProjectsDelete,
    ApisRead,
    ApisWrite,
    ApisDelete,
    ApisDeploy,
    GatewaysRead,
    GatewaysWrite,
    GatewaysDelete,
    GatewaysRotate,
    MembersWrite,
    ServiceAccountsRead,
    ServiceAccountsWrite,
    AuditRead,
}

/// What somebody who asks may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A member who may.
    Allowed(Role),
    /// A member who may not.
    Denied(Role),
    /// Not a member, or no such organization: both look alike.
    Hidden,
}

/// Answers for every permission in every organization.
#[derive(Debug, Clone)]
pub struct Access {
    store: Arc<dyn OrganizationStore>,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Admin, Self::Developer, Self::Viewer, Self::Consumer];

    /// The name in answers and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Viewer => "viewer",
            Self::Consumer => "consumer",
        }
    }

    /// The role with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The table.
    pub fn allows(self, permission: Permission) -> bool {
        use Permission as P;
        match self {
            Self::Owner | Self::Admin => true,
            Self::Developer => matches!(
                permission,
                P::OrganizationsRead
                    | P::ProjectsRead
                    | P::ProjectsWrite
                    | P::ApisRead
                    | P::ApisWrite
                    | P::ApisDeploy
                    | P::GatewaysRead
            ),
            Self::Viewer => {
                matches!(permission, P::OrganizationsRead | P::ProjectsRead | P::ApisRead | P::GatewaysRead)
            }
            Self::Consumer => permission == P::OrganizationsRead,
        }
    }
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 17] = [
        Self::OrganizationsRead,
        Self::OrganizationsWrite,
        Self::ProjectsRead,
        Self::ProjectsWrite,
        Self::ProjectsDelete,
        Self::ApisRead,
        Self::ApisWrite,
        Self::ApisDelete,
        Self::ApisDeploy,
        Self::GatewaysRead,
        Self::GatewaysWrite,
        Self::GatewaysDelete,
        Self::GatewaysRotate,
        Self::MembersWrite,
        Self::ServiceAccountsRead,
        Self::ServiceAccountsWrite,
        Self::AuditRead,
    ];

    /// The name, as in tokens' scopes and in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrganizationsRead => "organizations:read",
            Self::OrganizationsWrite => "organizations:write",
            Self::ProjectsRead => "projects:read",
            Self::ProjectsWrite => "projects:write",
            Self::ProjectsDelete => "projects:delete",
            Self::ApisRead => "apis:read",
            Self::ApisWrite => "apis:write",
            Self::ApisDelete => "apis:delete",
            Self::ApisDeploy => "apis:deploy",
            Self::GatewaysRead => "gateways:read",
            Self::GatewaysWrite => "gateways:write",
            Self::GatewaysDelete => "gateways:delete",
            Self::GatewaysRotate => "gateways:rotate",
            Self::MembersWrite => "members:write",
            Self::ServiceAccountsRead => "service-accounts:read",
            Self::ServiceAccountsWrite => "service-accounts:write",
            Self::AuditRead => "audit:read",
        }
    }

    /// The permission with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.as_str() == name)
    }

    /// The roles that hold it.
    pub fn roles(self) -> Vec<Role> {
        Role::ALL.into_iter().filter(|role| role.allows(self)).collect()
    }
}

impl Access {
    /// Answers from the memberships in `store`.
    pub fn new(store: Arc<dyn OrganizationStore>) -> Self {
        Self { store }
    }

    /// Whether a user may do something in an organization.
    pub async fn check(
        &self,
        user_id: &str,
        organization_id: &str,
        permission: Permission,
    ) -> Result<Decision> {
        if !service_kit::id::is_id(organization_id) || !may_be_user(user_id) {
            return Ok(Decision::Hidden);
        }
        Ok(match self.store.role(organization_id, user_id).await? {
            None => Decision::Hidden,
            Some(role) if role.allows(permission) => Decision::Allowed(role),
            Some(role) => Decision::Denied(role),
        })
    }

    /// The caller's role, if it holds `permission`. NOT_FOUND of `what` when the caller is no member,
    /// PERMISSION_DENIED when the role lacks the permission.
    pub async fn authorize(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        permission: Permission,
        what: &str,
    ) -> Result<Role> {
        match self.check(caller.user_id(), organization_id, permission).await? {
            Decision::Allowed(role) => Ok(role),
            Decision::Denied(role) => Err(denied(role, permission)),
            Decision::Hidden => Err(Error::not_found(what)),
        }
    }

    /// As [`Self::authorize`], for deleting something: a developer may delete what is his own.
    pub async fn authorize_delete(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        permission: Permission,
        created_by: &str,
        what: &str,
    ) -> Result<Role> {
        match self.check(caller.user_id(), organization_id, permission).await? {
            Decision::Denied(Role::Developer) if created_by == caller.user_id() => Ok(Role::Developer),
            Decision::Allowed(role) => Ok(role),
            Decision::Denied(role) => Err(denied(role, permission)),
            Decision::Hidden => Err(Error::not_found(what)),
        }
    }

    /// The organizations in which a user holds a permission.
    pub async fn organizations_with(&self, user_id: &str, permission: Permission) -> Result<Vec<String>> {
        if !may_be_user(user_id) {
            return Ok(Vec::new());
        }
        self.store.memberships(user_id, &permission.roles()).await
    }
}

/// Whether a text can be a user's id at all: PostgreSQL does not even compare with a zero character.
fn may_be_user(id: &str) -> bool {
    !id.chars().any(char::is_control)
}

fn denied(role: Role, permission: Permission) -> Error {
    Error::permission_denied(format!("the role {} lacks {}", role.as_str(), permission.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{Permission, Role};

    #[test]
    fn names_are_read_back() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        for permission in Permission::ALL {
            assert_eq!(Permission::parse(permission.as_str()), Some(permission));
        }
        assert_eq!(Role::parse("Owner"), None);
        assert_eq!(Permission::parse("apis:*"), None);
    }

    #[test]
    fn every_permission_of_the_contract_is_in_the_table() {
        // What somebody may do to his own account, no role decides.
        let own = ["profile:", "sessions:", "tokens:"];
        for method in proto::Contract::get().methods() {
            let of_account = method.package() == "tollgate.auth.v1"
                && own.iter().any(|resource| method.permission.starts_with(resource));
            if !of_account && !method.permission.is_empty() {
                assert!(Permission::parse(&method.permission).is_some(), "{}", method.path);
            }
        }
    }

    #[test]
    fn a_higher_role_may_do_all_that_a_lower_one_may() {
        for pair in Role::ALL.windows(2) {
            for permission in Permission::ALL {
                assert!(pair[0].allows(permission) || !pair[1].allows(permission), "{pair:?} {permission:?}");
            }
        }
        assert!(!Role::Developer.allows(Permission::GatewaysRotate));
        assert!(!Role::Developer.allows(Permission::ServiceAccountsRead));
        assert!(!Role::Viewer.allows(Permission::ApisWrite) && !Role::Consumer.allows(Permission::ApisRead));
    }
}
