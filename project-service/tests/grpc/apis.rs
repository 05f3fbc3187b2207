use proto::project::{
    Api, CreateApiRequest, CreateProjectRequest, DeleteApiRequest, DeleteProjectRequest, GetApiRequest,
    GetDefinitionRequest, ListApisRequest, Operation, UpdateApiRequest,
};
use tonic::{Code, Response, Status};

use crate::{
    api_model::full_api,
    harness::{Service, User, fields, refused},
};
use project_service::domain::access::Role;

fn small(name: &str, context: &str, version: &str) -> Api {
    Api { name: name.to_owned(), context: context.to_owned(), version: version.to_owned(), ..Api::default() }
}

async fn create(service: &Service, user: &User, project: &str, api: Api) -> Result<Response<Api>, Status> {
    let new = CreateApiRequest { project_id: project.to_owned(), api: Some(api) };
    user.apis(service).create_api(new).await
}

async fn update(service: &Service, user: &User, id: &str, api: Api) -> Result<Response<Api>, Status> {
    user.apis(service).update_api(UpdateApiRequest { api_id: id.to_owned(), api: Some(api) }).await
}

async fn get(service: &Service, user: &User, id: &str) -> Result<Response<Api>, Status> {
    user.apis(service).get_api(GetApiRequest { api_id: id.to_owned() }).await
}

async fn delete(service: &Service, user: &User, id: &str) -> Result<Response<()>, Status> {
    user.apis(service).delete_api(DeleteApiRequest { api_id: id.to_owned() }).await
}

async fn list(
    service: &Service,
    user: &User,
    project_id: &str,
    limit: u32,
    offset: u32,
) -> (Vec<String>, u32) {
    let request = ListApisRequest { project_id: project_id.to_owned(), limit: Some(limit), offset };
    let page = user.apis(service).list_apis(request).await.unwrap().into_inner();
    assert_eq!(page.count as usize, page.list.len());
    let names = page.list.iter().map(|api| format!("{} {}", api.name, api.version)).collect();
    (names, page.pagination.unwrap().total)
}

#[tokio::test]
async fn name_context_and_version_are_unique_together() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        create(&service, &owner, &project, small("a", "/a", "1")).await.unwrap();
        for other in [small("b", "/a", "1"), small("a", "/b", "1"), small("a", "/a", "2")] {
            create(&service, &owner, &project, other).await.unwrap();
        }
        for same in [small("a", "/a", "1"), small(" a ", "a/", "1")] {
            let error = refused(create(&service, &owner, &project, same).await, Code::AlreadyExists);
            assert_eq!((error.reason(), fields(&error)), ("API_EXISTS", vec!["name", "context", "version"]));
        }
        let moved = get_by_name(&service, &owner, &project, "b 1").await;
        let error =
            refused(update(&service, &owner, &moved, small("a", "a", "1")).await, Code::AlreadyExists);
        assert_eq!(fields(&error), ["name", "context", "version"]);
        // Another project may have the same.
        let second = service.organization(&owner).await;
        let elsewhere = service.first_project(&owner, &second.id).await;
        create(&service, &owner, &elsewhere, small("a", "/a", "1")).await.unwrap();
        assert_ne!(second.id, organization.id);
        assert_eq!(list(&service, &owner, &project, 100, 0).await.1, 4);
    })
    .await;
}

async fn get_by_name(service: &Service, user: &User, project: &str, name: &str) -> String {
    let request = ListApisRequest { project_id: project.to_owned(), limit: Some(100), offset: 0 };
    let page = user.apis(service).list_apis(request).await.unwrap().into_inner();
    page.list.into_iter().find(|api| format!("{} {}", api.name, api.version) == name).unwrap().id
}

#[tokio::test]
async fn of_many_at_once_one_is_created() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let mut client = owner.apis(&service);
                let new = CreateApiRequest { project_id: project.clone(), api: Some(small("a", "/a", "1")) };
                tokio::spawn(async move { client.create_api(new).await })
            })
            .collect();
        let mut made = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(_) => made += 1,
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status:?}"),
            }
        }
        assert_eq!(made, 1);
    })
    .await;
}

#[tokio::test]
async fn lists_go_by_name_and_version() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let (stranger, _, their_project) = service.owner().await;
        create(&service, &stranger, &their_project, small("a", "/a", "1")).await.unwrap();
        for (name, version) in [("c", "1"), ("a", "2"), ("b", "1"), ("a", "1")] {
            create(&service, &owner, &project, small(name, "/x", version)).await.unwrap();
        }
        let second = service.organization(&owner).await;
        let elsewhere = service.first_project(&owner, &second.id).await;
        create(&service, &owner, &elsewhere, small("aa", "/x", "1")).await.unwrap();

        let (names, total) = list(&service, &owner, &project, 100, 0).await;
        assert_eq!((names, total), (["a 1", "a 2", "b 1", "c 1"].map(String::from).to_vec(), 4));
        let (names, total) = list(&service, &owner, "", 2, 1).await;
        assert_eq!((names, total), (["a 2", "aa 1"].map(String::from).to_vec(), 5));
        // A consumer sees none, wherever he looks.
        let consumer = service.member(&second.id, Role::Consumer).await;
        assert_eq!(list(&service, &consumer, "", 100, 0).await.1, 0);
        let request = ListApisRequest { project_id: elsewhere, ..Default::default() };
        refused(consumer.apis(&service).list_apis(request).await, Code::PermissionDenied);
    })
    .await;
}

#[tokio::test]
async fn an_update_replaces_and_never_moves() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let made = create(&service, &owner, &project, full_api("")).await.unwrap().into_inner();
        let change = Api { project_id: project.clone(), ..small("new", "/new", "2") };
        let changed = update(&service, &owner, &made.id, change).await.unwrap().into_inner();
        assert_eq!((changed.id.as_str(), changed.created_at), (made.id.as_str(), made.created_at));
        assert_eq!(changed.display_name, "new");
        assert!(changed.operations.is_empty() && changed.cors.is_none() && changed.description.is_empty());
        assert_eq!(get(&service, &owner, &made.id).await.unwrap().into_inner(), changed);

        let second = service.organization(&owner).await;
        let elsewhere = service.first_project(&owner, &second.id).await;
        let moved = Api { project_id: elsewhere, ..small("new", "/new", "2") };
        let error = refused(update(&service, &owner, &made.id, moved).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["projectId"]);
        let error = refused(update(&service, &owner, &made.id, Api::default()).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["context", "name", "version"]);
        assert_eq!(get(&service, &owner, &made.id).await.unwrap().into_inner(), changed);
    })
    .await;
}

#[tokio::test]
async fn the_project_comes_from_the_path_or_the_body() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let in_body = Api { project_id: project.clone(), ..small("a", "/a", "1") };
        create(&service, &owner, "", in_body.clone()).await.unwrap();
        create(&service, &owner, &project, Api { name: "b".to_owned(), ..in_body.clone() }).await.unwrap();
        let other = service.ids.next();
        for (path, api) in [("", small("c", "/c", "1")), (other.as_str(), in_body)] {
            let error = refused(create(&service, &owner, path, api).await, Code::InvalidArgument);
            assert_eq!(fields(&error), ["projectId"]);
        }
        refused(create(&service, &owner, &other, small("c", "/c", "1")).await, Code::NotFound);
        let error = refused(create(&service, &owner, "", Api::default()).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["context", "name", "version", "projectId"]);
    })
    .await;
}

#[tokio::test]
async fn garbage_names_every_field_and_changes_nothing() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let mut api = full_api("not a key");
        api.name = "a/b".to_owned();
        api.version = "1 0".to_owned();
        api.life_cycle_status = 99;
        api.transport = vec!["ftp".to_owned()];
        api.cors.as_mut().unwrap().allow_origins = "*".to_owned();
        api.backend_services[0].endpoints[0].url = "pets.example".to_owned();
        api.backend_services[1].name = "main".to_owned();
        api.operations[1].request = None;
        api.operations.push(Operation { request: api.operations[0].request.clone(), ..Default::default() });
        let expected = [
            "name",
            "version",
            "lifeCycleStatus",
            "transport[0]",
            "mtls.clientKey",
            "cors.allowCredentials",
            "backend-services[0].endpoints[0].url",
            "backend-services[0].endpoints[0].mtls.clientKey",
            "backend-services[1].name",
            "operations[0].request.backend-services[1].name",
            "operations[1].request",
            "operations[2].request.path",
            "operations[2].request.backend-services[1].name",
        ];
        let error = refused(create(&service, &owner, &project, api.clone()).await, Code::InvalidArgument);
        assert_eq!(fields(&error), expected);
        assert_eq!(list(&service, &owner, "", 100, 0).await.1, 0);
        let made = create(&service, &owner, &project, full_api("")).await.unwrap().into_inner();
        let error = refused(update(&service, &owner, &made.id, api).await, Code::InvalidArgument);
        assert_eq!(fields(&error), expected);
        assert_eq!(get(&service, &owner, &made.id).await.unwrap().into_inner(), made);
        // As bad as it gets, the answer still fits into its headers.
        let worst = Api { operations: vec![Operation::default(); 2_001], ..small("", "", "") };
        let error = refused(create(&service, &owner, &project, worst).await, Code::InvalidArgument);
        assert!(error.violations().len() > 20, "{}", error.violations().len());
    })
    .await;
}

#[tokio::test]
async fn a_large_api_is_kept_whole() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let mut api = full_api("");
        let template = api.operations[0].clone();
        api.operations = (0..1_500)
            .map(|i| {
                let mut operation = template.clone();
                operation.request.as_mut().unwrap().path = format!("/pets/{i}");
                operation
            })
            .collect();
        let made = create(&service, &owner, &project, api).await.unwrap().into_inner();
        assert_eq!(get(&service, &owner, &made.id).await.unwrap().into_inner(), made);
        assert_eq!(made.operations.len(), 1_500);
    })
    .await;
}

#[tokio::test]
async fn roles_decide() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let made = create(&service, &owner, &project, small("a", "/a", "1")).await.unwrap().into_inner();
        for role in [Role::Developer, Role::Viewer, Role::Consumer] {
            let member = service.member(&organization.id, role).await;
            assert_eq!(get(&service, &member, &made.id).await.is_ok(), role != Role::Consumer);
            refused(delete(&service, &member, &made.id).await, Code::PermissionDenied);
            let own = create(&service, &member, &project, small(role.as_str(), "/x", "1")).await;
            let changed = update(&service, &member, &made.id, small("a", "/a", "1")).await;
            if role == Role::Developer {
                changed.unwrap();
                // A developer may delete what is his own.
                delete(&service, &member, &own.unwrap().into_inner().id).await.unwrap();
            } else {
                refused(own, Code::PermissionDenied);
                refused(changed, Code::PermissionDenied);
            }
        }
        let admin = service.member(&organization.id, Role::Admin).await;
        delete(&service, &admin, &made.id).await.unwrap();
        refused(get(&service, &owner, &made.id).await, Code::NotFound);
        refused(delete(&service, &owner, &made.id).await, Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn anothers_apis_look_like_none() {
    Service::on_both(async |service| {
        let (stranger, _, their_project) = service.owner().await;
        let theirs = create(&service, &stranger, &their_project, small("a", "/a", "1")).await.unwrap();
        let theirs = theirs.into_inner();
        let (me, ..) = service.owner().await;
        let mut answers = Vec::new();
        for id in [theirs.id.as_str(), &service.ids.next(), "garbage", "\0", ""] {
            answers.push(refused(get(&service, &me, id).await, Code::NotFound).to_string());
            answers
                .push(refused(update(&service, &me, id, Api::default()).await, Code::NotFound).to_string());
            answers.push(refused(delete(&service, &me, id).await, Code::NotFound).to_string());
            let definition = GetDefinitionRequest { api_id: id.to_owned() };
            let answer = me.apis(&service).get_definition(definition).await;
            answers.push(refused(answer, Code::NotFound).to_string());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let mut answers = Vec::new();
        for id in [their_project.as_str(), &service.ids.next(), "garbage"] {
            answers
                .push(refused(create(&service, &me, id, Api::default()).await, Code::NotFound).to_string());
            let request = ListApisRequest { project_id: id.to_owned(), ..Default::default() };
            answers.push(refused(me.apis(&service).list_apis(request).await, Code::NotFound).to_string());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(list(&service, &me, "", 100, 0).await.1, 0);
        assert_eq!(get(&service, &stranger, &theirs.id).await.unwrap().into_inner(), theirs);
    })
    .await;
}

#[tokio::test]
async fn an_api_and_the_end_of_its_project_do_not_meet() {
    Service::on_both(async |service| {
        let (owner, organization, _) = service.owner().await;
        for round in 0..20 {
            let new = CreateProjectRequest {
                organization_id: organization.id.clone(),
                name: format!("p{round}"),
                ..Default::default()
            };
            let project = owner.projects(&service).create_project(new).await.unwrap().into_inner().id;
            let (mut apis, mut projects) = (owner.apis(&service), owner.projects(&service));
            let new = CreateApiRequest { project_id: project.clone(), api: Some(small("a", "/a", "1")) };
            let made = tokio::spawn(async move { apis.create_api(new).await });
            let gone = DeleteProjectRequest { project_id: project.clone() };
            let gone = tokio::spawn(async move { projects.delete_project(gone).await });
            match (made.await.unwrap(), gone.await.unwrap()) {
                (Ok(made), Err(status)) => {
                    let error = refused::<()>(Err(status), Code::FailedPrecondition);
                    assert_eq!(error.reason(), "PROJECT_NOT_EMPTY");
                    get(&service, &owner, &made.into_inner().id).await.unwrap();
                }
                (Err(status), Ok(_)) => drop(refused::<()>(Err(status), Code::NotFound)),
                both => panic!("{both:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_api_that_was_not_imported_has_no_definition() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let made = create(&service, &owner, &project, small("a", "/a", "1")).await.unwrap().into_inner();
        let definition = GetDefinitionRequest { api_id: made.id };
        refused(owner.apis(&service).get_definition(definition).await, Code::NotFound);
    })
    .await;
}
