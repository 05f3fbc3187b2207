use proto::project::{
    CreateOrganizationRequest, GetOrganizationRequest, ListOrganizationsRequest, ListProjectsRequest,
    UpdateOrganizationRequest,
};
use tonic::Code;

use crate::harness::{Service, User, fields, refused};
use project_service::domain::access::Role;

fn named(id: &str, handle: &str, name: &str) -> CreateOrganizationRequest {
    CreateOrganizationRequest { id: id.to_owned(), handle: handle.to_owned(), name: name.to_owned() }
}

async fn list(service: &Service, user: &User, limit: u32, offset: u32) -> (Vec<String>, u32) {
    let request = ListOrganizationsRequest { limit: Some(limit), offset };
    let page = user.organizations(service).list_organizations(request).await.unwrap().into_inner();
    assert_eq!(page.count as usize, page.list.len());
    let pagination = page.pagination.unwrap();
    assert_eq!((pagination.limit, pagination.offset), (limit, offset));
    (page.list.into_iter().map(|organization| organization.handle).collect(), pagination.total)
}

#[tokio::test]
async fn an_organization_begins_with_its_owner_and_a_default_project() {
    Service::on_both(async |service| {
        let user = service.user();
        let mut client = user.organizations(&service);
        let made = client.create_organization(named("", "acme", " Acme ")).await.unwrap().into_inner();
        assert_eq!((made.handle.as_str(), made.name.as_str(), made.role.as_str()), ("acme", "Acme", "owner"));
        assert!(service_kit::id::is_id(&made.id) && made.created_at.is_some());
        let get = GetOrganizationRequest { organization_id: made.id.clone() };
        assert_eq!(client.get_organization(get).await.unwrap().into_inner(), made);
        let all = ListProjectsRequest { organization_id: made.id.clone(), ..Default::default() };
        let projects = user.projects(&service).list_projects(all).await.unwrap().into_inner().list;
        assert_eq!(projects.len(), 1);
        assert_eq!(
            (projects[0].name.as_str(), projects[0].organization_id.as_str()),
            ("Default", made.id.as_str())
        );
    })
    .await;
}

#[tokio::test]
async fn a_client_may_bring_the_id() {
    Service::on_both(async |service| {
        let user = service.user();
        let mut client = user.organizations(&service);
        let id = "0D9F7C1A-55AA-4E0E-9C1B-3A1B5F6C7D8E";
        let made = client.create_organization(named(id, "brought", "B")).await.unwrap().into_inner();
        assert_eq!(made.id, id.to_ascii_lowercase());

        let error =
            refused(client.create_organization(named(&made.id, "another", "B")).await, Code::AlreadyExists);
        assert_eq!((error.reason(), fields(&error)), ("ID_TAKEN", vec!["id"]));
        let error = refused(client.create_organization(named("", "brought", "B")).await, Code::AlreadyExists);
        assert_eq!((error.reason(), fields(&error)), ("HANDLE_TAKEN", vec!["handle"]));
        // What was refused left nothing behind.
        assert_eq!(list(&service, &user, 20, 0).await, (vec!["brought".to_owned()], 1));
        let all = user.projects(&service).list_projects(ListProjectsRequest::default()).await.unwrap();
        assert_eq!(all.into_inner().count, 1);
    })
    .await;
}

#[tokio::test]
async fn of_twenty_at_once_one_gets_the_handle() {
    Service::on_both(async |service| {
        let calls = (0..20).map(|_| {
            let mut client = service.user().organizations(&service);
            tokio::spawn(async move { client.create_organization(named("", "popular", "P")).await })
        });
        let mut made = 0;
        for call in calls.collect::<Vec<_>>() {
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
async fn garbage_names_the_fields() {
    Service::on_both(async |service| {
        let user = service.user();
        let mut client = user.organizations(&service);
        for (request, bad) in [
            (named("x", "A", ""), vec!["id", "handle", "handle", "name"]),
            (named("", "", "n"), vec!["handle"]),
            (named("", "ab", "n"), vec!["handle"]),
            (named("", "a--b", "n"), vec!["handle"]),
            (named("", &"a".repeat(41), "n"), vec!["handle"]),
            (named("", "good", &"n".repeat(129)), vec!["name"]),
            (named("", "good", "a\0b"), vec!["name"]),
            (named("", "good", "   "), vec!["name"]),
        ] {
            let error = refused(client.create_organization(request).await, Code::InvalidArgument);
            assert_eq!(fields(&error), bad);
        }
        assert_eq!(list(&service, &user, 20, 0).await.1, 0);
    })
    .await;
}

#[tokio::test]
async fn lists_hold_only_mine_newest_first() {
    Service::on_both(async |service| {
        let (user, stranger) = (service.user(), service.user());
        service.organization(&stranger).await;
        for i in 0..5 {
            let new = named("", &format!("mine-{i}"), "M");
            user.organizations(&service).create_organization(new).await.unwrap();
        }
        let (first, total) = list(&service, &user, 2, 0).await;
        assert_eq!((first, total), (vec!["mine-4".to_owned(), "mine-3".to_owned()], 5));
        assert_eq!(list(&service, &user, 2, 4).await, (vec!["mine-0".to_owned()], 5));
        assert_eq!(list(&service, &user, 2, 99).await, (vec![], 5));
        for limit in [0, 101] {
            let request = ListOrganizationsRequest { limit: Some(limit), offset: 0 };
            let answer = user.organizations(&service).list_organizations(request).await;
            assert_eq!(fields(&refused(answer, Code::InvalidArgument)), ["limit"]);
        }
    })
    .await;
}

#[tokio::test]
async fn names_change_by_owner_and_admin_only() {
    Service::on_both(async |service| {
        let (owner, organization, _) = service.owner().await;
        let rename = |name: &str| UpdateOrganizationRequest {
            organization_id: organization.id.clone(),
            name: name.to_owned(),
        };
        for (role, may) in
            [(Role::Admin, true), (Role::Developer, false), (Role::Viewer, false), (Role::Consumer, false)]
        {
            let member = service.member(&organization.id, role).await;
            let answer = member.organizations(&service).update_organization(rename(role.as_str())).await;
            if may {
                let changed = answer.unwrap().into_inner();
                assert_eq!((changed.name.as_str(), changed.role.as_str()), ("admin", "admin"));
                assert_eq!(changed.handle, organization.handle);
            } else {
                refused(answer, Code::PermissionDenied);
            }
            let get = GetOrganizationRequest { organization_id: organization.id.clone() };
            let seen = member.organizations(&service).get_organization(get).await.unwrap().into_inner();
            assert_eq!((seen.name.as_str(), seen.role.as_str()), ("admin", role.as_str()));
        }
        let error = refused(
            owner.organizations(&service).update_organization(rename("")).await,
            Code::InvalidArgument,
        );
        assert_eq!(fields(&error), ["name"]);
    })
    .await;
}

#[tokio::test]
async fn another_organization_looks_like_none() {
    Service::on_both(async |service| {
        let (_, theirs, _) = service.owner().await;
        let me = service.user();
        let mut answers = Vec::new();
        for id in [theirs.id.as_str(), &service.ids.next(), "garbage", "\0", ""] {
            let get = GetOrganizationRequest { organization_id: id.to_owned() };
            let error = refused(me.organizations(&service).get_organization(get).await, Code::NotFound);
            answers.push(error.to_string());
            // A name that would be refused must not show either that the organization exists.
            let update = UpdateOrganizationRequest { organization_id: id.to_owned(), name: String::new() };
            let error = refused(me.organizations(&service).update_organization(update).await, Code::NotFound);
            answers.push(error.to_string());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
    })
    .await;
}

#[tokio::test]
async fn a_token_without_the_scope_is_refused() {
    Service::on_both(async |service| {
        let (owner, ..) = service.owner().await;
        let narrow = service.user_with_scope(&owner.id, "projects:read organizations:read");
        assert_eq!(list(&service, &narrow, 20, 0).await.1, 1);
        let answer = narrow.organizations(&service).create_organization(named("", "narrow", "N")).await;
        assert_eq!(refused(answer, Code::PermissionDenied).reason(), "INSUFFICIENT_SCOPE");
    })
    .await;
}

#[tokio::test]
async fn a_service_account_owns_no_organization() {
    Service::on_both(async |service| {
        let account = service.service_account(&service.ids.next());
        let answer = account.organizations(&service).create_organization(named("", "skynet", "S")).await;
        assert_eq!(refused(answer, Code::PermissionDenied).reason(), "SERVICE_ACCOUNT");
        assert_eq!(list(&service, &account, 20, 0).await.1, 0);
        // The handle was not taken on the way.
        service.user().organizations(&service).create_organization(named("", "skynet", "S")).await.unwrap();
    })
    .await;
}
