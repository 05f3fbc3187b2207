use proto::project::{
    CreateProjectRequest, DeleteProjectRequest, GetProjectRequest, ListProjectsRequest, Project,
    UpdateProjectRequest,
};
use tonic::{Code, Response, Status};

use crate::harness::{Service, User, fields, refused};
use project_service::domain::access::Role;

async fn create(
    service: &Service,
    user: &User,
    organization_id: &str,
    name: &str,
) -> Result<Response<Project>, Status> {
    let new = CreateProjectRequest {
        organization_id: organization_id.to_owned(),
        name: name.to_owned(),
        description: "what\nfor".to_owned(),
    };
    user.projects(service).create_project(new).await
}

async fn names(service: &Service, user: &User, organization_id: &str) -> Vec<String> {
    let all = ListProjectsRequest { organization_id: organization_id.to_owned(), ..Default::default() };
    let page = user.projects(service).list_projects(all).await.unwrap().into_inner();
    assert_eq!(page.pagination.unwrap().total, page.count);
    page.list.into_iter().map(|project| project.name).collect()
}

async fn delete(service: &Service, user: &User, id: &str) -> Result<Response<()>, Status> {
    user.projects(service).delete_project(DeleteProjectRequest { project_id: id.to_owned() }).await
}

#[tokio::test]
async fn projects_are_created_read_changed_and_deleted() {
    Service::on_both(async |service| {
        let (owner, organization, _) = service.owner().await;
        let made = create(&service, &owner, &organization.id, " Shop ").await.unwrap().into_inner();
        assert_eq!((made.name.as_str(), made.description.as_str()), ("Shop", "what\nfor"));
        let mut client = owner.projects(&service);
        let get = || GetProjectRequest { project_id: made.id.clone() };
        assert_eq!(client.get_project(get()).await.unwrap().into_inner(), made);
        let change = UpdateProjectRequest {
            project_id: made.id.clone(),
            name: "Store".to_owned(),
            description: String::new(),
        };
        let changed = client.update_project(change).await.unwrap().into_inner();
        assert_eq!((changed.name.as_str(), changed.description.as_str()), ("Store", ""));
        assert_eq!(client.get_project(get()).await.unwrap().into_inner(), changed);
        assert_eq!(names(&service, &owner, &organization.id).await, ["Default", "Store"]);
        delete(&service, &owner, &made.id).await.unwrap();
        refused(client.get_project(get()).await, Code::NotFound);
        refused(delete(&service, &owner, &made.id).await, Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn names_are_unique_in_an_organization() {
    Service::on_both(async |service| {
        let (owner, organization, default) = service.owner().await;
        let other = service.organization(&owner).await;
        create(&service, &owner, &organization.id, "Shop").await.unwrap();
        let taken = create(&service, &owner, &organization.id, "Shop").await;
        assert_eq!(fields(&refused(taken, Code::AlreadyExists)), ["name"]);
        create(&service, &owner, &other.id, "Shop").await.unwrap();
        let change =
            UpdateProjectRequest { project_id: default, name: "Shop".to_owned(), ..Default::default() };
        let taken = owner.projects(&service).update_project(change).await;
        assert_eq!(refused(taken, Code::AlreadyExists).reason(), "NAME_TAKEN");
        assert_eq!(names(&service, &owner, "").await, ["Default", "Default", "Shop", "Shop"]);
    })
    .await;
}

#[tokio::test]
async fn garbage_names_the_fields() {
    Service::on_both(async |service| {
        let (owner, organization, default) = service.owner().await;
        let no_organization = create(&service, &owner, "", "").await;
        assert_eq!(fields(&refused(no_organization, Code::InvalidArgument)), ["organizationId", "name"]);
        for (name, description) in
            [("", ""), (" ", ""), (&"n".repeat(129) as &str, ""), ("a\nb", ""), ("a\0", "\0")]
        {
            let expected: &[&str] = if description.is_empty() { &["name"] } else { &["name", "description"] };
            let new = CreateProjectRequest {
                organization_id: organization.id.clone(),
                name: name.to_owned(),
                description: description.to_owned(),
            };
            let error = refused(owner.projects(&service).create_project(new).await, Code::InvalidArgument);
            assert_eq!(fields(&error), expected);
            let change = UpdateProjectRequest {
                project_id: default.clone(),
                name: name.to_owned(),
                description: description.to_owned(),
            };
            let error = refused(owner.projects(&service).update_project(change).await, Code::InvalidArgument);
            assert_eq!(fields(&error), expected);
        }
        let long = CreateProjectRequest {
            organization_id: organization.id.clone(),
            name: "n".repeat(128),
            description: "d".repeat(1_025),
        };
        let error = refused(owner.projects(&service).create_project(long).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["description"]);
        assert_eq!(names(&service, &owner, &organization.id).await, ["Default"]);
    })
    .await;
}

#[tokio::test]
async fn the_last_project_and_one_with_apis_stay() {
    Service::on_both(async |service| {
        let (owner, organization, default) = service.owner().await;
        let error = refused(delete(&service, &owner, &default).await, Code::FailedPrecondition);
        assert_eq!(error.reason(), "LAST_PROJECT");
        create(&service, &owner, &organization.id, "Second").await.unwrap();
        service.api(&owner, &default, "Pets").await;
        let error = refused(delete(&service, &owner, &default).await, Code::FailedPrecondition);
        assert_eq!(error.reason(), "PROJECT_NOT_EMPTY");
        assert_eq!(names(&service, &owner, &organization.id).await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn two_deletes_at_once_leave_one_project() {
    Service::on_both(async |service| {
        for round in 0..10 {
            let (owner, organization, default) = service.owner().await;
            let second = create(&service, &owner, &organization.id, "Second").await.unwrap().into_inner().id;
            let calls = [default, second].map(|project_id| {
                let mut client = owner.projects(&service);
                tokio::spawn(async move { client.delete_project(DeleteProjectRequest { project_id }).await })
            });
            let mut deleted = 0;
            for call in calls {
                match call.await.unwrap() {
                    Ok(_) => deleted += 1,
                    Err(status) => {
                        let error = refused::<()>(Err(status), Code::FailedPrecondition);
                        assert_eq!(error.reason(), "LAST_PROJECT");
                    }
                }
            }
            assert_eq!(deleted, 1, "round {round}");
            assert_eq!(names(&service, &owner, &organization.id).await.len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn roles_decide() {
    Service::on_both(async |service| {
        let (owner, organization, default) = service.owner().await;
        let second = create(&service, &owner, &organization.id, "Second").await.unwrap().into_inner().id;
        for role in [Role::Developer, Role::Viewer, Role::Consumer] {
            let member = service.member(&organization.id, role).await;
            let mut client = member.projects(&service);
            let get = GetProjectRequest { project_id: default.clone() };
            let list = ListProjectsRequest { organization_id: organization.id.clone(), ..Default::default() };
            if role == Role::Consumer {
                refused(client.get_project(get).await, Code::PermissionDenied);
                refused(client.list_projects(list).await, Code::PermissionDenied);
                assert!(names(&service, &member, "").await.is_empty());
            } else {
                client.get_project(get).await.unwrap();
                assert_eq!(names(&service, &member, "").await.len(), 2);
            }
            refused(delete(&service, &member, &second).await, Code::PermissionDenied);
            let made = create(&service, &member, &organization.id, role.as_str()).await;
            if role == Role::Developer {
                // A developer may delete what is his own.
                delete(&service, &member, &made.unwrap().into_inner().id).await.unwrap();
            } else {
                refused(made, Code::PermissionDenied);
            }
            let change = UpdateProjectRequest {
                project_id: second.clone(),
                name: "Second".to_owned(),
                description: "x".to_owned(),
            };
            let changed = client.update_project(change).await;
            assert_eq!(changed.is_ok(), role == Role::Developer, "{changed:?}");
        }
        let admin = service.member(&organization.id, Role::Admin).await;
        delete(&service, &admin, &second).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn anothers_projects_look_like_none() {
    Service::on_both(async |service| {
        let (_, theirs, their_project) = service.owner().await;
        let (me, ..) = service.owner().await;
        let mut client = me.projects(&service);
        let mut answers = Vec::new();
        for id in [their_project.as_str(), &service.ids.next(), "garbage", "\0", ""] {
            let project_id = id.to_owned();
            let get = client.get_project(GetProjectRequest { project_id: project_id.clone() }).await;
            answers.push(refused(get, Code::NotFound).to_string());
            let change = UpdateProjectRequest { project_id: project_id.clone(), ..Default::default() };
            answers.push(refused(client.update_project(change).await, Code::NotFound).to_string());
            let delete = client.delete_project(DeleteProjectRequest { project_id }).await;
            answers.push(refused(delete, Code::NotFound).to_string());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let mut answers = Vec::new();
        for id in [theirs.id.as_str(), &service.ids.next(), "garbage"] {
            answers.push(refused(create(&service, &me, id, "").await, Code::NotFound).to_string());
            let list = ListProjectsRequest { organization_id: id.to_owned(), ..Default::default() };
            answers.push(refused(client.list_projects(list).await, Code::NotFound).to_string());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(names(&service, &me, "").await, ["Default"]);
    })
    .await;
}
