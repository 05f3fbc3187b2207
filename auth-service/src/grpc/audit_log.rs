//! `AuditService`.

use proto::{
    auth::{
        AuditEvent, ListAuditEventsRequest, ListAuditEventsResponse, ListOrganizationAuditEventsRequest,
        ListOrganizationAuditEventsResponse, audit_service_server::AuditService,
    },
    time::Timestamp,
};
use service_kit::{AuthContext, page::Page};
use tonic::{Request, Response, async_trait};

use super::Answer;
use crate::domain::audit_log::{AuditLog, Entry};

/// `tollgate.auth.v1.AuditService`.
#[derive(Debug)]
pub(crate) struct AuditApi {
    pub(crate) audit_log: AuditLog,
}

#[async_trait]
impl AuditService for AuditApi {
    async fn list_audit_events(
        &self,
        request: Request<ListAuditEventsRequest>,
    ) -> Answer<ListAuditEventsResponse> {
        let caller = AuthContext::of(&request)?;
        let page = Page::of(request.get_ref().limit, request.get_ref().offset)?;
        let (total, entries) = self.audit_log.own(&caller, page).await?;
        let list = encode(entries);
        let count = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let pagination = Some(page.pagination(total));
        Ok(Response::new(ListAuditEventsResponse { count, list, pagination }))
    }

    async fn list_organization_audit_events(
        &self,
        request: Request<ListOrganizationAuditEventsRequest>,
    ) -> Answer<ListOrganizationAuditEventsResponse> {
        let caller = AuthContext::of(&request)?;
        let ListOrganizationAuditEventsRequest { organization_id, limit, offset } = request.into_inner();
        let page = Page::of(limit, offset)?;
        let (total, entries) = self.audit_log.of_organization(&caller, &organization_id, page).await?;
        let list = encode(entries);
        let count = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let pagination = Some(page.pagination(total));
        Ok(Response::new(ListOrganizationAuditEventsResponse { count, list, pagination }))
    }
}

fn encode(entries: Vec<Entry>) -> Vec<AuditEvent> {
    entries.into_iter().map(event).collect()
}

fn event(Entry { event, hash }: Entry) -> AuditEvent {
    AuditEvent {
        sequence: u64::try_from(event.sequence).unwrap_or(0),
        id: event.id,
        action: event.action,
        result: if event.success { "success" } else { "failure" }.to_owned(),
        reason: event.reason,
        actor_id: event.actor_id,
        target_id: event.target_id,
        address: event.address,
        device: event.device,
        request_id: event.request_id,
        time: Some(Timestamp::from_unix_ms(event.at)),
        hash,
    }
}
