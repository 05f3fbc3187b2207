//! The audit log as it is read: by the owner of an account, by who may in an organization, by whoever
//! verifies it. Its heads are signed and exported, so that not even who owns the database can change it
//! unnoticed.

mod export;
mod heads;
mod key;
mod series;
mod verify;

use service_kit::{AuthContext, Error, Result, page::Page};

use super::{
    Shared,
    audit::{Chain, Recorded, hex},
    organizations::authorize,
};
use crate::store::audit_log::Row;

pub(crate) use export::Exporter;
pub(crate) use verify::{Evidence, Summary, Verification};

/// An event of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) event: Recorded,
    /// In hexadecimal digits.
    pub(crate) hash: String,
}

/// Reads the audit log for callers.
#[derive(Debug)]
pub(crate) struct AuditLog {
    shared: Shared,
}

impl AuditLog {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone() }
    }

    /// A page of the log of the caller's account, newest first, and how many events it has.
    pub(crate) async fn own(&self, caller: &AuthContext, page: Page) -> Result<(i64, Vec<Entry>)> {
        self.page(&Chain::User(caller.user_id().to_owned()), page).await
    }

    /// The same of an organization. NOT_FOUND for strangers, PERMISSION_DENIED for members whose role
    /// lacks `audit:read`.
    pub(crate) async fn of_organization(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        page: Page,
    ) -> Result<(i64, Vec<Entry>)> {
        let organizations = &*self.shared.organizations;
        authorize(organizations, caller, organization_id, "audit:read", "organization").await?;
        self.page(&Chain::Organization(organization_id.to_owned()), page).await
    }

    async fn page(&self, chain: &Chain, page: Page) -> Result<(i64, Vec<Entry>)> {
        let (total, rows) = self.shared.stores.audit_log.page(&chain.name(), page).await?;
        let entries = rows.iter().map(entry).collect::<Result<_>>()?;
        Ok((total, entries))
    }
}

fn entry(row: &Row) -> Result<Entry> {
    let event = Recorded::read(&row.body).map_err(Error::internal)?;
    Ok(Entry { event, hash: hex(&row.hash) })
}
