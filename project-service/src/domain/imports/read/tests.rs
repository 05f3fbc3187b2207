use proptest::prelude::*;
use serde_json::{Value, json};

use super::{PROJECT, read};
use crate::domain::artifact;

const ID: &str = "0198f0c5-0000-7000-8000-0123456789ab";

fn configuration() -> Value {
    json!({
        "apiVersion": "gateway.api-platform.wso2.com/v1alpha1",
        "kind": "RestApi",
        "metadata": {"name": "weather-v1", "annotations": {"gateway.api-platform.wso2.com/project-id": ID}},
        "spec": {
            "displayName": "Weather",
            "version": "v1.0",
            "context": "/weather/$version",
            "upstream": {"main": {"url": "https://weather.test/api"}, "sandbox": {"url": "https://try.test"}},
            "policies": [{"name": "jwt-auth", "version": "v1", "params": {"issuers": ["a"]}}],
            "operations": [
                {"method": "GET", "path": "/{city}", "policies": [{"name": "cors", "version": "v1"}]},
                {"method": "POST", "path": "/"}
            ],
            "deploymentState": "deployed",
            "subscriptionPlans": null
        }
    })
}

fn fields(configuration: &Value) -> Vec<String> {
    let error = read(&configuration.to_string()).unwrap_err();
    error.violations().iter().map(|violation| violation.field.clone()).collect()
}

#[test]
fn an_artifact_goes_through_an_api_and_back() {
    let given = configuration();
    let imported = read(&given.to_string()).unwrap();
    assert_eq!((imported.project_id.as_str(), imported.vhost.as_str()), (ID, ""));
    assert_eq!(imported.api.context, "/weather/v1.0");
    let yaml = artifact::yaml(&imported.api, ID, ID, &imported.vhost, Some(&imported.kept)).unwrap();
    let back: Value = serde_norway::from_str(&yaml).unwrap();
    assert_eq!(back["metadata"]["name"], "weather-v1");
    for part in ["displayName", "version", "upstream", "policies", "operations"] {
        assert_eq!(back["spec"][part], given["spec"][part], "{part}");
    }
    let again = read(&back.to_string()).unwrap();
    assert_eq!((again.api, again.kept), (imported.api, imported.kept));
}

#[test]
fn what_stands_in_the_way_is_named_where_the_artifact_has_it() {
    let cases = [
        ("/kind", json!("Mcp"), "configuration.kind"),
        ("/apiVersion", json!("v2"), "configuration.apiVersion"),
        ("/metadata/name", json!("a b"), "configuration.metadata.name"),
        ("/metadata/annotations", json!({}), PROJECT),
        ("/metadata/annotations", json!({"gateway.api-platform.wso2.com/project-id": "p"}), PROJECT),
        ("/spec/displayName", json!("Wetter: morgen"), "configuration.spec.displayName"),
        ("/spec/version", json!("beta"), "configuration.spec.version"),
        ("/spec/version", json!(7), "configuration.spec.version"),
        ("/spec/context", json!("/a b"), "configuration.spec.context"),
        ("/spec/context", json!("/_gateway-health/x"), "configuration.spec.context"),
        ("/spec/operations", json!([]), "configuration.spec.operations"),
        ("/spec/operations/1/method", json!("TRACE"), "configuration.spec.operations[1].method"),
        ("/spec/operations/0/path", json!("x"), "configuration.spec.operations[0].path"),
        ("/spec/operations/0/policies/0", json!("cors"), "configuration.spec.operations[0].policies[0]"),
        ("/spec/upstream/main/url", json!("ftp://x"), "configuration.spec.upstream.main.url"),
        ("/spec/upstream/main", json!({"ref": "one"}), "configuration.spec.upstream.main.ref"),
        ("/spec/policies", json!({}), "configuration.spec.policies"),
        ("/spec", json!([]), "configuration.spec"),
    ];
    for (place, value, field) in cases {
        let mut bad = configuration();
        *bad.pointer_mut(place).unwrap() = value;
        assert!(fields(&bad).contains(&field.to_owned()), "{place}: {:?}", fields(&bad));
    }
    let mut more = configuration();
    more["spec"]["vhosts"] = json!({"main": "_", "sandbox": "try.test"});
    more["spec"]["resilience"] = json!({"retries": 3});
    assert_eq!(
        fields(&more),
        [
            "configuration.spec.vhosts.main",
            "configuration.spec.resilience",
            "configuration.spec.vhosts.sandbox"
        ]
    );
}

#[test]
fn older_gateways_name_the_project_in_a_label() {
    let mut old = configuration();
    old["metadata"]["annotations"] = Value::Null;
    old["metadata"]["labels"] = json!({"project-id": ID});
    old["spec"]["vhosts"] = json!({"main": "api.weather.test"});
    let read = read(&old.to_string()).unwrap();
    assert_eq!((read.project_id.as_str(), read.vhost.as_str()), (ID, "api.weather.test"));
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "\\PC{0,60}") {
        let mut odd = configuration();
        for place in ["/spec/displayName", "/spec/context", "/spec/operations/0/path", "/spec/upstream/main/url"] {
            *odd.pointer_mut(place).unwrap() = json!(text);
        }
        // Whatever is read can be written.
        if let Ok(read) = read(&odd.to_string()) {
            artifact::yaml(&read.api, ID, ID, "", Some(&read.kept)).unwrap();
        }
        prop_assert!(read(&text).is_err());
    }
}
