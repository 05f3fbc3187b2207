//! Cookies of browsers: which pass, and which pages may send them.

use http::{HeaderValue, Method, StatusCode, header};
use proto::{auth::TokenPair, project::Api};
use service_kit::Error;
use tonic::Status;

use super::{
    client::{Answer, frame},
    harness::{Call, Options, Reply, World, ok},
};

const APP: &str = "https://app.example.com";
/// The harness's clients call it so.
const OWN: &str = "https://localhost";
const OURS: &str = "__Host-tollgate-refresh=r";
const REFRESH: &str = "/api/v1/auth/refresh";

/// Sets cookies whatever is asked; refuses an empty refresh token.
fn service(call: &Call) -> Reply {
    let set = ["__Host-tollgate-refresh=new; Secure", "__Host-tollgate-device=d; Secure"];
    if call.path.ends_with("/GetApi") {
        return Reply::Cookies(set.to_vec(), Box::new(ok(&Api::default())));
    }
    if call.path.ends_with("/Login") {
        let refused: Status = Error::unauthenticated("no").into();
        return Reply::Cookies(set.to_vec(), Box::new(Reply::Fail(refused)));
    }
    Reply::Cookies(
        set.to_vec(),
        Box::new(ok(&TokenPair { access_token: "a".into(), ..TokenPair::default() })),
    )
}

async fn world() -> World {
    let options = Options::default().set("cors.allowed_origins", format!("[\"{APP}\"]"));
    World::with(options, service).await
}

fn set_cookies(answer: &Answer) -> Vec<&HeaderValue> {
    answer.headers.get_all(header::SET_COOKIE).iter().collect()
}

#[tokio::test]
async fn only_our_cookies_reach_only_the_methods_that_want_them() {
    let world = world().await;
    let ask = world.post(REFRESH).header("origin", OWN).header("cookie", "theirs=1; other=__Host-tollgate-x");
    let answer = ask
        .header("cookie", &format!("a=b; {OURS}"))
        .header("cookie", "__Host-tollgate-device=d;c")
        .json("{}")
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.call().header("cookie"), Some("__Host-tollgate-refresh=r; __Host-tollgate-device=d"));
    assert_eq!(
        set_cookies(&answer),
        ["__Host-tollgate-refresh=new; Secure", "__Host-tollgate-device=d; Secure"]
    );
    // Also of an answer that is an error.
    let answer = world.post("/api/v1/auth/login").json("{}").await;
    assert_eq!((answer.status, set_cookies(&answer).len()), (StatusCode::UNAUTHORIZED, 2), "{answer:?}");
    assert_eq!(world.calls()[1].header("cookie"), None);

    // A method without the policy.
    let answer = world.get("/api/v1/apis/a1").user().header("cookie", OURS).send("").await;
    assert_eq!((answer.status, set_cookies(&answer).len()), (StatusCode::OK, 0), "{answer:?}");
    // Other protocols.
    let method = "/tollgate.auth.v1.AuthService/Refresh";
    let headers = [("cookie", OURS), ("origin", OWN)];
    let answer = world.grpc(method, &headers, &[b""]).await;
    assert_eq!((answer.grpc_status(), set_cookies(&answer).len()), ("0", 0), "{answer:?}");
    assert!(!answer.trailers.contains_key(header::SET_COOKIE));
    let ask = world.post(method).header("content-type", "application/grpc-web+proto");
    let answer = ask.header("cookie", OURS).header("origin", OWN).h1().send(frame(b"")).await;
    assert_eq!((answer.status, set_cookies(&answer).len()), (StatusCode::OK, 0), "{answer:?}");
    assert!(!String::from_utf8_lossy(&answer.body).contains("__Host-"), "{answer:?}");
    let answer = world.grpc("/tollgate.auth.v1.AuthService/Login", &headers, &[b""]).await;
    assert_eq!((answer.grpc_status(), set_cookies(&answer).len()), ("16", 0), "{answer:?}");
    for call in &world.calls()[2..] {
        assert_eq!(call.header("cookie"), None, "{call:?}");
    }
    assert_eq!(world.calls().len(), 6);
}

#[tokio::test]
async fn pages_of_ours_and_allowed_ones_may_send_them() {
    let world = world().await;
    for (origin, site) in [
        (OWN, None),
        (OWN, Some("same-origin")),
        (APP, None),
        (APP, Some("same-site")),
        (APP, Some("cross-site")),
    ] {
        for h1 in [false, true] {
            let ask = world.post(REFRESH).header("origin", origin).header("cookie", OURS);
            let ask = site.into_iter().fold(ask, |ask, site| ask.header("sec-fetch-site", site));
            let answer = if h1 { ask.h1() } else { ask }.json("{}").await;
            assert_eq!(answer.status, StatusCode::OK, "{origin} {site:?}: {answer:?}");
            let (allowed, credentials) = if origin == APP { (APP, "true") } else { ("", "") };
            assert_eq!(answer.header("access-control-allow-origin"), allowed);
            assert_eq!(answer.header("access-control-allow-credentials"), credentials);
        }
    }
    // Programs have no pages: without a cookie of ours nothing is asked.
    for ask in [
        world.post(REFRESH),
        world.post(REFRESH).header("origin", "https://evil.example").header("cookie", "a=b"),
    ] {
        assert_eq!(ask.json("{}").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn other_pages_may_not() {
    let world = world().await;
    let refused = async |origin: Option<&str>, site: Option<&str>, h1: bool| {
        let ask = world.post(REFRESH).header("cookie", OURS);
        let ask = origin.into_iter().fold(ask, |ask, origin| ask.header("origin", origin));
        let ask = site.into_iter().fold(ask, |ask, site| ask.header("sec-fetch-site", site));
        let answer = if h1 { ask.h1() } else { ask }.json("{}").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{origin:?} {site:?}: {answer:?}");
        assert_eq!(answer.json()["reason"], "CROSS_SITE");
        assert!(set_cookies(&answer).is_empty());
    };
    for h1 in [false, true] {
        for origin in [
            "https://evil.example",
            "null",
            "",
            "https://app.example.com.evil.example",
            "https://localhost.evil.example",
            "https://evil-localhost",
            "http://app.example.com",
            "http://localhost",
            "https://localhost:1",
        ] {
            refused(Some(origin), None, h1).await;
            refused(Some(origin), Some("same-origin"), h1).await;
        }
        refused(None, None, h1).await;
        refused(None, Some("same-origin"), h1).await;
        refused(Some(OWN), Some("cross-site"), h1).await;
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn what_a_form_can_send_is_no_request() {
    let world = world().await;
    for path in [REFRESH, "/api/v1/auth/login", "/api/v1/auth/login/second-factor"] {
        for kind in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "multipart/form-data; boundary=x",
            "text/json",
        ] {
            let form = world.post(path).header("content-type", kind).header("sec-fetch-site", "cross-site");
            let answer = form.header("origin", "https://evil.example").send(r#"{"refreshToken":"r"}"#).await;
            assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} {kind}: {answer:?}");
            // Nor from a page of ours: JSON is JSON.
            let form =
                world.post(path).header("content-type", kind).header("origin", OWN).header("cookie", OURS);
            assert_eq!(form.send("{}").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} {kind}");
        }
        for method in [Method::GET, Method::HEAD] {
            let answer = world.ask(method, path).header("cookie", OURS).send("").await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}: {answer:?}");
        }
    }
    assert!(world.calls().is_empty());
}
