//! The registry: rules, rights, pages.

use std::sync::atomic::Ordering;

use proto::gateway::{
    DeleteGatewayRequest, GetGatewayRequest, ListGatewaysRequest, RegisterGatewayRequest,
    ResolveGatewaysRequest, UpdateGatewayRequest,
};
use tonic::Code;

use crate::harness::{ADMIN, fields, reason, until, worlds};

const VIEWER: &str = "01890000-0000-7000-8000-00000000000b";
const STRANGER: &str = "01890000-0000-7000-8000-00000000000c";

fn list(organization_id: &str, limit: u32, offset: u32) -> ListGatewaysRequest {
    ListGatewaysRequest { organization_id: organization_id.into(), limit: Some(limit), offset }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_lives_from_registration_to_deletion() {
    for world in worlds().await {
        let mut registry = world.registry();
        let asked = RegisterGatewayRequest {
            description: "line\nline".into(),
            vhost: "gw.example.com".into(),
            endpoints: vec!["https://gw.example.com:8443".into()],
            functionality_type: "ai".into(),
            is_critical: true,
            ..world.registration("edge-1")
        };
        let made = registry.register_gateway(world.by(ADMIN, asked.clone())).await.unwrap().into_inner();
        assert!(service_kit::id::is_id(&made.id) && !made.is_active && made.version.is_empty());
        let get = GetGatewayRequest { gateway_id: made.id.clone() };
        let read = registry.get_gateway(world.by(ADMIN, get.clone())).await.unwrap().into_inner();
        assert_eq!(read, made);
        assert_eq!((read.endpoints, read.is_critical), (asked.endpoints, true));

        let update = UpdateGatewayRequest {
            gateway_id: made.id.clone(),
            display_name: "New".into(),
            ..UpdateGatewayRequest::default()
        };
        let updated = registry.update_gateway(world.by(ADMIN, update)).await.unwrap().into_inner();
        assert_eq!((updated.display_name.as_str(), updated.name.as_str()), ("New", "edge-1"));
        assert!(updated.endpoints.is_empty() && !updated.is_critical && updated.functionality_type == "ai");

        let delete = DeleteGatewayRequest { gateway_id: made.id.clone() };
        registry.delete_gateway(world.by(ADMIN, delete.clone())).await.unwrap();
        for status in [
            registry.get_gateway(world.by(ADMIN, get)).await.unwrap_err(),
            registry.delete_gateway(world.by(ADMIN, delete)).await.unwrap_err(),
        ] {
            assert_eq!((status.code(), status.message()), (Code::NotFound, "no such gateway"));
        }
        world.register("edge-1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_rules_are_named_and_change_nothing() {
    for world in worlds().await {
        let mut registry = world.registry();
        let bad = RegisterGatewayRequest {
            organization_id: "acme".into(),
            name: "Edge_1".into(),
            display_name: "\0".into(),
            vhost: "a b".into(),
            endpoints: vec!["gopher://x".into()],
            functionality_type: "magic".into(),
            ..RegisterGatewayRequest::default()
        };
        let status = registry.register_gateway(world.by(ADMIN, bad)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let named = ["organizationId", "name", "displayName", "vhost", "endpoints[0]", "functionalityType"];
        assert_eq!(fields(&status), named);
        let long = RegisterGatewayRequest {
            endpoints: vec!["https://x".into(); 21],
            description: "x".repeat(1_025),
            ..world.registration("edge-1")
        };
        let status = registry.register_gateway(world.by(ADMIN, long)).await.unwrap_err();
        assert_eq!(fields(&status), ["description", "endpoints"]);
        let status = registry.list_gateways(world.by(ADMIN, list("", 101, 0))).await.unwrap_err();
        assert_eq!(fields(&status), ["limit"]);
        let get = GetGatewayRequest { gateway_id: "'; DROP TABLE gateways; --\0".into() };
        let status = registry.get_gateway(world.by(ADMIN, get)).await.unwrap_err();
        assert_eq!(fields(&status), ["gatewayId"]);

        world.register("edge-1").await;
        let again = registry.register_gateway(world.by(ADMIN, world.registration("edge-1"))).await;
        let status = again.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "NAME_TAKEN"));
        assert!(status.message().contains("name"), "{status}");
        let all = registry.list_gateways(world.by(ADMIN, list("", 100, 0))).await.unwrap().into_inner();
        assert_eq!(all.count, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_decide_and_hidden_things_do_not_exist() {
    for world in worlds().await {
        world.project.join(VIEWER, &world.organization, "viewer");
        let made = world.register("edge-1").await;
        let mut registry = world.registry();
        let get = GetGatewayRequest { gateway_id: made.id.clone() };
        let delete = DeleteGatewayRequest { gateway_id: made.id.clone() };
        registry.get_gateway(world.by(VIEWER, get.clone())).await.unwrap();
        let denied = registry.delete_gateway(world.by(VIEWER, delete.clone())).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);

        for (hidden, what) in [
            (registry.get_gateway(world.by(STRANGER, get.clone())).await.err(), "no such gateway"),
            (registry.delete_gateway(world.by(STRANGER, delete)).await.err(), "no such gateway"),
            (
                registry.register_gateway(world.by(STRANGER, world.registration("mine"))).await.err(),
                "no such organization",
            ),
            (
                registry.list_gateways(world.by(STRANGER, list(&world.organization, 1, 0))).await.err(),
                "no such organization",
            ),
        ] {
            let hidden = hidden.unwrap();
            assert_eq!((hidden.code(), hidden.message()), (Code::NotFound, what));
        }
        let nothing = registry.list_gateways(world.by(STRANGER, list("", 20, 0))).await.unwrap();
        assert_eq!(nothing.into_inner().pagination.unwrap().total, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_sorted_pages_of_one_or_of_all_organizations() {
    for world in worlds().await {
        let other = world.ids.next();
        world.project.join(ADMIN, &other, "admin");
        for name in ["ccc", "aaa"] {
            world.register(name).await;
        }
        let elsewhere =
            RegisterGatewayRequest { organization_id: other.clone(), ..world.registration("bbb") };
        world.registry().register_gateway(world.by(ADMIN, elsewhere)).await.unwrap();
        let names = async |request: ListGatewaysRequest| -> (Vec<String>, u32) {
            let answer = world.registry().list_gateways(world.by(ADMIN, request)).await.unwrap().into_inner();
            assert_eq!(answer.count as usize, answer.list.len());
            (answer.list.into_iter().map(|gateway| gateway.name).collect(), answer.pagination.unwrap().total)
        };
        assert_eq!(names(list("", 20, 0)).await, (vec!["aaa".into(), "bbb".into(), "ccc".into()], 3));
        assert_eq!(names(list("", 1, 1)).await, (vec!["bbb".into()], 3));
        assert_eq!(names(list(&world.organization, 20, 0)).await, (vec!["aaa".into(), "ccc".into()], 2));
        assert_eq!(names(list(&other, 20, 5)).await, (vec![], 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_about_rights_are_kept_and_errors_are_not() {
    for world in worlds().await {
        let made = world.register("edge-1").await;
        let get = || world.by(ADMIN, GetGatewayRequest { gateway_id: made.id.clone() });
        let mut registry = world.registry();
        world.project.set_down(true);
        let status = registry.get_gateway(get()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "doubt is not a refusal");
        world.project.set_down(false);
        registry.get_gateway(get()).await.expect("the error was not kept");
        let asked = world.project.checks.load(Ordering::SeqCst);
        world.project.set_down(true);
        registry.get_gateway(get()).await.expect("the answer was kept");
        world.project.set_down(false);
        assert_eq!(world.project.checks.load(Ordering::SeqCst), asked);
        world.project.roles.lock().unwrap().clear();
        until("a lost right is gone within seconds", async || registry.get_gateway(get()).await.is_err())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_are_resolved_within_their_organization() {
    for world in worlds().await {
        let made = world.register("edge-1").await;
        let resolve = |organization_id: &str| ResolveGatewaysRequest {
            organization_id: organization_id.into(),
            gateway_ids: vec![made.id.clone(), world.ids.next(), "\0".into()],
        };
        let mut delivery = world.delivery();
        let found = delivery.resolve_gateways(resolve(&world.organization)).await.unwrap().into_inner();
        assert_eq!(found.gateways.len(), 1);
        assert_eq!((found.gateways[0].name.as_str(), found.gateways[0].connected), ("edge-1", false));
        let other = delivery.resolve_gateways(resolve(&world.ids.next())).await.unwrap().into_inner();
        assert!(other.gateways.is_empty());
    }
}
