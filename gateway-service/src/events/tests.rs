use serde_json::{Value, json};

use super::{CUSTOM, Effect, Key, MAX_PAYLOAD, TYPES, answered_by, find, makes_needless};

/// A payload of each type as the wire contract has it, and the key that it leads to.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("api.deployed", r#"{"apiId":"a1","deploymentId":"d1","revisionId":"r","vhost":"v"}"#, "a1"),
    ("api.undeployed", r#"{"apiId":"a1","deploymentId":"d1"}"#, "a1"),
    ("api.deleted", r#"{"apiId":"a1"}"#, "a1"),
    (
        "apikey.created",
        r#"{"uuid":"u1","apiId":"a1","name":"k 1","apiKeyHashes":"{\"sha256\": \"00\"}","maskedApiKey":"***abcde",
            "expiresAt":"2027-01-01T00:00:00Z","createdAt":"2026-01-01T00:00:00Z","updatedAt":"2026-01-01T00:00:00Z"}"#,
        "apikey:a1:k 1",
    ),
    (
        "apikey.updated",
        r#"{"apiId":"a1","keyName":"k 1","apiKeyHashes":"{\"sha256\": \"00\"}","maskedApiKey":"***vwxyz",
            "expiresAt":null,"updatedAt":"2026-01-01T00:00:00Z"}"#,
        "apikey:a1:k 1",
    ),
    ("apikey.revoked", r#"{"apiId":"a1","keyName":"k 1"}"#, "apikey:a1:k 1"),
    (
        "subscription.created",
        r#"{"apiId":"a1","subscriptionId":"s1","subscriptionToken":"t","subscriptionPlanId":"p1","status":"ACTIVE"}"#,
        "subscription:s1",
    ),
    (
        "subscription.updated",
        r#"{"apiId":"a1","subscriptionId":"s1","applicationId":"app","subscriptionToken":"t","status":"BLOCKED"}"#,
        "subscription:s1",
    ),
    (
        "subscription.deleted",
        r#"{"apiId":"a1","subscriptionId":"s1","subscriptionToken":"t"}"#,
        "subscription:s1",
    ),
    (
        "subscriptionPlan.created",
        r#"{"planId":"p1","handle":"gold","planName":"Gold","stopOnQuotaReach":true,"throttleLimitCount":1000,
            "throttleLimitUnit":"HOUR","status":"ACTIVE"}"#,
        "subscriptionPlan:p1",
    ),
    (
        "subscriptionPlan.updated",
        r#"{"planId":"p1","handle":"gold","planName":"Gold","billingPlan":"b","stopOnQuotaReach":false,
            "expiryTime":"2027-01-01T00:00:00Z","status":"ACTIVE"}"#,
        "subscriptionPlan:p1",
    ),
    (
        "subscriptionPlan.deleted",
        r#"{"planId":"p1","handle":"gold","planName":"Gold"}"#,
        "subscriptionPlan:p1",
    ),
    (
        "application.updated",
        r#"{"applicationId":"app1","applicationUuid":"u1","applicationName":"App 1","applicationType":"genai",
            "mappings":[{"apiKeyUuid":"k1"},{"apiKeyUuid":"k2"}]}"#,
        "application:u1",
    ),
    ("gateway.config.updated", r#"{"configType":"routing","action":"reload"}"#, "gateway.config:routing"),
];

#[test]
fn fr_011_every_type_takes_its_example_and_names_each_field_that_is_missing_or_wrong() {
    for event in TYPES {
        let (_, example, key) = EXAMPLES
            .iter()
            .find(|(name, ..)| *name == event.name)
            .unwrap_or_else(|| panic!("{}", event.name));
        let checked = event.check(example).unwrap();
        assert_eq!((checked.key.as_str(), checked.payload_json.as_str()), (*key, *example), "{}", event.name);

        let whole: Value = serde_json::from_str(example).unwrap();
        for (field, value) in whole.as_object().unwrap() {
            // No field of any type may hold a list of lists.
            let mut wrong = whole.clone();
            wrong[field] = json!([[]]);
            let named: Vec<String> = match event.check(&wrong.to_string()) {
                Ok(_) => Vec::new(),
                Err(errors) => errors.within("payload").map(|(path, _)| path).collect(),
            };
            let known = !["revisionId", "vhost"].contains(&field.as_str());
            let path =
                if value.is_array() { format!("payload.{field}[0]") } else { format!("payload.{field}") };
            assert_eq!(named, if known { vec![path] } else { vec![] }, "{} {field}", event.name);
        }
        let nothing = event.check("{}").unwrap_err();
        assert!(nothing.0.iter().all(|(_, rule)| rule == "is required"), "{}: {nothing:?}", event.name);
        if let Key::Of(_, fields) = event.key {
            // A key is made of what must be there.
            let required: Vec<&str> = nothing.0.iter().map(|(path, _)| path.as_str()).collect();
            assert!(fields.iter().all(|field| required.contains(field)), "{}", event.name);
        }
        for bad in ["", "[]", "null", "{", "{} {}"] {
            let errors = event.check(bad).unwrap_err();
            assert_eq!(
                errors.0,
                [(String::new(), "must be a JSON object".to_owned())],
                "{} {bad}",
                event.name
            );
        }
        let long = format!("{{\"x\":\"{}\"}}", "x".repeat(event.max_bytes));
        assert!(event.max_bytes <= MAX_PAYLOAD);
        assert!(event.check(&long).unwrap_err().0[0].1.contains(&event.max_bytes.to_string()));
    }
    assert_eq!(EXAMPLES.len(), TYPES.len());
}

#[test]
fn what_lists_and_texts_hold_is_checked() {
    let application = find("application.updated").unwrap();
    let wrong = json!({
        "applicationId": "", "applicationUuid": "a:b", "applicationName": "a\u{0}", "applicationType": 5,
        "mappings": [{"apiKeyUuid": "k1"}, {}, {"apiKeyUuid": "x".repeat(65)}],
    });
    let errors = application.check(&wrong.to_string()).unwrap_err();
    let paths: Vec<&str> = errors.0.iter().map(|(path, _)| path.as_str()).collect();
    let all = [
        "applicationId",
        "applicationUuid",
        "applicationName",
        "applicationType",
        "mappings[1].apiKeyUuid",
        "mappings[2].apiKeyUuid",
    ];
    assert_eq!(paths, all);
}

#[test]
fn performed_at_is_not_stored() {
    let checked =
        find("api.deployed").unwrap().check(r#" {"apiId":"a","deploymentId":"d","performedAt":1,"n":1.50} "#);
    assert_eq!(checked.unwrap().payload_json, r#"{"apiId":"a","deploymentId":"d","n":1.5}"#);
    let checked = find("api.deployed").unwrap().check(" {\"apiId\": \"a\",\"deploymentId\":\"d\"}\n");
    assert_eq!(checked.unwrap().payload_json, r#"{"apiId": "a","deploymentId":"d"}"#);
}

#[test]
fn every_name_and_every_answer_leads_back_to_one_type() {
    for event in TYPES {
        assert_eq!(find(event.name), Some(event));
        assert!(
            !event.from_operators || event.answer.is_none(),
            "operators deploy nothing past the platform"
        );
        if let Some(answer) = &event.answer {
            assert_eq!(answered_by(answer.resource, answer.action.name()), Some(event));
        }
    }
    assert_eq!(answered_by("", "undeploy").unwrap().name, "api.undeployed");
    assert!(find("api.renamed").is_none() && answered_by("llmproxy", "deploy").is_none());
}

#[test]
fn operators_define_types_of_their_own() {
    for good in ["custom.x", "custom.cache.purge-all_2", &format!("custom.{}", "x".repeat(64))] {
        assert_eq!(find(good), Some(CUSTOM), "{good}");
    }
    for bad in
        ["custom", "custom.", "custom.X", "custom.a b", "custom.*", &format!("custom.{}", "x".repeat(65))]
    {
        assert_eq!(find(bad), None, "{bad}");
    }
    assert_eq!(CUSTOM.check(r#"{"any":["thing"]}"#).unwrap().key, "");
    assert!(CUSTOM.check("[1]").is_err());
    assert_eq!(CUSTOM.given_key("cache").as_deref(), Some("custom:cache"));
    assert_eq!(CUSTOM.given_key("").as_deref(), Some(""));
    assert_eq!(find("gateway.config.updated").unwrap().given_key("x"), None);
}

#[test]
fn a_newer_event_makes_needless_what_it_replaces_and_nothing_else() {
    let (deploy, undeploy) = ("api.deployed", "api.undeployed");
    assert!(makes_needless(deploy, deploy));
    assert!(makes_needless(deploy, undeploy));
    assert!(makes_needless(undeploy, deploy));
    assert!(makes_needless("api.deleted", undeploy));
    assert!(makes_needless("apikey.updated", "apikey.updated"));
    assert!(!makes_needless("apikey.updated", "apikey.created"), "nothing to update else");
    assert!(!makes_needless("apikey.created", "apikey.revoked"), "the old key goes first");
    assert!(makes_needless("apikey.revoked", "apikey.created"));
    assert!(makes_needless("custom.b", "custom.a"));
}

#[test]
fn types_mean_what_they_say() {
    let effects = [
        ("api.deployed", Effect::Runs),
        ("api.undeployed", Effect::Stops),
        ("api.deleted", Effect::Forgets),
        ("apikey.revoked", Effect::Removes),
        ("subscription.deleted", Effect::Removes),
        ("subscriptionPlan.deleted", Effect::Removes),
    ];
    for (name, effect) in effects {
        assert_eq!(Effect::of(name), effect, "{name}");
    }
    for other in ["apikey.created", "gateway.config.updated", "custom.deleted", "unknown"] {
        assert_eq!(Effect::of(other), Effect::Keeps, "{other}");
    }
}
