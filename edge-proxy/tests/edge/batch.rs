//! Several calls in one request.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Method, StatusCode};
use proto::{
    auth::TokenPair,
    google::api::HttpBody,
    project::{Api, CreateProjectRequest, ListApisRequest, ListApisResponse, Project},
};
use serde_json::{Value, json};
use service_kit::Error;
use tokio::sync::Semaphore;

use super::{
    client::Answer,
    harness::{Call, Options, Reply, World, ok},
};

const PATH: &str = "/api/v1/batch";

fn service(call: &Call) -> Reply {
    match call.path.rsplit('/').next().unwrap() {
        "CreateProject" => {
            let request: CreateProjectRequest = call.decode();
            ok(&Project { id: "p 1".into(), name: request.name, ..Project::default() })
        }
        "ListApis" => {
            let project = call.decode::<ListApisRequest>().project_id;
            let api = Api { id: format!("of-{project}"), ..Api::default() };
            ok(&ListApisResponse { count: 1, list: vec![api], ..ListApisResponse::default() })
        }
        "GetApi" => match call.decode::<proto::project::GetApiRequest>().api_id.as_str() {
            "missing" => Reply::Fail(Error::not_found("API").into()),
            "large" => ok(&Api { description: "x".repeat(5_000_000), ..Api::default() }),
            id => ok(&Api { id: id.into(), ..Api::default() }),
        },
        "GetDefinition" => ok(&HttpBody { content_type: "application/yaml".into(), data: b"a: 1".to_vec() }),
        "CreateApi" => ok(&Api { id: "new".into(), ..Api::default() }),
        "DeleteApi" => Reply::Message(Vec::new()),
        "Login" => ok(&TokenPair::default()),
        other => panic!("{other} is not in the script"),
    }
}

async fn ask(world: &World, requests: Value) -> Answer {
    world.post(PATH).user().json(json!({"requests": requests}).to_string()).await
}

async fn responses(world: &World, requests: Value) -> Vec<Value> {
    let answer = ask(world, requests).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (StatusCode::OK, "application/json"),
        "{answer:?}"
    );
    answer.json()["responses"].as_array().unwrap().clone()
}

#[tokio::test]
async fn each_call_has_an_answer_of_its_own() {
    let world = World::start(service).await;
    let requests = json!([
        {"id": "a", "method": "GET", "path": "/api/v1/apis/a1"},
        {"id": "missing", "method": "GET", "path": "/api/v1/apis/missing"},
        {"id": "yaml", "method": "GET", "path": "/api/v1/apis/a1/definition"},
        {"id": "gone", "method": "DELETE", "path": "/api/v1/apis/a1"},
        {"id": "new", "method": "POST", "path": "/api/v1/apis", "body": {"name": "n", "context": "/{petId}"}},
        {"id": "nowhere", "method": "GET", "path": "/nowhere"},
        {"id": "wrong", "method": "PATCH", "path": "/api/v1/apis/a1"},
        {"id": "dots", "method": "GET", "path": "/api/v1/../x"},
        {"id": "fragment", "method": "GET", "path": "/api/v1/apis/a1#x"},
        {"id": "stream", "method": "GET", "path": "/api/internal/v1/gateways/events"},
        {"id": "head", "method": "HEAD", "path": "/api/v1/apis/a2"},
    ]);
    let answers = responses(&world, requests).await;
    let brief: Vec<(&str, u64)> =
        answers.iter().map(|one| (one["id"].as_str().unwrap(), one["status"].as_u64().unwrap())).collect();
    let expected = [
        ("a", 200),
        ("missing", 404),
        ("yaml", 200),
        ("gone", 204),
        ("new", 201),
        ("nowhere", 404),
        ("wrong", 405),
        ("dots", 400),
        ("fragment", 400),
        ("stream", 400),
        ("head", 200),
    ];
    assert_eq!(brief, expected, "{answers:#?}");
    assert_eq!(answers[0]["body"]["id"], "a1");
    assert_eq!(
        (&answers[1]["body"]["code"], &answers[1]["body"]["instance"]),
        (&json!("NOT_FOUND"), &json!("/api/v1/apis/missing"))
    );
    assert_eq!(
        (&answers[2]["body"], &answers[2]["headers"]["content-type"]),
        (&json!("a: 1"), &json!("application/yaml"))
    );
    assert_eq!(answers[3].get("body"), None);
    assert_eq!(answers[4]["headers"]["location"], "/api/v1/apis/new");
    assert!(answers[6]["headers"]["allow"].as_str().unwrap().contains("PUT"));
    // A path of gateways has their form of errors.
    assert_eq!(answers[9]["body"]["description"], "a stream cannot be part of another call");
    // The caller's token travels on, and the address of the caller too.
    for call in world.calls() {
        assert!(call.header("authorization").is_some(), "{call:?}");
        assert_eq!(call.header("tollgate-client-address"), Some("127.0.0.1"));
    }
}

#[tokio::test]
async fn an_answer_can_be_referred_to() {
    let world = World::start(service).await;
    let answers = responses(&world, json!([
        {"id": "project", "method": "POST", "path": "/api/v1/projects", "body": {"name": "one {x.body}"}},
        {"id": "apis", "method": "GET", "path": "/api/v1/projects/{project.body.id}/apis", "dependsOn": ["project"]},
        {"id": "api", "method": "GET", "path": "/api/v1/apis/{apis.body.list[0].id}", "dependsOn": ["apis"]},
        {"id": "copy", "method": "POST", "path": "/api/v1/projects", "dependsOn": ["project", "api"],
            "body": {"name": "{project.body.name} of {api.body.id}", "description": "{api.body.id}"}},
        {"id": "nothing", "method": "GET", "path": "/api/v1/apis/{api.body.nope}", "dependsOn": ["api"]},
        {"id": "after", "method": "GET", "path": "/api/v1/apis/x", "dependsOn": ["nothing"]},
    ]))
    .await;
    let statuses: Vec<u64> = answers.iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 200, 200, 201, 424, 424], "{answers:#?}");
    // A value stays one segment, whatever is in it.
    assert_eq!(answers[2]["body"]["id"], "of-p 1");
    assert_eq!(answers[3]["body"]["name"], "one {x.body} of of-p 1");
    assert_eq!(answers[4]["body"]["reason"], "FAILED_DEPENDENCY");
    assert_eq!(world.calls().len(), 4, "what cannot be made is not made");
}

#[tokio::test]
async fn a_batch_that_breaks_a_rule_names_each_field_and_makes_no_call() {
    let world = World::start(service).await;
    let requests = json!([
        {"id": "a", "method": "GET", "path": "/x/{b.body.id}", "dependsOn": ["b", "nobody", "a"]},
        {"id": "b", "method": "TRACE", "path": "x", "headers": {"Authorization": "Bearer x", "api-key": "k", "cookie": "a=b"}},
        {"id": "b", "method": "GET", "path": "/x/{id}"},
        {"id": "é", "method": "POST", "path": "/api/v1/batch", "dependsOn": ["b", "b"], "body": {"x": ["{a.body}"]}},
    ]);
    let answer = ask(&world, requests).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    let mut fields: Vec<String> = answer.json()["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["field"].as_str().unwrap().to_owned())
        .collect();
    fields.sort();
    let expected = [
        "requests[0].dependsOn[0]",
        "requests[0].dependsOn[1]",
        "requests[0].dependsOn[2]",
        "requests[0].path",
        "requests[1].headers.Authorization",
        "requests[1].headers.api-key",
        "requests[1].headers.cookie",
        "requests[1].method",
        "requests[1].path",
        "requests[2].id",
        "requests[2].path",
        "requests[3].body",
        "requests[3].dependsOn[1]",
        "requests[3].id",
        "requests[3].path",
    ];
    assert_eq!(fields, expected);
    let one = json!({"id": "a", "method": "GET", "path": "/x"});
    for (body, reason) in [
        ("{".to_owned(), "MALFORMED_JSON"),
        ("{}".into(), "INVALID_FIELD"),
        (json!({"requests": []}).to_string(), "INVALID_FIELD"),
        (json!({"requests": vec![&one; 21]}).to_string(), "INVALID_FIELD"),
        (json!({"requests": [one], "more": 1}).to_string(), "INVALID_FIELD"),
        (
            json!({"requests": [{"id": "a", "method": "GET", "path": "/x", "url": "/y"}]}).to_string(),
            "INVALID_FIELD",
        ),
    ] {
        let answer = world.post(PATH).user().json(body.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["reason"]),
            (StatusCode::BAD_REQUEST, &json!(reason)),
            "{body}"
        );
    }
    let answer = world.get(PATH).user().send("").await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "OPTIONS, POST"));
    let answer = world.post(PATH).user().send("x").await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let answer = world.post(PATH).user().json(vec![b' '; 1024 * 1024 + 1]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn a_batch_multiplies_no_limit_and_opens_no_door() {
    let world = World::with(Options::default().set("limits.credential_per_minute", 3), service).await;
    let login = |number: usize| json!({"id": number.to_string(), "method": "POST", "path": "/api/v1/auth/login", "body": {}});
    let answers = responses(&world, (0..5).map(login).collect()).await;
    let refused = answers.iter().filter(|one| one["status"] == 429).collect::<Vec<_>>();
    assert_eq!(refused.len(), 2, "{answers:#?}");
    assert!(refused[0]["headers"]["ratelimit"].as_str().unwrap().starts_with("\"credential\""));
    // Without a token, or with a narrow one, each call is refused by itself.
    let get = json!({"requests": [{"id": "a", "method": "GET", "path": "/api/v1/apis/a1"}]}).to_string();
    let answer = world.post(PATH).json(get.clone()).await;
    assert_eq!(answer.json()["responses"][0]["status"], 401, "{answer:?}");
    let narrow = format!("Bearer {}", world.token_with(|claims| claims["scope"] = "projects:read".into()));
    let answer = world.post(PATH).header("authorization", &narrow).json(get).await;
    assert_eq!(answer.json()["responses"][0]["status"], 403, "{answer:?}");
    assert_eq!(world.calls().len(), 3);
}

#[tokio::test]
async fn calls_that_need_nothing_of_each_other_run_at_once_and_all_have_one_end() {
    let (gate, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (held, count) = (gate.clone(), waiting.clone());
    let world = World::start(move |call| {
        // The gate opens once all three are there: calls one after the other would never end.
        if count.fetch_add(1, Ordering::SeqCst) == 2 {
            held.add_permits(3);
        }
        Reply::After(held.clone(), Box::new(service(call)))
    })
    .await;
    let get = |id: &str| json!({"id": id, "method": "GET", "path": format!("/api/v1/apis/{id}")});
    let answers = responses(&world, json!([get("a"), get("b"), get("c")])).await;
    assert!(answers.iter().all(|one| one["status"] == 200), "{answers:#?}");
}

#[tokio::test]
async fn the_whole_answer_is_bounded() {
    let world = World::start(service).await;
    let get = |id: &str| json!({"id": id, "method": "GET", "path": "/api/v1/apis/large"});
    let answers = responses(&world, json!([get("a"), get("b")])).await;
    let statuses: Vec<u64> = answers.iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert!(statuses == [200, 413] || statuses == [413, 200], "{statuses:?}");
    assert!(answers.iter().any(|one| one["body"]["reason"] == "BATCH_TOO_LARGE"));
}

#[tokio::test]
async fn the_cache_is_the_same_for_calls_of_a_batch() {
    let world = World::start(service).await;
    let get = json!([{"id": "a", "method": "GET", "path": "/api/v1/apis/a1"}]);
    let first = responses(&world, get.clone()).await;
    let tag = &first[0]["headers"]["etag"];
    let status = first[0]["headers"]["cache-status"].as_str().unwrap();
    assert!(status.starts_with("edge; fwd=uri-miss; stored"), "{status}");
    let single = world.get("/api/v1/apis/a1").user().send("").await;
    assert!(single.header("cache-status").starts_with("edge; hit"), "{single:?}");
    let known = responses(
        &world,
        json!([
            {"id": "a", "method": "GET", "path": "/api/v1/apis/a1", "headers": {"If-None-Match": tag}},
            {"id": "b", "method": "DELETE", "path": "/api/v1/apis/a1", "dependsOn": []},
        ]),
    )
    .await;
    assert_eq!(known[0]["status"], 304);
    assert!(
        !world.get("/api/v1/apis/a1").user().send("").await.header("cache-status").starts_with("edge; hit")
    );
}

#[tokio::test]
async fn a_batch_can_be_multipart() {
    let world = World::start(service).await;
    let part = |head: &str, request: &str| {
        format!("--b\r\ncontent-type: application/http\r\n{head}\r\n{request}\r\n")
    };
    let body = [
        part(
            "content-id: <project>\r\n",
            "POST /api/v1/projects HTTP/1.1\r\ncontent-type: application/json\r\n\r\n{\"name\":\"n\"}",
        ),
        part(
            "Content-ID: apis\r\ndepends-on: <project>\r\n",
            "GET /api/v1/projects/{project.body.id}/apis HTTP/1.1\r\naccept: */*\r\n\r\n",
        ),
        part("", "GET /nowhere HTTP/1.1\r\n"),
        "--b--\r\n".to_owned(),
    ]
    .concat();
    let send = async |body: String| {
        world.post(PATH).user().header("content-type", "multipart/mixed; boundary=b").send(body).await
    };
    let answer = send(body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let boundary = answer.header("content-type").strip_prefix("multipart/mixed; boundary=").unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let parts: Vec<&str> = text.split(&format!("--{boundary}")).collect();
    assert_eq!((parts.len(), parts[4]), (5, "--\r\n"));
    for (part, id, status, holds) in [
        (parts[1], "project", "201 Created", "\"name\":\"n\""),
        (parts[2], "apis", "200 OK", "\"of-p 1\""),
        (parts[3], "2", "404 Not Found", "UNKNOWN_ROUTE"),
    ] {
        let starts =
            format!("\r\ncontent-type: application/http\r\ncontent-id: <{id}>\r\n\r\nHTTP/1.1 {status}\r\n");
        assert!(part.starts_with(&starts) && part.contains(holds), "{part}");
    }
    for broken in [
        "x",
        "--b\r\n\r\n--b--",
        "--b\r\ncontent-type: text/plain\r\n\r\nx\r\n--b--",
        "--b\r\ncontent-type: application/http\r\n\r\nGET /x\r\n--b--",
    ] {
        let answer = send(broken.into()).await;
        assert_eq!(
            (answer.status, &answer.json()["reason"]),
            (StatusCode::BAD_REQUEST, &json!("MALFORMED_BODY")),
            "{broken}"
        );
    }
    let put = world.ask(Method::PUT, PATH).user().send("").await;
    assert_eq!(put.status, StatusCode::METHOD_NOT_ALLOWED);
}
