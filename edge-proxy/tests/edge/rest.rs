use http::{Method, StatusCode};
use prost::Message as _;
use proto::{
    auth::{LoginRequest, SignUpRequest, TokenPair, User},
    codec::Codec,
    gateway::{FetchBatchRequest, ListGatewayDeploymentsRequest, PutManifestRequest},
    google::api::HttpBody,
    project::{
        Api, CreateApiRequest, DeployRevisionRequest, DeployRevisionResponse, Deployment, GetApiRequest,
        ImportApiRequest, ListApisRequest, ListApisResponse, Revision,
    },
};
use serde_json::json;

use super::harness::{Call, Reply, World, ok};

/// What a browser asks an authenticator, with every kind of JSON value.
const CEREMONY: &str =
    r#"{"ceremony":"c","options":{"a":null,"b":[1.5,true,"x",{}],"c":{"challenge":"AAEC","d":-7}}}"#;

fn api(call: &Call) -> Reply {
    match call.path.rsplit('/').next().unwrap() {
        "RequestPasswordReset" | "RequestEmailVerification" | "VerifyEmail" => Reply::Message(Vec::new()),
        "Login" | "VerifySecondFactor" => {
            ok(&TokenPair { access_token: "a".into(), expires_in: 600, ..TokenPair::default() })
        }
        "SignUp" => {
            let waits = call.decode::<SignUpRequest>().email == "waits@example.com";
            ok(&User { id: if waits { String::new() } else { "u1".into() }, ..User::default() })
        }
        "StartPasskeyLogin" => {
            let codec = Codec::find("tollgate.auth.v1.PasskeyCeremony").unwrap();
            Reply::Message((codec.from_json)(CEREMONY.as_bytes()).unwrap())
        }
        "CreateApi" | "ImportApi" | "GetApi" | "UpdateApi" => {
            ok(&Api { id: "a 1/é".into(), name: "n".into(), ..Api::default() })
        }
        "ListApis" => ok(&ListApisResponse { count: 0, ..ListApisResponse::default() }),
        "DeleteApi" | "PutManifest" | "Logout" => Reply::Message(Vec::new()),
        "GetDefinition" | "FetchBatch" => {
            ok(&HttpBody { content_type: "application/yaml".into(), data: b"openapi: 3.1.0".to_vec() })
        }
        "CreateRevision" => {
            ok(&Revision { id: "r1".into(), api_id: "a1".into(), number: 1, ..Revision::default() })
        }
        "DeployRevision" => ok(&DeployRevisionResponse {
            deployments: vec![Deployment { id: "d1".into(), ..Deployment::default() }],
        }),
        "UndeployRevision" | "ListGatewayDeployments" => Reply::Message(Vec::new()),
        other => panic!("{other} is not in the script"),
    }
}

#[tokio::test]
async fn json_goes_in_and_out_over_both_versions_of_http() {
    for h1 in [false, true] {
        let world = World::start(api).await;
        let ask = world.post("/api/v1/auth/login").header("authorization", "Bearer whatever");
        let ask = if h1 { ask.h1() } else { ask };
        let answer = ask.json(r#"{"email":"a@b.c","password":"pässword"}"#).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.json()["accessToken"], "a");
        assert_eq!(answer.json()["expiresIn"], 600);
        let call = world.call();
        assert_eq!(call.path, "/tollgate.auth.v1.AuthService/Login");
        assert_eq!(call.decode::<LoginRequest>().password, "pässword");
        // A PUBLIC method gets nobody's token.
        assert_eq!(call.header("authorization"), None);
        assert_eq!(call.header("tollgate-client-request"), Some(answer.header("x-request-id")));
        assert!(call.header("grpc-timeout").is_some());
    }
}

#[tokio::test]
async fn what_is_created_has_a_location() {
    let world = World::start(api).await;
    let answer = world.post("/api/v1/apis").user().json(r#"{"name":"n"}"#).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    // The id is made fit for a path.
    assert_eq!(answer.header("location"), "/api/v1/apis/a%201%2F%C3%A9");
    let answer = world.post("/api/v1/apis/a1/revisions").user().json("{}").await;
    assert_eq!(answer.header("location"), "/api/v1/apis/a1/revisions/r1");
    // An alias answers the same.
    let answer = world.post("/api/auth/signup").json(r#"{"email":"e"}"#).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::CREATED, "/api/v1/auth/profile"));
}

#[tokio::test]
async fn what_comes_later_is_accepted() {
    let world = World::start(api).await;
    for path in ["/api/v1/auth/signup", "/api/auth/signup"] {
        let answer = world.post(path).json(r#"{"email":"waits@example.com"}"#).await;
        assert_eq!((answer.status, answer.header("location")), (StatusCode::ACCEPTED, ""), "{answer:?}");
        assert_eq!(answer.json()["id"], "");
    }
    for path in ["/api/v1/auth/password/forgot", "/api/v1/auth/email/verification"] {
        let answer = world.post(path).json(r#"{"email":"a@example.com"}"#).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::ACCEPTED, 0), "{answer:?}");
    }
    let answer = world.post("/api/v1/auth/email/verify").json(r#"{"token":"t"}"#).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0), "{answer:?}");
}

#[tokio::test]
async fn free_json_passes_in_both_directions() {
    let world = World::start(api).await;
    let answer = world.post("/api/v1/auth/passkeys/login/start").json("{}").await;
    let expected: serde_json::Value = serde_json::from_str(CEREMONY).unwrap();
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, expected.clone()));
    let body = json!({"challenge": "c", "passkey": expected["options"]}).to_string();
    world.post("/api/v1/auth/login/second-factor").json(body.clone()).await;
    let codec = Codec::find("tollgate.auth.v1.VerifySecondFactorRequest").unwrap();
    let seen = (codec.to_json)(world.calls()[1].message.clone()).unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
    assert_eq!(seen["passkey"], expected["options"]);
    for bad in [r#"{"passkey":[]}"#, r#"{"passkey":"x"}"#, r#"{"totpCode":"1","recoveryCode":"2"}"#] {
        let answer = world.post("/api/v1/auth/login/second-factor").json(bad).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}: {answer:?}");
    }
    let deep = format!("{{\"passkey\":{}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let answer = world.post("/api/v1/auth/login/second-factor").json(deep).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
}

#[tokio::test]
async fn the_path_wins_over_the_body() {
    let world = World::start(api).await;
    let path = "/api/v1/projects/p%20%C3%A91/apis";
    let answer = world.post(path).user().json(r#"{"name":"n","projectId":"other"}"#).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let request: CreateApiRequest = world.call().decode();
    assert_eq!(request.project_id, "p é1");
    assert_eq!(request.api.unwrap().project_id, "other");
    assert!(world.call().header("authorization").unwrap().starts_with("Bearer "));

    let answer =
        world.post("/api/v1/apis/a1/revisions").user().json(r#"{"apiId":"b2","description":"d"}"#).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let request: proto::project::CreateRevisionRequest = world.calls()[1].decode();
    assert_eq!((request.api_id.as_str(), request.description.as_str()), ("a1", "d"));
}

#[tokio::test]
async fn queries_reach_their_fields() {
    let world = World::start(api).await;
    let answer = world.get("/api/v1/projects/p1/apis?limit=0&offset=7").user().send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let request: ListApisRequest = world.call().decode();
    assert_eq!(request, ListApisRequest { project_id: "p1".into(), limit: Some(0), offset: 7 });
    // Proto names too, and decoded.
    world.get("/api/v1/apis?project_id=a%26b+c").user().send("").await;
    assert_eq!(world.calls()[1].decode::<ListApisRequest>().project_id, "a&b c");
    // Defaults are shown.
    assert_eq!(answer.json()["list"], json!([]));

    let since = "/api/internal/v1/deployments?since=2026-08-22T10:00:00.123Z";
    let answer = world.get(since).header("api-key", "tggw_x").send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let call = world.calls().remove(2);
    let request: ListGatewayDeploymentsRequest = call.decode();
    assert_eq!(request.since.unwrap().to_rfc3339().unwrap(), "2026-08-22T10:00:00.123Z");
    assert_eq!(call.header("api-key"), Some("tggw_x"));
}

#[tokio::test]
async fn a_field_can_be_the_body_in_both_directions() {
    let world = World::start(api).await;
    let path = "/api/v1/apis/a1/deploy-revision?revisionId=r1";
    let answer = world.post(path).user().json(r#"[{"gatewayId":"g1"},{"gatewayId":"g2"}]"#).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.json()[0]["id"], "d1");
    let request: DeployRevisionRequest = world.call().decode();
    assert_eq!((request.api_id.as_str(), request.revision_id.as_str()), ("a1", "r1"));
    assert_eq!(request.deployments[1].gateway_id, "g2");
    // A field that the answer leaves out is empty, and not missing.
    let answer = world.post("/api/v1/apis/a1/undeploy-revision").user().json("[]").await;
    assert_eq!(answer.body, "[]");
}

#[tokio::test]
async fn bodies_that_are_no_json_pass_as_they_are() {
    let world = World::start(api).await;
    let document = vec![0xff, 0, b'{'];
    let ask =
        world.post("/api/v1/apis/import?projectId=p1&name=n").user().header("content-type", "text/yaml");
    let answer = ask.send(document.clone()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let request: ImportApiRequest = world.call().decode();
    let expected = HttpBody { content_type: "text/yaml".into(), data: document };
    assert_eq!((request.definition, request.project_id.as_str()), (Some(expected), "p1"));

    world.post("/api/v1/apis/import").user().send("x").await;
    let request: ImportApiRequest = world.calls()[1].decode();
    assert_eq!(request.definition.unwrap().content_type, "application/octet-stream");

    let answer = world.get("/api/v1/apis/a1/definition").user().send("").await;
    assert_eq!(
        (answer.header("content-type"), &answer.body[..]),
        ("application/yaml", &b"openapi: 3.1.0"[..])
    );

    let ask = world.post("/api/internal/v1/gateways/g1/manifest").header("api-key", "k");
    let answer = ask.json(r#"{"version":"1","x":[1]}"#).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let request: PutManifestRequest = world.calls()[3].decode();
    assert_eq!(request.gateway_id, "g1");
    assert_eq!(request.manifest.unwrap().data, br#"{"version":"1","x":[1]}"#);

    let ask = world.post("/api/internal/v1/deployments/fetch-batch").header("api-key", "k");
    let answer = ask.json(r#"{"deploymentIds":["d1"]}"#).await;
    assert_eq!(answer.body, "openapi: 3.1.0");
    assert_eq!(world.calls()[4].decode::<FetchBatchRequest>().deployment_ids, ["d1"]);
}

#[tokio::test]
async fn nothing_is_204_and_an_empty_body_is_an_empty_object() {
    let world = World::start(api).await;
    let answer = world.ask(Method::DELETE, "/api/v1/apis/a1").user().send("").await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    let answer = world.post("/api/v1/auth/logout").user().send("").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    // JSON has more than one name.
    let ask =
        world.post("/api/v1/auth/login").header("content-type", "application/vnd.x+json; charset=utf-8");
    assert_eq!(ask.send("{}").await.status, StatusCode::OK);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let world = World::start(api).await;
    for h1 in [false, true] {
        let ask = world.ask(Method::HEAD, "/api/v1/apis/a1").user();
        let answer = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{answer:?}");
        let get = world.get("/api/v1/apis/a1").user().send("").await;
        assert_eq!(answer.header("content-length"), get.body.len().to_string());
        assert_eq!(world.calls().last().unwrap().decode::<GetApiRequest>().api_id, "a1");
        let ask = world.ask(Method::HEAD, "/nowhere");
        let answer = if h1 { ask.h1() } else { ask }.send("").await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_FOUND, 0), "{answer:?}");
    }
}

#[tokio::test]
async fn large_json_is_compressed_for_those_who_take_it() {
    let big = Api { id: "a1".into(), description: "x".repeat(20_000), ..Api::default() };
    let world = World::start(move |_| ok(&big)).await;
    for (accepted, encoding) in [("gzip", "gzip"), ("gzip, br", "br"), ("identity", "")] {
        let answer = world.get("/api/v1/apis/a1").user().header("accept-encoding", accepted).send("").await;
        assert_eq!(answer.header("content-encoding"), encoding, "{accepted}");
        assert_eq!(answer.body.len() < 2_000, !encoding.is_empty(), "{accepted}: {}", answer.body.len());
        let mut vary = answer.headers.get_all("vary").iter();
        assert!(vary.any(|value| value == "accept-encoding"), "{answer:?}");
    }
    let request = GetApiRequest { api_id: "a1".into() }.encode_to_vec();
    let headers = [("authorization", &*world.bearer()), ("accept-encoding", "gzip")];
    let answer = world.grpc("/tollgate.project.v1.ApiService/GetApi", &headers, &[&request]).await;
    assert_eq!((answer.header("content-encoding"), answer.grpc_status()), ("", "0"));
}

#[tokio::test]
async fn a_service_that_has_several_forms_hears_which_is_asked_for() {
    let world = World::start(|call| match call.header("tollgate-client-accept") {
        Some("image/png") => {
            let message = "`Accept` allows none of the forms that there are";
            Reply::Fail(
                service_kit::Error::new(service_kit::Kind::InvalidArgument, "NOT_ACCEPTABLE", message).into(),
            )
        }
        _ => ok(&HttpBody { content_type: "application/yaml".into(), data: b"a: 1".to_vec() }),
    })
    .await;
    let ask = || world.get("/api/internal/v1/apis/a1").header("api-key", "k");
    let answer = ask().header("accept", "text/yaml").header("accept", "*/*;q=0.1").send("").await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/yaml"));
    // Only the edge says what a client takes.
    ask().header("tollgate-client-accept", "image/png").send("").await;
    let calls = world.calls();
    assert_eq!(calls[0].header("tollgate-client-accept"), Some("text/yaml, */*;q=0.1"));
    assert_eq!((calls[1].header("tollgate-client-accept"), calls[1].header("accept")), (None, None));
    let answer = ask().header("accept", "image/png").send("").await;
    assert_eq!(answer.status, StatusCode::NOT_ACCEPTABLE);
    let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&error["code"], &error["message"]), (&406.into(), &"Not Acceptable".into()));
    // Where there is one form only, nobody asks.
    world
        .get("/api/internal/v1/deployments")
        .header("api-key", "k")
        .header("accept", "image/png")
        .send("")
        .await;
    assert_eq!(world.calls()[3].header("tollgate-client-accept"), None);
}
