//! Who services and limits take a caller for, whatever it says about itself.

use bytes::Bytes;
use http::StatusCode;
use proto::{auth::TokenPair, project::Api};
use service_kit::Clock;

use super::{
    client::{Answer, Ask, frame},
    harness::{Call, Options, Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";

fn api(call: &Call) -> Reply {
    if call.path == GET_API { ok(&Api::default()) } else { ok(&TokenPair::default()) }
}

/// What a caller may try to say about itself.
const FORGED: [(&str, &str); 6] = [
    ("x-forwarded-for", "198.51.100.1, 192.0.2.7"),
    ("tollgate-client-address", "203.0.113.1"),
    ("tollgate-client-request", "forged"),
    ("tollgate-client-other", "forged"),
    ("tollgate_client_address", "203.0.113.2"),
    ("x-real-ip", "203.0.113.3"),
];

const DEVICE: &str = "probe/1 (x)";

#[tokio::test]
async fn services_hear_of_the_client_over_every_protocol() {
    for (trusted, address) in [("[]", "127.0.0.1"), ("[\"127.0.0.0/8\"]", "192.0.2.7")] {
        let world = World::with(Options::default().set("trusted_proxies", trusted), api).await;
        let bearer = world.bearer();
        let native = [&[("authorization", bearer.as_str()), ("user-agent", DEVICE)][..], &FORGED].concat();
        let forging = |ask| FORGED.iter().fold(ask, |ask: Ask<'_>, (name, value)| ask.header(name, value));
        let rest = forging(world.get("/api/v1/apis/a1").user());
        let web = forging(world.post(GET_API)).header("authorization", &bearer);
        let web = web.header("content-type", "application/grpc-web+proto").header("user-agent", DEVICE);
        let answers = [
            rest.header("user-agent", DEVICE).send("").await,
            world.grpc(GET_API, &native, &[b""]).await,
            // What `Connection` names is not passed on: that must not unsay what the edge says.
            web.header("connection", "tollgate-client-address").h1().send(frame(b"")).await,
        ];
        let calls = world.calls();
        assert_eq!(calls.len(), answers.len(), "{answers:?}");
        for (call, answer) in calls.iter().zip(&answers) {
            assert_eq!(call.header("tollgate-client-address"), Some(address), "{call:?}");
            assert_eq!(call.header("tollgate-client-device"), Some(DEVICE));
            assert_eq!(call.header("tollgate-client-request"), Some(answer.header("x-request-id")));
            for name in
                FORGED.iter().map(|(name, _)| *name).filter(|name| !name.starts_with("tollgate-client-"))
            {
                assert_eq!(call.header(name), None, "{name}");
            }
            assert_eq!(call.header("tollgate-client-other"), None);
            assert_eq!(call.headers.get_all("tollgate-client-address").iter().count(), 1);
        }
    }
}

#[tokio::test]
async fn strange_user_agents_do_no_harm() {
    let world = World::start(api).await;
    let long = "x".repeat(8_000);
    let answer = world.get("/api/v1/apis/a1").user().header("user-agent", &long).send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.calls()[0].header("tollgate-client-device"), Some(&long[..256]));
    let answer = world.get("/api/v1/apis/a2").user().header("user-agent", "\u{e9}t\u{e9}/1").send("").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.calls()[1].header("tollgate-client-device"), Some("t/1"));
    world.get("/api/v1/apis/a3").user().send("").await;
    assert_eq!(world.calls()[2].header("tollgate-client-device"), Some(""));
}

/// How many logins get through, each with other lies about its address.
async fn logins_until_refused(world: &World, proxied: Option<&str>) -> usize {
    for attempt in 0..50_u8 {
        let [a, b] = service_kit::opaque::random::<2>();
        let lie = format!("{a}.{b}.{attempt}.1");
        let chain = proxied.map_or(lie.clone(), |client| format!("{lie}, {client}"));
        let ask = world
            .post("/api/v1/auth/login")
            .header("x-forwarded-for", &chain)
            .header("x-real-ip", &lie)
            .header("forwarded", &format!("for={lie}"))
            .header("true-client-ip", &lie)
            .header("cf-connecting-ip", &lie)
            .header("tollgate-client-address", &lie);
        let ask = if attempt % 2 == 0 { ask } else { ask.h1() };
        match ask.json("{}").await.status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => return usize::from(attempt),
            other => panic!("{other}"),
        }
    }
    panic!("never refused")
}

#[tokio::test]
async fn no_header_moves_the_limit_of_an_address() {
    let clock = Clock::fixed(Clock::system().now_ms());
    let options =
        || Options { clock: clock.clone(), ..Options::default().set("limits.credential_per_minute", 4) };
    let world = World::with(options(), api).await;
    assert_eq!(logins_until_refused(&world, None).await, 4);

    // Behind a proxy each client has a limit of its own, and only what the proxy saw counts.
    let world = World::with(options().set("trusted_proxies", "[\"127.0.0.1\"]"), api).await;
    assert_eq!(logins_until_refused(&world, Some("192.0.2.7")).await, 4);
    assert_eq!(logins_until_refused(&world, Some("192.0.2.7")).await, 0);
    assert_eq!(logins_until_refused(&world, Some("192.0.2.8")).await, 4);
    clock.advance_ms(15_000);
    assert_eq!(logins_until_refused(&world, Some("192.0.2.7")).await, 1);
}

/// Whether `Retry-After` is this many seconds, or up to a tenth more.
pub(crate) fn is_after(refused: &Answer, seconds: i64) -> bool {
    let after: i64 = refused.header("retry-after").parse().unwrap();
    (seconds..=seconds + (seconds + 9) / 10).contains(&after)
}

#[tokio::test]
async fn each_class_of_calls_has_its_own_limit() {
    let clock = Clock::fixed(Clock::system().now_ms());
    let options = Options { clock: clock.clone(), ..Options::default() };
    let options = options
        .set("limits.credential_per_minute", 2)
        .set("limits.sign_up_per_hour", 3)
        .set("limits.mail_per_hour", 4)
        .set("limits.refresh_per_minute", 5);
    let world = World::with(options, |_| Reply::Message(Vec::new())).await;
    for (path, method, name, quota, window) in [
        ("login", "/tollgate.auth.v1.AuthService/Login", "credential", 2, 60),
        ("signup", "/tollgate.auth.v1.AuthService/SignUp", "sign-up", 3, 3_600),
        ("password/forgot", "/tollgate.auth.v1.AuthService/RequestPasswordReset", "mail", 4, 3_600),
        ("refresh", "/tollgate.auth.v1.AuthService/Refresh", "refresh", 5, 60),
    ] {
        let ask = || world.post(&format!("/api/v1/auth/{path}")).json(Bytes::from_static(b"{}"));
        for _ in 0..quota {
            assert!(ask().await.status.is_success(), "{path}");
        }
        let refused = ask().await;
        let after = window / quota;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}: {refused:?}");
        assert!(is_after(&refused, after), "{path}: {refused:?}");
        assert_eq!(refused.json()["violated-policies"], serde_json::json!([name]));
        assert!(refused.json()["type"].as_str().unwrap().ends_with("#quota-exceeded"));
        assert_eq!(refused.policies().0, format!("\"{name}\";q={quota};w={window}"));
        assert_eq!(refused.header("ratelimit"), format!("\"{name}\";r=0;t={after}"));
        // The same limit over gRPC.
        let refused = world.grpc(method, &[], &[b""]).await;
        assert!(refused.grpc_status() == "8" && is_after(&refused, after), "{refused:?}");
        clock.advance_ms(after * 1_000);
        assert!(ask().await.status.is_success(), "{path}");
        assert_eq!(ask().await.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
}
