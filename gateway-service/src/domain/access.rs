//! What a user may do in an organization: project-service knows, and its answers are kept for a moment.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use moka::sync::Cache;
use service_kit::{AuthContext, Error, Result};

/// How long an answer counts. The right that is taken from a user is gone after this.
const FRESH: Duration = Duration::from_secs(5);

/// What a user may do in an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It may be done.
    Allowed,
    /// The organization may be seen, and this may not be done.
    Denied,
    /// The organization must look as if it did not exist.
    Hidden,
}

/// Who knows memberships and roles.
#[async_trait]
pub(crate) trait AccessSource: fmt::Debug + Send + Sync + 'static {
    /// The decision about one permission. UNAVAILABLE when it cannot be had.
    async fn check(&self, user_id: &str, organization_id: &str, permission: &str) -> Result<Decision>;
    /// The organizations in which the user holds a permission. UNAVAILABLE when they cannot be had.
    async fn organizations(&self, user_id: &str, permission: &str) -> Result<Vec<String>>;
}

type Question = (String, String, &'static str);

/// Asks, and remembers answers (never errors) for [`FRESH`].
#[derive(Debug, Clone)]
pub(crate) struct Access {
    source: Arc<dyn AccessSource>,
    answers: Cache<Question, Decision>,
}

impl Access {
    /// Asks `source`.
    pub(crate) fn new(source: Arc<dyn AccessSource>) -> Self {
        Self { source, answers: Cache::builder().max_capacity(50_000).time_to_live(FRESH).build() }
    }

    /// Fails unless the caller holds the permission: NOT_FOUND of `what` when the organization is hidden,
    /// PERMISSION_DENIED when it is not.
    pub(crate) async fn require(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        permission: &'static str,
        what: &str,
    ) -> Result<()> {
        let question = (caller.user_id().to_owned(), organization_id.to_owned(), permission);
        let decision = match self.answers.get(&question) {
            Some(decision) => decision,
            None => {
                let decision = self.source.check(caller.user_id(), organization_id, permission).await?;
                self.answers.insert(question, decision);
                decision
            }
        };
        match decision {
            Decision::Allowed => Ok(()),
            Decision::Denied => {
                Err(Error::permission_denied(format!("your role does not hold the permission {permission}")))
            }
            Decision::Hidden => Err(Error::not_found(what)),
        }
    }

    /// The organizations in which the caller holds the permission.
    pub(crate) async fn organizations(&self, caller: &AuthContext, permission: &str) -> Result<Vec<String>> {
        self.source.organizations(caller.user_id(), permission).await
    }
}
