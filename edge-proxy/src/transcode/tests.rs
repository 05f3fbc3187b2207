use bytes::Bytes;
use http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use prost::Message as _;
use proto::{
    Contract,
    project::{CreateRevisionRequest, ListApisRequest},
};

use super::Route;

fn route(path: &str, at: usize) -> Route {
    let policy = Contract::get().method(path).unwrap();
    let binding = &policy.http[at];
    Route::plan(policy, binding, &crate::routes::table::variables(&binding.template).unwrap()).unwrap()
}

fn parts(uri: &str) -> Parts {
    let request = http::Request::get(uri).header("content-type", "application/json");
    request.body(()).unwrap().into_parts().0
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

proptest! {
    /// What a client puts into path, query and body is what the service reads.
    #[test]
    fn path_and_query_come_back(project in ".{1,30}", limit in any::<Option<u32>>(), offset in any::<u32>()) {
        let route = route("/tollgate.project.v1.ApiService/ListApis", 0);
        let limit_text = limit.map(|limit| format!("&limit={limit}")).unwrap_or_default();
        let parts = parts(&format!("/x?offset={offset}{limit_text}"));
        let frame = route.frame(&[&encoded(&project)], &parts, &Bytes::new()).unwrap();
        prop_assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        let read = ListApisRequest::decode(&frame[5..]).unwrap();
        prop_assert_eq!(read, ListApisRequest { project_id: project, limit, offset });
    }

    #[test]
    fn the_path_wins_over_the_body(path in ".{1,30}", body in ".{0,30}", description in ".{0,30}") {
        let route = route("/tollgate.project.v1.ApiService/CreateRevision", 0);
        let json = serde_json::json!({"apiId": body, "description": description}).to_string();
        let frame = route.frame(&[&encoded(&path)], &parts("/x"), &json.into()).unwrap();
        let read = CreateRevisionRequest::decode(&frame[5..]).unwrap();
        prop_assert_eq!(read, CreateRevisionRequest { api_id: path, description });
    }

    /// No query makes it panic, and what it accepts can be read.
    #[test]
    fn any_query_is_safe(query in "[ -~&&[^#<>\"`{}\\\\^|\\[\\] ]]{0,60}") {
        let route = route("/tollgate.project.v1.ApiService/ListApis", 1);
        if let Ok(frame) = route.frame(&[], &parts(&format!("/x?{query}")), &Bytes::new()) {
            prop_assert!(ListApisRequest::decode(&frame[5..]).is_ok());
        }
    }
}
