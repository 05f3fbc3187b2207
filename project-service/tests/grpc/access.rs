use std::collections::BTreeSet;

use proto::project::{CheckRequest, ListMembershipsRequest, check_response::Decision};
use tonic::Code;

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
const TABLE: [(&str, &str); 13] = [
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
async fn only_gateway_service_may_ask() {
    let service = Service::start(service_kit::testing::TestDatabase::sqlite()).await;
    for peer in ["edge-proxy", "auth-service"] {
        let mut client = AccessServiceClient::new(service.channel_of(peer));
        refused(client.check(CheckRequest::default()).await, Code::PermissionDenied);
        refused(client.list_memberships(ListMembershipsRequest::default()).await, Code::PermissionDenied);
    }
}
