use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
};

use proto::{Access, Contract};
use serde_json::Value;

use super::document;

fn parsed() -> Value {
    serde_json::from_slice(&document()).unwrap()
}

/// Every operation with its path and verb.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let operations = item.as_object().unwrap().clone();
        let path = path.clone();
        operations.into_iter().map(move |(verb, operation)| (path.clone(), verb, operation))
    };
    paths.iter().flat_map(of_path).collect()
}

#[test]
fn the_document_is_as_reviewed() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let now = parsed();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        // The value would lose the order of the top level.
        let text = serde_json::to_string_pretty(&super::build(&Contract::documented())).unwrap();
        std::fs::write(&file, text + "\n").unwrap();
    }
    let reviewed: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for part in ["/openapi", "/info", "/servers", "/tags", "/paths", "/components"] {
        let (was, is) = (reviewed.pointer(part), now.pointer(part));
        assert!(was == is, "{part} of tests/openapi.json has changed; review, then UPDATE_EXPECT=1");
    }
}

#[test]
fn every_binding_is_an_operation() {
    let document = parsed();
    let operations = operations(&document);
    let bindings: usize = Contract::get()
        .methods()
        .filter(|method| method.access != Access::Service)
        .map(|method| method.http.len())
        .sum();
    assert_eq!(
        operations.len(),
        bindings + 4 + crate::composite::declared().unwrap().len(),
        "and the edge's own"
    );
    assert!(bindings > 40);
}

#[test]
fn every_reference_resolves() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| walk(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let document = parsed();
    let mut references = Vec::new();
    walk(&document, &mut references);
    assert!(references.len() > 100);
    for reference in &references {
        let target = document.pointer(reference.strip_prefix('#').unwrap());
        assert!(target.is_some_and(Value::is_object), "{reference} leads nowhere");
    }
    let named: HashSet<&str> = references.into_iter().collect();
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let reference = format!("#/components/schemas/{name}");
        assert!(named.contains(reference.as_str()), "{name} is not used");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{name}");
    }
}

#[test]
fn operations_are_sound() {
    let document = parsed();
    let mut ids = HashSet::new();
    let mut shapes = HashSet::new();
    for (path, verb, operation) in operations(&document) {
        let at = format!("{verb} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{at}: operationId");
        let in_template: BTreeSet<&str> = super::variables(&path).into_iter().collect();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let of_path: Vec<&Value> = parameters.iter().filter(|p| p["in"] == "path").collect();
        let declared: BTreeSet<&str> = of_path.iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(in_template, declared, "{at}: path parameters");
        assert!(of_path.iter().all(|p| p["required"] == true), "{at}");
        let places: HashSet<String> =
            parameters.iter().map(|p| format!("{} {}", p["in"], p["name"])).collect();
        assert_eq!(places.len(), parameters.len(), "{at}: a parameter twice");
        let body_expected = ["post", "put", "patch"].contains(&verb.as_str());
        assert_eq!(operation.get("requestBody").is_some(), body_expected, "{at}: body");
        assert!(
            operation["responses"].as_object().unwrap().keys().any(|s| s.starts_with(['1', '2'])),
            "{at}"
        );
        for tag in operation["tags"].as_array().unwrap() {
            assert!(document["tags"].as_array().unwrap().iter().any(|known| known["name"] == *tag), "{at}");
        }
        let shape: Vec<&str> = path.split('/').map(|p| if p.starts_with('{') { "{}" } else { p }).collect();
        shapes.insert(shape.join("/"));
    }
    assert_eq!(shapes.len(), document["paths"].as_object().unwrap().len(), "two paths differ only in names");
}

#[test]
fn details_are_those_of_the_edge() {
    let document = parsed();
    let deploy = &document["paths"]["/api/v1/apis/{apiId}/deploy-revision"]["post"];
    let query: Vec<_> =
        deploy["parameters"].as_array().unwrap().iter().filter(|p| p["in"] == "query").collect();
    assert_eq!(query.len(), 1, "only revisionId");
    assert_eq!(query[0]["name"], "revisionId");
    let array = &deploy["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(array["type"], "array");
    assert_eq!(array["items"]["$ref"], "#/components/schemas/DeploymentTarget");
    assert_eq!(deploy["security"][0]["bearerAuth"][0], "apis:deploy");

    let import = &document["paths"]["/api/v1/apis/import"]["post"];
    assert!(import["requestBody"]["content"]["*/*"].is_object(), "a document of any media type");
    assert!(import["responses"]["201"]["headers"]["Location"].is_object());

    let update = &document["paths"]["/api/v1/projects/{projectId}"]["put"];
    let properties = &update["requestBody"]["content"]["application/json"]["schema"]["properties"];
    assert!(properties.get("projectId").is_none(), "the path holds it");
    assert!(properties.get("name").is_some());

    let api = &document["components"]["schemas"]["Api"]["properties"];
    assert!(api.get("backend-services").is_some() && api.get("api-rate-limiting").is_some());
    assert_eq!(api["createdAt"]["format"], "date-time");
    let policy = &document["components"]["schemas"]["PolicyRef"]["properties"]["params"];
    assert_eq!(policy["additionalProperties"]["type"], "string");

    let statuses = |path: &str| {
        let responses = document["paths"][path]["post"]["responses"].as_object().unwrap().keys();
        responses.filter(|status| status.starts_with('2')).cloned().collect::<Vec<_>>()
    };
    assert_eq!(statuses("/api/v1/auth/signup"), ["201", "202"]);
    assert_eq!(statuses("/api/v1/auth/password/forgot"), ["202"]);
    assert_eq!(statuses("/api/v1/apis/import"), ["201"]);
    let ceremony = &document["components"]["schemas"]["PasskeyCeremony"]["properties"]["options"];
    assert_eq!((&ceremony["type"], &ceremony["additionalProperties"]), (&"object".into(), &true.into()));

    let alias = &document["paths"]["/api/auth/login"]["post"];
    assert_eq!(alias["tags"][1], "alias");
    assert_eq!(alias["deprecated"], false);
    let internal = &document["paths"]["/api/internal/v1/deployments"]["get"];
    assert_eq!(internal["responses"]["4XX"]["$ref"], "#/components/responses/InternalError");
    assert!(document["paths"]["/api/v1/apis/{apiId}"]["delete"]["responses"]["204"].is_object());
    assert!(!document.to_string().contains("ReportDeployments"), "SERVICE methods stay inside");
}
