use project_service::domain::access::Role;
use proto::project::{
    CreateRevisionRequest, GetApiRequest, GetRevisionRequest, ListRevisionsRequest, Revision,
    UpdateApiRequest,
};
use tonic::{Code, Response, Status};

use crate::harness::{Service, User, fields, refused};

async fn cut(
    service: &Service,
    user: &User,
    api: &str,
    description: &str,
) -> Result<Response<Revision>, Status> {
    let new = CreateRevisionRequest { api_id: api.to_owned(), description: description.to_owned() };
    user.apis(service).create_revision(new).await
}

async fn get(service: &Service, user: &User, api: &str, id: &str) -> Result<Response<Revision>, Status> {
    let wanted = GetRevisionRequest { api_id: api.to_owned(), revision_id: id.to_owned() };
    user.apis(service).get_revision(wanted).await
}

async fn list(service: &Service, user: &User, api: &str, limit: u32, offset: u32) -> (Vec<u32>, u32) {
    let request = ListRevisionsRequest { api_id: api.to_owned(), limit: Some(limit), offset };
    let page = user.apis(service).list_revisions(request).await.unwrap().into_inner();
    assert_eq!(page.count as usize, page.list.len());
    assert!(page.list.iter().all(|revision| revision.api.is_none()), "lists are without the frozen APIs");
    (page.list.iter().map(|revision| revision.number).collect(), page.pagination.unwrap().total)
}

#[tokio::test]
async fn a_revision_is_the_api_as_it_was() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let api = service.api(&owner, &project, "pets").await;
        let made = cut(&service, &owner, &api.id, "first").await.unwrap().into_inner();
        assert_eq!((made.number, made.description.as_str()), (1, "first"));
        assert_eq!((&made.api_id, &made.created_by), (&api.id, &owner.id));

        let mut changed = api.clone();
        changed.description = "changed".to_owned();
        let update = UpdateApiRequest { api_id: api.id.clone(), api: Some(changed) };
        owner.apis(&service).update_api(update).await.unwrap();

        let read = get(&service, &owner, &api.id, &made.id).await.unwrap().into_inner();
        let frozen = read.api.unwrap();
        assert_eq!(frozen.description, "");
        assert_eq!((&frozen.name, &frozen.context, &frozen.version), (&api.name, &api.context, &api.version));
        assert!(frozen.is_revision);
        assert_eq!((frozen.id, frozen.revisioned_api_id, frozen.revision_id), (made.id, api.id.clone(), 1));
        assert_eq!(frozen.project_id, project);

        let second = cut(&service, &owner, &api.id, "").await.unwrap().into_inner();
        let read = get(&service, &owner, &api.id, &second.id).await.unwrap().into_inner();
        assert_eq!((read.number, read.api.unwrap().description.as_str()), (2, "changed"));
        let working = GetApiRequest { api_id: api.id.clone() };
        let working = owner.apis(&service).get_api(working).await.unwrap().into_inner();
        assert!(!working.is_revision && working.revision_id == 0);
    })
    .await;
}

#[tokio::test]
async fn numbers_have_no_gaps_under_parallel_cuts() {
    Service::on_both(async |service| {
        let service = std::sync::Arc::new(service);
        let (owner, _, project) = service.owner().await;
        let api = service.api(&owner, &project, "pets").await;
        let cuts: Vec<_> = (0..20)
            .map(|_| {
                let (service, owner, id) = (service.clone(), owner.clone(), api.id.clone());
                tokio::spawn(async move { cut(&service, &owner, &id, "").await.unwrap().into_inner().number })
            })
            .collect();
        let mut numbers = Vec::new();
        for cut in cuts {
            numbers.push(cut.await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<u32>>());
        assert_eq!(list(&service, &owner, &api.id, 3, 0).await, (vec![20, 19, 18], 20));
        assert_eq!(list(&service, &owner, &api.id, 100, 18).await, (vec![2, 1], 20));
        assert_eq!(list(&service, &owner, &api.id, 100, 20).await, (vec![], 20));
        let other = service.api(&owner, &project, "other").await;
        assert_eq!(cut(&service, &owner, &other.id, "").await.unwrap().into_inner().number, 1);
    })
    .await;
}

#[tokio::test]
async fn revisions_are_as_hidden_as_their_api() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let api = service.api(&owner, &project, "pets").await;
        let other = service.api(&owner, &project, "other").await;
        let made = cut(&service, &owner, &api.id, "").await.unwrap().into_inner();
        let viewer = service.member(&organization.id, Role::Viewer).await;
        get(&service, &viewer, &api.id, &made.id).await.unwrap();
        refused(cut(&service, &viewer, &api.id, "").await, Code::PermissionDenied);
        let stranger = service.user();
        refused(cut(&service, &stranger, &api.id, "").await, Code::NotFound);
        refused(get(&service, &stranger, &api.id, &made.id).await, Code::NotFound);
        refused(get(&service, &owner, &other.id, &made.id).await, Code::NotFound);
        refused(get(&service, &owner, &api.id, "x").await, Code::NotFound);
        refused(cut(&service, &owner, &service.ids.next(), "").await, Code::NotFound);
        let long = refused(cut(&service, &owner, &api.id, &"x".repeat(1_025)).await, Code::InvalidArgument);
        assert_eq!(fields(&long), ["description"]);
        assert_eq!(list(&service, &owner, &api.id, 20, 0).await, (vec![1], 1));
    })
    .await;
}
