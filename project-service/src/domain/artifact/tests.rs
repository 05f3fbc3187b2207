use proto::project::{Api, BackendService, Endpoint, Operation, OperationRequest};

use super::{Artifact, Kept, check, display_name, gateway_version, handle, yaml};

const ID: &str = "0198f0c5-0000-7000-8000-0123456789ab";

fn api() -> Api {
    let operation = |method: &str, path: &str| Operation {
        request: Some(OperationRequest {
            method: method.into(),
            path: path.into(),
            ..OperationRequest::default()
        }),
        ..Operation::default()
    };
    Api {
        name: "Pets: all".into(),
        version: "1.0.27-SNAPSHOT".into(),
        context: "/pets".into(),
        backend_services: vec![BackendService {
            name: "default".into(),
            endpoints: vec![Endpoint { url: "https://pets.test/v1".into(), ..Endpoint::default() }],
            ..BackendService::default()
        }],
        operations: vec![operation("GET", "/pets/{petId}"), operation("POST", "/pets: {x}")],
        ..Api::default()
    }
}

#[test]
fn artifacts_are_read_back_as_they_were_written() {
    let text = yaml(&api(), ID, "p1", "", None).unwrap();
    let read: Artifact = serde_norway::from_str(&text).unwrap();
    assert_eq!(read.api_version, "gateway.api-platform.wso2.com/v1");
    assert_eq!(read.kind, "RestApi");
    assert_eq!(read.metadata.name, "pets-all-1-0-27-0123456789ab");
    assert_eq!(read.metadata.labels["project-id"], "p1");
    assert_eq!(read.metadata.annotations["gateway.api-platform.wso2.com/project-id"], "p1");
    assert_eq!(read.spec.display_name, "Pets all 0123456789ab");
    assert_eq!(read.spec.version, "1.0.27");
    assert_eq!(read.spec.context, "/pets");
    assert_eq!(read.spec.vhosts.main, "_gateway_default_");
    assert_eq!(read.spec.upstream.main.url, "https://pets.test/v1");
    let operations: Vec<_> =
        read.spec.operations.iter().map(|one| (one.method.as_str(), one.path.as_str())).collect();
    assert_eq!(operations, [("GET", "/pets/{petId}"), ("POST", "/pets: {x}")]);
    assert!(text.contains("policies: []") && text.contains("subscriptionPlans: []"), "{text}");
    let named = yaml(&api(), ID, "p1", "pets.test", None).unwrap();
    assert!(named.contains("main: pets.test"), "{named}");
}

#[test]
fn every_rule_of_the_gateway_names_its_field() {
    type Break = fn(&mut Api);
    let cases: [(Break, &str); 14] = [
        (|api| api.version = "beta".into(), "version"),
        (|api| api.version = "1.2.3.4".into(), "version"),
        (|api| api.context = format!("/{}", "a".repeat(200)), "context"),
        (|api| api.context = "/a/".into(), "context"),
        (|api| api.context = "a".into(), "context"),
        (|api| api.context = "/_gateway-health".into(), "context"),
        (|api| api.context = "/a/.././/_gateway-health/b".into(), "context"),
        (
            |api| api.operations[1].request.as_mut().unwrap().path = "/../_gateway-health/ready".into(),
            "operations[1].request.path",
        ),
        (
            |api| api.backend_services[0].endpoints[0].url = "ftp://pets.test".into(),
            "backend-services[0].endpoints[0].url",
        ),
        (|api| api.operations.clear(), "operations"),
        (
            |api| api.operations[1].request.as_mut().unwrap().method = "TRACE".into(),
            "operations[1].request.method",
        ),
        (|api| api.operations[0].request = None, "operations[0].request.method"),
        (|api| api.backend_services.clear(), "backend-services"),
        (|api| api.backend_services[0].endpoints.clear(), "backend-services[0].endpoints[0].url"),
    ];
    for (break_it, field) in cases {
        let mut api = api();
        check(&api).unwrap();
        break_it(&mut api);
        let error = check(&api).unwrap_err();
        assert_eq!(error.reason(), "NOT_DEPLOYABLE");
        assert_eq!(error.violations()[0].field, field);
        assert!(yaml(&api, ID, "p1", "", None).is_err());
    }
    let empty = check(&Api::default()).unwrap_err();
    let fields: Vec<&str> = empty.violations().iter().map(|one| one.field.as_str()).collect();
    assert_eq!(fields, ["version", "context", "operations", "backend-services"]);
}

#[test]
fn of_several_backends_the_default_counts() {
    let mut api = api();
    let second = BackendService {
        name: "second".into(),
        endpoints: vec![Endpoint { url: "http://second.test".into(), ..Endpoint::default() }],
        ..BackendService::default()
    };
    api.backend_services.push(second);
    assert_eq!(check(&api).unwrap_err().violations()[0].field, "backend-services");
    api.backend_services[1].is_default = true;
    assert!(yaml(&api, ID, "p1", "", None).unwrap().contains("url: http://second.test"));
}

#[test]
fn names_and_versions_fit_the_gateway() {
    for (given, kept) in [("v1", Some("v1")), ("1.2.3", Some("1.2.3")), ("2024-01-01", Some("2024"))] {
        assert_eq!(gateway_version(given), kept);
    }
    for bad in ["", "v", "1.", ".1", "1.2.3.4", "v1beta1", "-1", "1..2", "V1"] {
        assert_eq!(gateway_version(bad), None, "{bad:?}");
    }
    assert_eq!(display_name("Pet Store_1.0-b", ID), "Pet Store_1.0-b");
    assert_eq!(display_name("宠物", ID), "0123456789ab");
    let long = display_name(&"x".repeat(128), ID);
    assert!(long.len() <= 100 && long.ends_with(" 0123456789ab"), "{long}");
    assert_eq!(handle("宠物 & Co", "v1.0", ID), "co-v1-0-0123456789ab");
}

#[test]
fn only_the_probes_of_gateways_are_reserved() {
    let mut api = api();
    api.context = "/_gateway-healthy".into();
    api.operations[0].request.as_mut().unwrap().path = "/_gateway-health".into();
    check(&api).unwrap();
    api.context = "/".into();
    assert_eq!(check(&api).unwrap_err().violations()[0].field, "operations[0].request.path");
}

#[test]
fn what_a_gateway_had_goes_back_to_it() {
    let kept = Kept {
        handle: "pets-v1".into(),
        policies: vec![serde_json::json!({"name": "jwt-auth", "version": "v1", "params": {"n": 1}})],
        operations: [("GET /pets/{petId}".to_owned(), vec![serde_json::json!({"name": "cors"})])].into(),
        subscription_plans: vec!["gold".into()],
        sandbox: Some(serde_json::json!({"url": "https://sandbox.test"})),
    };
    let text = yaml(&api(), ID, "p1", "", Some(&kept)).unwrap();
    let read: Artifact = serde_norway::from_str(&text).unwrap();
    assert_eq!(read.metadata.name, "pets-v1");
    assert_eq!((read.spec.policies, read.spec.subscription_plans), (kept.policies, kept.subscription_plans));
    assert_eq!((read.spec.upstream.sandbox, read.spec.operations.len()), (kept.sandbox, 2));
    assert_eq!(read.spec.operations[0].policies, kept.operations["GET /pets/{petId}"]);
    assert!(read.spec.operations[1].policies.is_empty());
}
