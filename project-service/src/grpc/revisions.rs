//! The revision methods of `ApiService`.

use proto::project::{
    CreateRevisionRequest, GetRevisionRequest, ListRevisionsRequest, ListRevisionsResponse,
    Revision as RevisionMessage,
};
use service_kit::{AuthContext, Result, page::Page};

use super::{count, time};
use crate::domain::revisions::{Revision, Revisions};

pub(super) async fn create(
    revisions: &Revisions,
    caller: &AuthContext,
    request: CreateRevisionRequest,
) -> Result<RevisionMessage> {
    Ok(message(revisions.create(caller, &request.api_id, &request.description).await?))
}

pub(super) async fn list(
    revisions: &Revisions,
    caller: &AuthContext,
    request: ListRevisionsRequest,
) -> Result<ListRevisionsResponse> {
    let page = Page::of(request.limit, request.offset)?;
    let listed = revisions.list(caller, &request.api_id, page).await?;
    Ok(ListRevisionsResponse {
        count: count(&listed.list),
        list: listed.list.into_iter().map(message).collect(),
        pagination: Some(page.pagination(listed.total)),
    })
}

pub(super) async fn get(
    revisions: &Revisions,
    caller: &AuthContext,
    request: GetRevisionRequest,
) -> Result<RevisionMessage> {
    let (revision, api) = revisions.get(caller, &request.api_id, &request.revision_id).await?;
    Ok(RevisionMessage { api: Some(api), ..message(revision) })
}

fn message(revision: Revision) -> RevisionMessage {
    RevisionMessage {
        id: revision.id,
        api_id: revision.api_id,
        number: revision.number,
        description: revision.description,
        created_at: time(revision.created_at),
        created_by: revision.created_by,
        api: None,
    }
}
