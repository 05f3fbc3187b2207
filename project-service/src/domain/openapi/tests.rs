use std::time::{Duration, Instant};

use proptest::prelude::*;
use proto::project::Api;
use service_kit::Kind;

use super::{Names, read};

const YAML: &str = include_str!("../../../tests/fixtures/pets-3.0.yaml");
const JSON: &str = include_str!("../../../tests/fixtures/pets-3.0.json");
const V31: &str = include_str!("../../../tests/fixtures/orders-3.1.yaml");

fn import(text: &str) -> Api {
    read(text.as_bytes(), &Names::default()).expect("a good document").0
}

/// The field and the rule that a document is refused for.
fn refused(text: &[u8]) -> (String, String) {
    let error = read(text, &Names::default()).expect_err("a bad document");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(error.violations().len(), 1);
    let violation = &error.violations()[0];
    (violation.field.clone(), violation.message.clone())
}

fn calls(api: &Api) -> Vec<(String, String, String)> {
    let call = |operation: &proto::project::Operation| {
        let request = operation.request.clone().unwrap_or_default();
        (operation.name.clone(), request.method, request.path)
    };
    api.operations.iter().map(call).collect()
}

fn triples(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    expected.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
}

#[test]
fn operations_come_in_the_order_of_the_document() {
    let expected = triples(&[
        ("updatePet", "PUT", "/pets/{petId}"),
        ("getPet", "GET", "/pets/{petId}"),
        ("POST /pets", "POST", "/pets"),
        ("listPets", "GET", "/pets"),
        ("HEAD /pets", "HEAD", "/pets"),
        ("POST /animals", "POST", "/animals"),
        ("listPets", "GET", "/animals"),
        ("HEAD /animals", "HEAD", "/animals"),
    ]);
    assert_eq!(calls(&import(YAML)), expected);
    let expected = triples(&[
        ("z", "GET", "/z"),
        ("DELETE /z", "DELETE", "/z"),
        ("a", "GET", "/a"),
        ("PATCH /m/{id}", "PATCH", "/m/{id}"),
        ("m", "OPTIONS", "/m/{id}"),
    ]);
    assert_eq!(calls(&import(JSON)), expected);
    let expected = triples(&[("placeOrder", "POST", "/orders"), ("listOrders", "GET", "/orders")]);
    assert_eq!(calls(&import(V31)), expected);
}

#[test]
fn names_are_made_to_fit() {
    let api = import(YAML);
    assert_eq!(api.name, "Pets Co. public API");
    assert_eq!(api.display_name, "Pets & Co. (public): API");
    assert_eq!(api.context, "/pets-co-public-api");
    assert_eq!(api.version, "1.10-beta");
    assert_eq!(api.description, "All about pets.\n\n- [ ] a list with brackets");
    let json = import(JSON);
    assert_eq!((json.version.as_str(), json.description.as_str()), ("2.0", "As JSON, with \"quotes\"."));
    let v31 = import(V31);
    assert_eq!((v31.version.as_str(), v31.description.as_str()), ("3", "Orders as they come"));
    let yaml = "openapi: 3.0.0\ninfo: {title: X, version: 1.10}\npaths: {}";
    assert_eq!(import(yaml).version, "1.10", "a YAML number is read as it is written");
    let names = Names { name: "n".into(), context: "c".into(), version: "v".into() };
    let given = read(b"openapi: 3.1\ninfo: {}\npaths: {}", &names).unwrap().0;
    assert_eq!((&*given.name, &*given.context, &*given.version), ("n", "c", "v"));
}

#[test]
fn servers_become_the_default_backend() {
    let api = import(YAML);
    assert_eq!(api.backend_services.len(), 1);
    let backend = &api.backend_services[0];
    assert!(backend.is_default && backend.name == "default");
    let urls: Vec<&str> = backend.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
    assert_eq!(urls, ["https://eu.pets.test/v1", "http://backup.pets.test:8080"]);
    assert_eq!(backend.endpoints[0].description, "The nearest one");
    assert!(import(V31).backend_services.is_empty());
    for url in
        ["/", "ftp://x.test", "https://{x}.test", "https://u:p@x.test", "//x.test", "https://x.test?a=b"]
    {
        let text = format!("openapi: 3.0.0\ninfo: {{title: X, version: 1}}\nservers: [{{url: '{url}'}}]");
        assert!(import(&text).backend_services.is_empty(), "{url}");
    }
}

#[test]
fn security_says_who_may_call() {
    let api = import(YAML);
    let asked: Vec<(bool, Vec<String>)> = api
        .operations
        .iter()
        .filter_map(|operation| operation.request.as_ref()?.authentication.clone())
        .map(|authentication| (authentication.required, authentication.scopes))
        .collect();
    let scopes = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>();
    assert_eq!(asked[0], (true, scopes(&["write:pets", "read:pets"])));
    assert_eq!(asked[1], (true, scopes(&["read:pets"])), "as the document says at its top");
    assert_eq!(asked[3], (false, scopes(&[])), "an empty list asks for nothing");
    assert_eq!(asked[4], (false, scopes(&[])), "an empty requirement makes it optional");
    let security = api.security.unwrap();
    assert!(security.enabled);
    let key = security.api_key.unwrap();
    assert_eq!((&*key.header, &*key.query, &*key.cookie), ("X-Api-Key", "", "session"));
    let oauth2 = security.oauth2.unwrap();
    assert_eq!(oauth2.scopes, ["admin", "read:pets", "write:pets"]);
    let grants = oauth2.grant_types.unwrap();
    assert!(grants.authorization_code.unwrap().enabled && grants.client_credentials.unwrap().enabled);
    assert!(grants.implicit.is_none() && grants.password.is_none());
    let v31 = import(V31);
    let asked = v31.operations[0].request.as_ref().unwrap().authentication.as_ref().unwrap();
    assert_eq!((asked.required, &asked.scopes), (true, &scopes(&["orders"])));
}

#[test]
fn refusals_name_the_place() {
    let head = "openapi: 3.0.0\ninfo: {title: X, version: 1}\n";
    let cases: [(String, &str, &str); 20] = [
        (String::new(), "definition", "is required"),
        ("hello".into(), "definition", "must be an object, not a string"),
        ("[]".into(), "definition", "must be an object, not a list"),
        ("{".into(), "definition", "must be JSON"),
        ("{\"openapi\": \"3.0.0\"} x".into(), "definition", "must be JSON"),
        ("a: b: c".into(), "definition", "must be YAML"),
        ("swagger: '2.0'".into(), "definition.swagger", "says Swagger 2.0, and only OpenAPI 3.0 and 3.1"),
        ("info: {}".into(), "definition.openapi", "is required"),
        ("openapi: 4.0.0".into(), "definition.openapi", "says 4.0.0"),
        ("openapi: 3.10".into(), "definition.openapi", "says 3.10"),
        ("openapi: 3.0.0".into(), "definition.info", "is required"),
        ("openapi: 3.0.0\ninfo: {version: 1}".into(), "definition.info.title", "is required"),
        ("openapi: 3.0.0\ninfo: {title: X}".into(), "definition.info.version", "is required"),
        ("openapi: 3.0.0\ninfo: {title: '&&', version: 1}".into(), "definition.info.title", "holds no"),
        ("openapi: 3.0.0\ninfo: [title]".into(), "definition.info", "must be an object, not a list"),
        (
            format!("{head}paths: {{/a: {{get: 7}}}}"),
            "definition.paths./a.get",
            "must be an object, not a number",
        ),
        (format!("{head}paths: {{a: {{}}}}"), "definition.paths.a", "must start with a slash"),
        (format!("{head}paths: {{/a: {{}}, /a: {{}}}}"), "definition.paths./a", "must be given once"),
        (
            format!("{head}paths: {{/a: {{$ref: other.yaml}}}}"),
            "definition.paths./a.$ref",
            "points out of the document (other.yaml)",
        ),
        (
            format!("{head}paths: {{/a: {{$ref: '#/paths/~1a'}}}}"),
            "definition.paths./a.$ref",
            "leads in a circle",
        ),
    ];
    for (text, field, rule) in cases {
        let (at, why) = refused(text.as_bytes());
        assert_eq!(at, field, "{text}: {why}");
        assert!(why.starts_with(rule), "{text}: {why}");
    }
    let json = r#"{"openapi":"3.0.0","servers":[{"url":"x"},{"url":["y"]}]}"#;
    assert_eq!(refused(json.as_bytes()).0, "definition.servers[1].url");
    // A number that is meant as text is one in YAML only: JSON says which it is.
    let number = r#"{"openapi":"3.0.0","info":{"title":"x","version":1.0}}"#;
    let (at, why) = refused(number.as_bytes());
    assert_eq!(
        (at.as_str(), why.as_str()),
        ("definition.info.version", "must be a string, not floating point `1.0`")
    );
    let broken = "{\"openapi\":\"3.0.0\",\"paths\":{\"/pets\":{\"get\":{\"summary\":\"x\",}}}}";
    let (at, why) = refused(broken.as_bytes());
    assert_eq!(at, "definition.paths./pets.get");
    assert!(why.contains("line 1 column"), "{why}");
    assert_eq!(refused(b"openapi: \xff").1, "must be UTF-8 text: JSON or YAML");
}

/// Ten MiB that cost as little as they say.
#[test]
fn large_nonsense_is_refused_quickly() {
    let of = |unit: &str| unit.repeat(super::MAX_BYTES / unit.len());
    let start = Instant::now();
    for unit in
        ["[", "{a: ", "- ", "? ", "[a,", "{\"a\":", "a: b\n", "x", "'", "&a ", "!a ", "\"\\", "{}", "\0"]
    {
        refused(of(unit).as_bytes());
    }
    refused(format!("{{\"a\":{}", "[".repeat(10_000_000)).as_bytes());
    assert_eq!(refused(&vec![b'x'; super::MAX_BYTES + 1]).1, "must have at most 10 MiB");
    // All of them together; without the guard the first one alone takes hours.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn alias_bombs_do_not_go_off() {
    let start = Instant::now();
    let mut laughs = "x-a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for (name, last) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f"), ("h", "g")] {
        let list = vec![format!("*{last}"); 9].join(", ");
        laughs += &format!("x-{name}: &{name} [{list}]\n");
    }
    assert!(refused(laughs.as_bytes()).1.contains("aliases"));
    let fat = format!("x-a: &a '{}'\nx-b: [{}0]", "x".repeat(2_000_000), "*a, ".repeat(200_000));
    assert!(refused(fat.as_bytes()).1.contains("aliases"));
    let paths: String = (0..50_000).map(|i| format!("  /{i}: *a\n")).collect();
    let items = format!("x-a: &a {{get: {{summary: {}}}}}\npaths:\n{paths}", "x".repeat(30_000));
    assert!(refused(items.as_bytes()).1.contains("aliases"));
    assert!(refused(b"x-a: &a [*a]").0.starts_with("definition.x-a[0][0]"));
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn references_are_resolved_within_the_document_only() {
    let head = "openapi: 3.1.0\ninfo: {title: X, version: 1}\n";
    let good = "paths: {/a: {$ref: '#/paths/~1b~1%7Bid%7D'}, '/b/{id}': {get: {operationId: b}}}";
    assert_eq!(import(&format!("{head}{good}")).operations.len(), 2);
    for (reference, rule) in [
        ("#/paths/~1nowhere", "points to nothing"),
        ("#/components/schemas/X", "must point to a path item"),
        ("https://evil.test/x.yaml", "points out of the document"),
        ("file:///etc/passwd", "points out of the document"),
    ] {
        let (at, why) = refused(format!("{head}paths: {{/a: {{$ref: '{reference}'}}}}").as_bytes());
        assert_eq!(at, "definition.paths./a.$ref");
        assert!(why.starts_with(rule), "{why}");
    }
}

#[test]
fn merge_keys_fill_what_is_not_said() {
    let text = "openapi: 3.0.0\ninfo: {title: X, version: 1}\nx-common: &common {get: {operationId: c}}\n\
        paths:\n  /a:\n    <<: *common\n    post: {operationId: p}\n  /b:\n    <<: *common\n    get: {operationId: own}\n";
    let expected = triples(&[("p", "POST", "/a"), ("c", "GET", "/a"), ("own", "GET", "/b")]);
    assert_eq!(calls(&import(text)), expected);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~\n]{0,200}") {
        let _ = read(text.as_bytes(), &Names::default());
    }

    #[test]
    fn every_title_becomes_a_name(title in "\\PC{1,300}", version in "\\PC{1,60}") {
        let document = serde_json::json!({"openapi": "3.0.0", "info": {"title": title, "version": version}});
        if let Ok((api, _)) = read(document.to_string().as_bytes(), &Names::default()) {
            prop_assert!((1..=128).contains(&api.name.chars().count()));
            prop_assert!((1..=30).contains(&api.version.chars().count()));
            let forbidden = |c| "~!@#;:%^*()+={}|\\<>\"',&$[]/".contains(c);
            prop_assert!(!api.name.contains(forbidden));
            prop_assert!(!api.version.contains(|c: char| c.is_whitespace() || "/:&".contains(c)));
            prop_assert!(api.context.starts_with('/') && api.context.len() <= 129);
        }
    }
}
