//! Garbage of every kind gets a precise answer below 500, and changes nothing.

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};
use suite::client::Reply;

use crate::support::{Account, TestSuite};

/// An id that nothing has.
const UNKNOWN_ID: &str = "0198f0c5-0000-7000-8000-000000000000";

/// One piece of garbage.
struct Garbage {
    what: &'static str,
    method: Method,
    path: String,
    media_type: &'static str,
    body: Bytes,
    /// The statuses that are right.
    statuses: &'static [u16],
    /// The field that the answer must name; empty for none.
    field: &'static str,
}

fn garbage(
    what: &'static str,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
    statuses: &'static [u16],
    field: &'static str,
) -> Garbage {
    let (path, body) = (path.to_owned(), body.into());
    Garbage { what, method, path, media_type: "application/json", body, statuses, field }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_gets_a_precise_answer_and_changes_nothing() {
    let suite = TestSuite::start().await;
    let (account, other) = (suite.account().await, suite.account().await);
    let api = account.api("kept").await;
    let gateway = account.gateway().await.id;
    let before = everything(&account).await;
    let mut wrong = Vec::new();
    let cases = bodies(&account)
        .into_iter()
        .chain(values(&account, &api, &gateway))
        .chain(places(&other, &account, &api));
    for case in cases {
        let reply = account
            .client
            .send(case.method.clone(), &case.path, case.media_type, case.body.clone())
            .await
            .unwrap();
        wrong.extend(complaint(&case, &reply));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(everything(&account).await, before, "garbage changed something");
    suite.suite.shutdown().await;
}

/// Bodies that are not what their route reads.
fn bodies(account: &Account) -> Vec<Garbage> {
    use Method as M;
    let organizations = "/api/v1/organizations";
    let mut invalid = b"{\"handle\":\"abc\",\"name\":\"".to_vec();
    invalid.extend_from_slice(&[0xff, 0xfe, b'"', b'}']);
    let import = format!("/api/v1/apis/import?projectId={}", account.project);
    let large = vec![b' '; 2 * 1024 * 1024];
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let mut cases = vec![
        garbage("half an object", M::POST, organizations, "{\"handle\":", &[400], ""),
        garbage("nothing", M::POST, organizations, "", &[400], ""),
        garbage("a list", M::POST, organizations, "[]", &[400], ""),
        garbage("text after the object", M::POST, organizations, "{} x", &[400], ""),
        garbage("an unknown field", M::POST, organizations, r#"{"hadnle":"abc"}"#, &[400], "hadnle"),
        garbage("a wrong type", M::POST, organizations, r#"{"handle":7,"name":"x"}"#, &[400], "handle"),
        garbage("a field twice", M::POST, organizations, r#"{"name":"a","name":"b"}"#, &[400], "name"),
        garbage("a missing field", M::POST, organizations, r#"{"handle":"abc-def"}"#, &[400], "name"),
        garbage("invalid UTF-8", M::POST, organizations, invalid, &[400], ""),
        garbage("too deep", M::POST, organizations, deep, &[400], ""),
        garbage("oversized", M::POST, organizations, large, &[413], ""),
        garbage("oversized import", M::POST, &import, vec![b' '; 11 * 1024 * 1024], &[413], ""),
        garbage("10 MiB of nonsense", M::POST, &import, nonsense(10 * 1024 * 1024), &[400], "definition"),
        garbage("10 MiB of brackets", M::POST, &import, "[".repeat(10 * 1024 * 1024), &[400], "definition"),
        garbage("not OpenAPI", M::POST, &import, r#"{"swagger":"2.0"}"#, &[400], "definition"),
        garbage("no operation", M::POST, &import, r#"{"openapi":"3.0.0"}"#, &[400], "definition"),
    ];
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for at in 1..12 {
        let alias = format!("*a{}", at - 1);
        bomb += &format!("a{at}: &a{at} [{}]\n", vec![alias; 10].join(","));
    }
    let mut yaml = garbage("a YAML bomb", M::POST, &import, bomb, &[400], "definition");
    yaml.media_type = "application/yaml";
    cases.push(yaml);
    let mut form = garbage("not JSON by its type", M::POST, organizations, "handle=abc", &[400, 415], "");
    form.media_type = "application/x-www-form-urlencoded";
    cases.push(form);
    cases
}

/// Values that break a rule.
fn values(account: &Account, api: &str, gateway: &str) -> Vec<Garbage> {
    use Method as M;
    let api_body = |change: &dyn Fn(&mut Value)| {
        let mut body = account.api_body("garbage");
        change(&mut body);
        body.to_string()
    };
    let organization = &account.organization;
    let projects = format!("/api/v1/organizations/{organization}/projects");
    let long = "x".repeat(40_000);
    let apis = "/api/v1/apis";
    let deploy = format!("/api/v1/apis/{api}/deploy-revision");
    let bad_vhost = json!([{"gatewayId": gateway, "name": "x", "vhost": "no host!"}]).to_string();
    let no_gateway = json!([{"gatewayId": UNKNOWN_ID, "name": "x", "vhost": "a.example"}]).to_string();
    let twice = json!([{"gatewayId": gateway, "name": "x"}, {"gatewayId": gateway, "name": "x"}]).to_string();
    let bad_gateway =
        json!({"organizationId": organization, "name": "-Bad-", "displayName": "x"}).to_string();
    vec![
        garbage(
            "a bad handle",
            M::POST,
            "/api/v1/organizations",
            r#"{"handle":"A B","name":"x"}"#,
            &[400],
            "handle",
        ),
        garbage(
            "a bad id",
            M::POST,
            "/api/v1/organizations",
            r#"{"id":"7","handle":"abc","name":"x"}"#,
            &[400],
            "id",
        ),
        garbage("a long name", M::POST, &projects, json!({"name": long}).to_string(), &[400], "name"),
        garbage("a NUL", M::POST, &projects, "{\"name\":\"a\\u0000b\"}", &[400], "name"),
        garbage("a bad gateway name", M::POST, "/api/v1/gateways", bad_gateway, &[400], "name"),
        garbage(
            "an API name with a slash",
            M::POST,
            apis,
            api_body(&|b| b["name"] = json!("a/b")),
            &[400],
            "name",
        ),
        garbage(
            "a long context",
            M::POST,
            apis,
            api_body(&|b| b["context"] = json!("/x".repeat(200))),
            &[400],
            "context",
        ),
        garbage("no version", M::POST, apis, api_body(&|b| b["version"] = json!("")), &[400], "version"),
        garbage(
            "a long description",
            M::POST,
            apis,
            api_body(&|b| b["description"] = json!(long)),
            &[400],
            "description",
        ),
        garbage("an unknown enum", M::POST, apis, api_body(&|b| b["type"] = json!("TELNET")), &[400], "type"),
        garbage(
            "a bad operation",
            M::POST,
            apis,
            api_body(&|b| b["operations"][1]["request"]["path"] = json!("no slash")),
            &[400],
            "operations[1].request.path",
        ),
        garbage(
            "an operation's wrong type",
            M::POST,
            apis,
            api_body(&|b| b["operations"][0]["request"]["method"] = json!(7)),
            &[400],
            "operations[0].request.method",
        ),
        garbage(
            "a project that is no id",
            M::POST,
            apis,
            api_body(&|b| b["projectId"] = json!("x")),
            &[400, 404],
            "",
        ),
        garbage("a bad vhost", M::POST, &deploy, bad_vhost, &[400], "vhost"),
        garbage("an unknown gateway", M::POST, &deploy, no_gateway, &[400, 404, 409], ""),
        garbage("a gateway twice", M::POST, &deploy, twice, &[400], "gatewayId"),
        garbage("no gateway", M::POST, &deploy, "[]", &[400], "deployments"),
        garbage("an object for a list", M::POST, &deploy, "{}", &[400], ""),
        garbage("a bad limit", M::GET, "/api/v1/apis?limit=1000", "", &[400], "limit"),
        garbage("a limit in words", M::GET, "/api/v1/apis?limit=ten", "", &[400], "limit"),
        garbage("an unknown parameter", M::GET, "/api/v1/apis?limt=10", "", &[400], "limt"),
    ]
}

/// Places that are not there, or not for this caller.
fn places(other: &Account, account: &Account, api: &str) -> Vec<Garbage> {
    use Method as M;
    let theirs = format!("/api/v1/organizations/{}", other.organization);
    let their_project = format!("/api/v1/projects/{}", other.project);
    let import = format!("/api/v1/apis/import?projectId={}", other.project);
    let mut body = account.api_body("garbage");
    body["projectId"] = json!(other.project);
    vec![
        garbage("an unknown API", M::GET, &format!("/api/v1/apis/{UNKNOWN_ID}"), "", &[404], ""),
        garbage("no id", M::GET, "/api/v1/apis/nonsense", "", &[400, 404], ""),
        garbage("an escaped slash", M::GET, "/api/v1/apis/a%2Fb", "", &[400, 404], ""),
        garbage("an escaped NUL", M::GET, "/api/v1/apis/%00", "", &[400, 404], ""),
        garbage("an unknown route", M::GET, "/api/v1/nothing", "", &[404], ""),
        garbage("another method", M::PATCH, &format!("/api/v1/apis/{api}"), "{}", &[405], ""),
        garbage("another organization", M::GET, &theirs, "", &[404], ""),
        garbage("another organization's project", M::DELETE, &their_project, "", &[404], ""),
        garbage("an API in another's project", M::POST, "/api/v1/apis", body.to_string(), &[404], ""),
        garbage("an import into another's project", M::POST, &import, minimal_document(), &[404], ""),
    ]
}

fn minimal_document() -> &'static str {
    r#"{"openapi":"3.0.0","info":{"title":"t","version":"1"},"servers":[{"url":"https://x.example"}],
        "paths":{"/a":{"get":{"responses":{}}}}}"#
}

/// Printable nonsense that no parser takes for a document.
fn nonsense(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b' ' + u8::try_from(state % 95).unwrap()
    })
    .take(size)
    .collect()
}

/// What is wrong with the answer to a piece of garbage.
fn complaint(case: &Garbage, reply: &Reply) -> Option<String> {
    let problem = reply.json().unwrap_or_default();
    let text = reply.text();
    let complain =
        |what: &str| Some(format!("{} ({}): {what}: {} {text}", case.what, case.path, reply.status));
    if !case.statuses.contains(&reply.status) {
        return complain(&format!("expected {:?}", case.statuses));
    }
    if !reply.header("content-type").starts_with("application/problem+json") {
        return complain("not a problem document");
    }
    if problem["status"] != reply.status || problem["title"].as_str().is_none_or(str::is_empty) {
        return complain("status or title is missing");
    }
    if !case.field.is_empty() && !names(&problem, case.field) {
        return complain(&format!("does not name {}", case.field));
    }
    None
}

/// Whether a problem names a field: exactly, or as the first or the last part of a longer path.
fn names(problem: &Value, field: &str) -> bool {
    let errors = problem["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().any(|error| {
        let named = error["field"].as_str().unwrap_or_default();
        let says = error["message"].as_str().is_some_and(|message| !message.is_empty());
        let part = named.starts_with(&format!("{field}.")) || named.ends_with(&format!(".{field}"));
        says && (named == field || part)
    })
}

/// Everything that the account can see.
async fn everything(account: &Account) -> Vec<Value> {
    let mut seen = Vec::new();
    for path in ["organizations", "projects", "apis", "gateways", "auth/profile"] {
        seen.push(account.client.get(&format!("/api/v1/{path}")).await.unwrap().expect(200).unwrap());
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_told_so() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let good = account.client.token().unwrap().to_owned();
    let parts: Vec<&str> = good.split('.').collect();
    let unsigned = format!("{}.{}.", parts[0], parts[1]);
    let swapped = format!("{}.{}.{}", parts[0], parts[1], parts[2].chars().rev().collect::<String>());
    for token in ["", "x", "a.b.c", unsigned.as_str(), swapped.as_str(), &"x".repeat(9_000)] {
        let refused = suite.client.with_token(token).get("/api/v1/auth/profile").await.unwrap();
        assert!(matches!(refused.status, 401 | 431), "{token}: {} {}", refused.status, refused.text());
        if refused.status == 401 {
            assert!(refused.header("www-authenticate").starts_with("Bearer"), "{:?}", refused.headers);
        }
    }
    let nobody = suite.client.get("/api/v1/organizations").await.unwrap();
    assert_eq!(nobody.expect(401).unwrap()["code"], "UNAUTHENTICATED");
    suite.suite.shutdown().await;
}
