use std::collections::BTreeSet;

use proto::project::{
    CheckRequest, GetOrganizationRequest, ListMembershipsRequest, PutServiceAccountRequest,
    RemoveServiceAccountRequest, check_response::Decision,
};
use tonic::{Code, Status};

use crate::harness::{Service, User, fields, refused};
use project_service::domain::access::{Permission, Role};
use proto::project::access_service_client::AccessServiceClient;

async fn check(
    service: &Service,
    user: &User,
    organization_id: &str,
    permission: &str,
) -> (Decision, String) {
    let question = CheckRequest {
        user_id: user.id.clone(),
        organization_id: organization_id.to_owned(),
        permission: permission.to_owned(),
    };
    let answer = service.access().check(question).await.unwrap().into_inner();
    (answer.decision(), answer.role)
}

/// The table of reference/security.md, written out once more.
const TABLE: [(&str, &str); 17] = [
    ("organizations:read", "owner admin developer viewer consumer"),
    ("organizations:write", "owner admin"),
    ("projects:read", "owner admin developer viewer"),
    ("projects:write", "owner admin developer"),
    ("projects:delete", "owner admin"),
    ("apis:read", "owner admin developer viewer"),
    ("apis:write", "owner admin developer"),
    ("apis:delete", "owner admin"),
    ("apis:deploy", "owner admin developer"),
    ("gateways:read", "owner admin developer viewer"),
    ("gateways:write", "owner admin"),
    ("gateways:delete", "owner admin"),
    ("gateways:rotate", "owner admin"),
    ("members:write", "owner admin"),
    ("service-accounts:read", "owner admin"),
    ("service-accounts:write", "owner admin"),
    ("audit:read", "owner admin"),
];

#[tokio::test]
async fn every_role_may_what_the_table_says() {
    let named: BTreeSet<&str> = TABLE.iter().map(|(permission, _)| *permission).collect();
    assert_eq!(named, Permission::ALL.iter().map(|permission| permission.as_str()).collect());
    Service::on_both(async |service| {
        let (_, organization, _) = service.owner().await;
        for role in Role::ALL {
            let member = service.member(&organization.id, role).await;
            for (permission, holders) in TABLE {
                let may = holders.split(' ').any(|holder| holder == role.as_str());
                let expected = if may { Decision::Allowed } else { Decision::Denied };
                assert_eq!(
                    check(&service, &member, &organization.id, permission).await,
                    (expected, role.as_str().to_owned()),
                    "{permission}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn strangers_and_unknown_organizations_are_hidden() {
    Service::on_both(async |service| {
        let (owner, organization, _) = service.owner().await;
        let hidden = (Decision::Hidden, String::new());
        assert_eq!(check(&service, &service.user(), &organization.id, "apis:read").await, hidden);
        for id in [service.ids.next().as_str(), "garbage", "", "\0"] {
            assert_eq!(check(&service, &owner, id, "apis:read").await, hidden, "{id:?}");
        }
        for user_id in ["", "\0", "garbage"].map(str::to_owned) {
            let permission = "apis:read".to_owned();
            let question = CheckRequest {
                user_id: user_id.clone(),
                organization_id: organization.id.clone(),
                permission: permission.clone(),
            };
            let answer = service.access().check(question).await.unwrap().into_inner();
            assert_eq!((answer.decision(), answer.role), hidden);
            let question = ListMembershipsRequest { user_id, permission };
            let answer = service.access().list_memberships(question).await.unwrap().into_inner();
            assert!(answer.organization_ids.is_empty());
        }
        for permission in ["", "apis:*", "APIS:READ", "apis:fly"] {
            let question = CheckRequest {
                user_id: owner.id.clone(),
                organization_id: organization.id.clone(),
                permission: permission.to_owned(),
            };
            let error = refused(service.access().check(question).await, Code::InvalidArgument);
            assert_eq!(fields(&error), ["permission"]);
        }
    })
    .await;
}

#[tokio::test]
async fn memberships_are_those_whose_role_holds_the_permission() {
    Service::on_both(async |service| {
        let (owner, first, _) = service.owner().await;
        let (_, second, _) = service.owner().await;
        service.organization(&service.user()).await;
        let stores = service.stores().await;
        stores.organizations.put_member(&second.id, &owner.id, Role::Viewer, 1).await.unwrap();
        for (permission, expected) in
            [("gateways:read", vec![&first.id, &second.id]), ("gateways:write", vec![&first.id])]
        {
            let question =
                ListMembershipsRequest { user_id: owner.id.clone(), permission: permission.to_owned() };
            let mut ids =
                service.access().list_memberships(question).await.unwrap().into_inner().organization_ids;
            ids.sort();
            let mut expected: Vec<String> = expected.into_iter().cloned().collect();
            expected.sort();
            assert_eq!(ids, expected, "{permission}");
        }
    })
    .await;
}

#[tokio::test]
async fn each_service_may_ask_what_it_needs() {
    let service = Service::start(service_kit::testing::TestDatabase::sqlite()).await;
    for peer in ["edge-proxy", "auth-service", "gateway-service"] {
        let mut client = AccessServiceClient::new(service.channel_of(peer));
        let denied = |status: Status| status.code() == Code::PermissionDenied;
        let refused = [
            client.check(CheckRequest::default()).await.is_err_and(denied),
            client.list_memberships(ListMembershipsRequest::default()).await.is_err_and(denied),
            client.put_service_account(PutServiceAccountRequest::default()).await.is_err_and(denied),
            client.remove_service_account(RemoveServiceAccountRequest::default()).await.is_err_and(denied),
        ];
        let expected = match peer {
            "auth-service" => [false, true, false, false],
            "gateway-service" => [false, false, true, true],
            _ => [true; 4],
        };
        assert_eq!(refused, expected, "{peer}");
    }
}

fn put(organization_id: &str, id: &str, role: &str) -> PutServiceAccountRequest {
    PutServiceAccountRequest {
        organization_id: organization_id.to_owned(),
        service_account_id: id.to_owned(),
        role: role.to_owned(),
    }
}

fn remove(organization_id: &str, id: &str) -> RemoveServiceAccountRequest {
    RemoveServiceAccountRequest {
        organization_id: organization_id.to_owned(),
        service_account_id: id.to_owned(),
    }
}

#[tokio::test]
async fn a_service_account_is_a_member_until_it_is_removed() {
    Service::on_both(async |service| {
        let (_, organization, _) = service.owner().await;
        let mut auth = AccessServiceClient::new(service.channel_of("auth-service"));
        let account = service.service_account(&service.ids.next());
        let role = async || check(&service, &account, &organization.id, "organizations:read").await;
        assert_eq!(role().await.0, Decision::Hidden);
        for name in ["viewer", "admin", "admin", "consumer", "developer"] {
            auth.put_service_account(put(&organization.id, &account.id, name)).await.unwrap();
            assert_eq!(role().await, (Decision::Allowed, name.to_owned()));
        }
        // Its keys work as a user's tokens do.
        let read = GetOrganizationRequest { organization_id: organization.id.clone() };
        account.organizations(&service).get_organization(read.clone()).await.unwrap();
        for _ in 0..2 {
            auth.remove_service_account(remove(&organization.id, &account.id)).await.unwrap();
            assert_eq!(role().await.0, Decision::Hidden);
        }
        refused(account.organizations(&service).get_organization(read).await, Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn no_service_account_is_or_replaces_an_owner() {
    Service::on_both(async |service| {
        let (owner, organization, _) = service.owner().await;
        let mut auth = AccessServiceClient::new(service.channel_of("auth-service"));
        let id = service.ids.next();
        for (request, bad) in [
            (put(&organization.id, &id, "owner"), "role"),
            (put(&organization.id, &id, ""), "role"),
            (put(&organization.id, &id, "Admin"), "role"),
            (put("\0", &id, "admin"), "organizationId"),
            (put(&organization.id, "x", "admin"), "serviceAccountId"),
        ] {
            let error = refused(auth.put_service_account(request).await, Code::InvalidArgument);
            assert_eq!(fields(&error), [bad]);
        }
        let unknown = put(&service.ids.next(), &id, "admin");
        refused(auth.put_service_account(unknown).await, Code::NotFound);
        auth.remove_service_account(remove(&service.ids.next(), &id)).await.unwrap();

        let demotion = put(&organization.id, &owner.id, "viewer");
        refused(auth.put_service_account(demotion).await, Code::PermissionDenied);
        auth.remove_service_account(remove(&organization.id, &owner.id)).await.unwrap();
        let still = check(&service, &owner, &organization.id, "organizations:write").await;
        assert_eq!(still, (Decision::Allowed, "owner".to_owned()));
    })
    .await;
}
