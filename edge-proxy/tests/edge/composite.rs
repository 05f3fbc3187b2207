//! Reads that are made of others.

use http::{Method, StatusCode};
use proto::{
    gateway::{
        ListConnectionsResponse, ListFailedDeliveriesResponse, ListGatewaysRequest, ListGatewaysResponse,
    },
    project::{ListProjectsResponse, Organization},
};
use service_kit::{Error, Kind};

use super::harness::{Call, Options, Reply, World, ok};

const PATH: &str = "/api/v1/organizations/o1/dashboard";

fn service(call: &Call) -> Reply {
    match call.path.rsplit('/').next().unwrap() {
        "GetOrganization" if call.header("authorization").is_none() => panic!("without a caller"),
        "GetOrganization" => {
            match call.decode::<proto::project::GetOrganizationRequest>().organization_id.as_str() {
                "o1" => ok(&Organization { id: "o1".into(), name: "one".into(), ..Organization::default() }),
                _ => Reply::Fail(Error::not_found("organization").into()),
            }
        }
        "ListProjects" => ok(&ListProjectsResponse { count: 3, ..ListProjectsResponse::default() }),
        "ListGateways" => {
            assert_eq!(call.decode::<ListGatewaysRequest>().organization_id, "o1");
            ok(&ListGatewaysResponse { count: 2, ..ListGatewaysResponse::default() })
        }
        "ListConnections" => ok(&ListConnectionsResponse { count: 1, ..ListConnectionsResponse::default() }),
        "ListFailedDeliveries" => ok(&ListFailedDeliveriesResponse::default()),
        other => panic!("{other} is not in the script"),
    }
}

#[tokio::test]
async fn the_parts_come_under_their_names() {
    let world = World::start(service).await;
    let answer = world.get(PATH).user().send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let json = answer.json();
    assert_eq!((&json["partial"], &json["organization"]["name"]), (&false.into(), &"one".into()));
    for (name, count) in [("projects", 3), ("gateways", 2), ("connections", 1), ("failedDeliveries", 0)] {
        assert_eq!(json[name]["count"], count, "{name}");
    }
    assert_eq!(world.calls().len(), 5);
    // What may be kept is asked for once: the organization and its projects.
    world.get(PATH).user().send("").await;
    assert_eq!(world.calls().len(), 8);
    let head = world.ask(Method::HEAD, PATH).user().send("").await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    let post = world.post(PATH).user().send("").await;
    assert_eq!((post.status, post.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, OPTIONS"));
    let query = world.get(&format!("{PATH}?limit=1")).user().send("").await;
    assert_eq!(
        (query.status, &query.json()["errors"][0]["field"]),
        (StatusCode::BAD_REQUEST, &"limit".into())
    );
}

#[tokio::test]
async fn a_part_that_is_refused_is_marked_and_the_rest_is_there() {
    let world = World::start(|call| match call.path.rsplit('/').next().unwrap() {
        "ListConnections" => {
            Reply::Fail(Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", "no").into())
        }
        _ => service(call),
    })
    .await;
    let json = world.get(PATH).user().send("").await.json();
    assert_eq!((&json["partial"], &json["gateways"]["count"]), (&true.into(), &2.into()));
    assert_eq!(json["connections"]["problem"]["reason"], "PERMISSION_DENIED");
    // Each part is judged by its own permission.
    let narrow =
        format!("Bearer {}", world.token_with(|claims| claims["scope"] = "organizations:read".into()));
    let json = world.get(PATH).header("authorization", &narrow).send("").await.json();
    assert_eq!((&json["organization"]["id"], &json["partial"]), (&"o1".into(), &true.into()));
    for name in ["projects", "gateways", "connections"] {
        assert_eq!(json[name]["problem"]["reason"], "INSUFFICIENT_SCOPE", "{name}");
    }
    // A service that is away takes its parts with it, and no others.
    let away = Options { services: vec!["auth-service", "project-service"], ..Options::default() };
    let world = World::with(away, service).await;
    let json = world.get(PATH).user().send("").await.json();
    assert_eq!(
        (&json["projects"]["count"], &json["gateways"]["problem"]["status"]),
        (&3.into(), &503.into())
    );
}

#[tokio::test]
async fn without_the_essential_part_there_is_no_answer() {
    let world = World::start(service).await;
    let answer = world.get(PATH).send("").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
    assert!(answer.header("www-authenticate").starts_with("Bearer"));
    assert!(world.calls().is_empty());
    let world = World::start(|call| match call.path.rsplit('/').next().unwrap() {
        "ListGateways" => ok(&ListGatewaysResponse::default()),
        _ => service(call),
    })
    .await;
    for other in ["o2", "o1&limit=0"] {
        let answer = world.get(&format!("/api/v1/organizations/{other}/dashboard")).user().send("").await;
        assert_eq!((answer.status, &answer.json()["reason"]), (StatusCode::NOT_FOUND, &"NOT_FOUND".into()));
    }
}
