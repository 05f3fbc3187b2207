//! The syntax of `google.api.http` that the contract does not use yet, from a contract of the test's own.

use bytes::Bytes;
use http::{HeaderMap, Method, request::Parts};
use http_body_util::BodyExt as _;
use prost::Message as _;
use proto::{
    Contract, MethodPolicy,
    gateway::PutManifestRequest,
    google::api::HttpBody,
    project::{Api, ListApisResponse},
};

use super::{Plan, Route};
use crate::routes::table::{Found, Table, variables};

/// Messages are those of the contract, because only they have codecs; all else is new.
const SERVICE: &str = r#"
    syntax = "proto3";
    package tollgate.example.v1;
    import "google/api/annotations.proto";
    import "google/api/httpbody.proto";
    import "tollgate/gateway/v1/internal.proto";
    import "tollgate/project/v1/api.proto";
    import "tollgate/project/v1/api_model.proto";
    import "tollgate/common/v1/policy.proto";
    service ExampleService {
      rpc Name(tollgate.project.v1.GetApiRequest) returns (tollgate.project.v1.Api) {
        option (tollgate.common.v1.policy) = {access: PUBLIC};
        option (google.api.http) = {
          get: "/v1/{api_id=projects/*/apis/*}"
          additional_bindings {get: "/v1/files/{api_id=**}" response_body: "name"}
          additional_bindings {custom {kind: "*" path: "/v1/any/{api_id}:look"}}
        };
      }
      rpc Upload(google.api.HttpBody) returns (google.api.HttpBody) {
        option (tollgate.common.v1.policy) = {access: PUBLIC};
        option (google.api.http) = {post: "/v1/upload" body: "*"};
      }
      rpc Download(tollgate.project.v1.GetApiRequest) returns (stream google.api.HttpBody) {
        option (tollgate.common.v1.policy) = {access: PUBLIC};
        option (google.api.http) = {get: "/v1/download/{api_id}"};
      }
      rpc Part(tollgate.gateway.v1.PutManifestRequest) returns (tollgate.gateway.v1.PutManifestRequest) {
        option (tollgate.common.v1.policy) = {access: PUBLIC};
        option (google.api.http) = {put: "/v1/part/{gateway_id}" body: "manifest" response_body: "manifest"};
      }
      rpc List(tollgate.project.v1.GetApiRequest) returns (tollgate.project.v1.ListApisResponse) {
        option (tollgate.common.v1.policy) = {access: PUBLIC};
        option (google.api.http) = {
          get: "/v1/list" response_body: "list"
          additional_bindings {get: "/v1/count" response_body: "count"}
        };
      }
    }
"#;

fn contract() -> &'static Contract {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("example.proto"), SERVICE).unwrap();
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");
    let mut compiler = protox::Compiler::new([folder.path(), ours.as_ref()]).unwrap();
    compiler.include_imports(true).open_files(["example.proto"]).unwrap();
    // A route lives as long as the process.
    Box::leak(Box::new(Contract::read(&compiler.encode_file_descriptor_set()).unwrap()))
}

struct Stage {
    contract: &'static Contract,
    table: Table<Route>,
}

impl Stage {
    fn set() -> Self {
        let contract = contract();
        let mut table = Table::default();
        for policy in contract.methods().filter(|method| method.path.starts_with("/tollgate.example.")) {
            crate::routes::insert(&mut table, policy).unwrap();
        }
        Self { contract, table }
    }

    fn policy(&self, name: &str) -> &'static MethodPolicy {
        self.contract.method(&format!("/tollgate.example.v1.ExampleService/{name}")).unwrap()
    }

    /// The message that a request becomes.
    fn message(&self, method: Method, uri: &str, headers: &HeaderMap, body: &'static [u8]) -> Vec<u8> {
        let mut request = http::Request::builder().method(method.clone()).uri(uri).body(()).unwrap();
        request.headers_mut().extend(headers.clone());
        let parts: Parts = request.into_parts().0;
        let Found::Route(route, values) = self.table.find(&method, parts.uri.path()) else {
            panic!("{method} {uri} is no route")
        };
        route.frame(&values, &parts, &Bytes::from_static(body)).unwrap()[5..].to_vec()
    }

    fn api_id(&self, method: Method, uri: &str) -> String {
        let message = self.message(method, uri, &HeaderMap::new(), b"");
        proto::project::GetApiRequest::decode(&message[..]).unwrap().api_id
    }

    /// The body and content type that an answer becomes.
    async fn reply(&self, uri: &str, name: &str, message: Vec<u8>) -> (Bytes, String) {
        let method = if name == "Part" { Method::PUT } else { Method::GET };
        let Found::Route(route, _) = self.table.find(&method, uri) else { panic!("{uri} is no route") };
        let Plan::One(plan) = &route.answer else { panic!() };
        let response = plan.reply(message.into(), self.policy(name)).unwrap();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        (response.into_body().collect().await.unwrap().to_bytes(), content_type)
    }
}

#[test]
fn variables_of_several_segments_keep_encoded_slashes() {
    let stage = Stage::set();
    for (uri, expected) in [
        ("/v1/projects/p/apis/a%20b", "projects/p/apis/a b"),
        ("/v1/projects/p%2Fq/apis/a", "projects/p%2Fq/apis/a"),
        ("/v1/files/a/b/c", "a/b/c"),
        ("/v1/files", ""),
    ] {
        assert_eq!(stage.api_id(Method::GET, uri), expected, "{uri}");
    }
    // Any method, and one segment, which is decoded whole.
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        assert_eq!(stage.api_id(method, "/v1/any/a%2Fb:look"), "a/b");
    }
    assert!(variables("/v1/{a=b/*}").unwrap()[0].multi);
}

#[test]
fn bytes_are_a_request_whole_or_in_part() {
    let stage = Stage::set();
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "text/csv".parse().unwrap())]);
    let expected = HttpBody { content_type: "text/csv".into(), data: b"a,b".to_vec() };
    let message = stage.message(Method::POST, "/v1/upload", &headers, b"a,b");
    assert_eq!(HttpBody::decode(&message[..]).unwrap(), expected);
    let message = stage.message(Method::PUT, "/v1/part/g1", &headers, b"a,b");
    let read = PutManifestRequest::decode(&message[..]).unwrap();
    assert_eq!((read.gateway_id.as_str(), read.manifest), ("g1", Some(expected)));
}

#[test]
fn a_stream_of_bytes_is_one_whatever_the_client_takes() {
    let stage = Stage::set();
    assert_eq!(stage.api_id(Method::GET, "/v1/download/a1"), "a1");
    let Found::Route(route, _) = stage.table.find(&Method::GET, "/v1/download/a1") else { panic!() };
    let form = |request: http::request::Builder| {
        let parts: Parts = request.uri("/v1/download/a1").body(()).unwrap().into_parts().0;
        route.answer.form(&parts, false).map(|_| ()).map_err(|refusal| refusal.kind())
    };
    for accept in ["", "text/csv", "application/json", "text/event-stream"] {
        assert_eq!(form(http::Request::builder().header("accept", accept)), Ok(()), "{accept}");
    }
    assert!(route.is_stream() && form(http::Request::builder().method(Method::HEAD)).is_err());
}

#[tokio::test]
async fn any_field_can_be_the_answer() {
    let stage = Stage::set();
    let json = "application/json".to_owned();
    let api = Api { name: "N".into(), ..Api::default() }.encode_to_vec();
    assert_eq!(stage.reply("/v1/files/x", "Name", api).await, ("\"N\"".into(), json.clone()));
    assert_eq!(stage.reply("/v1/files/x", "Name", vec![]).await, ("\"\"".into(), json.clone()));
    let list = ListApisResponse { count: 1, ..ListApisResponse::default() }.encode_to_vec();
    assert_eq!(stage.reply("/v1/count", "List", list.clone()).await, ("1".into(), json.clone()));
    assert_eq!(stage.reply("/v1/list", "List", list).await, ("[]".into(), json));
    let manifest = HttpBody { content_type: "text/csv".into(), data: b"a,b".to_vec() };
    let part = PutManifestRequest { manifest: Some(manifest), ..PutManifestRequest::default() };
    let reply = stage.reply("/v1/part/g", "Part", part.encode_to_vec()).await;
    assert_eq!(reply, ("a,b".into(), "text/csv".to_owned()));
    let (body, content_type) = stage.reply("/v1/part/g", "Part", vec![]).await;
    assert_eq!((&body[..], content_type.as_str()), (&b""[..], "application/octet-stream"));
}
