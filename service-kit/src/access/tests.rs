use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use proto::{Access, Contract, MethodPolicy, Proof};
use serde_json::{Value, json};
use tonic::Status;

use super::{RECENT, authenticate, unread};
use crate::{
    Clock, Kind,
    testing::Signer,
    token::{AMR_PERSONAL_TOKEN, AMR_SERVICE_KEY, Verifier},
};

const NOW: i64 = 1_766_000_000;

/// A wall, and who makes tokens for it.
struct Wall {
    signer: Signer,
    verifier: Verifier,
    policy: MethodPolicy,
}

impl Wall {
    fn new(permission: &str, proof: Proof) -> Self {
        let signer = Signer::new();
        let clock = Clock::fixed(NOW * 1_000);
        let verifier = Verifier::new(Signer::config(), Arc::new(signer.clone()), clock);
        let method = Contract::get().method("/tollgate.auth.v1.AuthService/GetProfile").unwrap();
        let policy =
            MethodPolicy { access: Access::User, permission: permission.to_owned(), proof, ..method.clone() };
        Self { signer, verifier, policy }
    }

    fn token(&self, changes: &[(&str, Value)]) -> String {
        let mut claims = Signer::claims("u", "*");
        for (name, value) in [("iat", json!(NOW)), ("exp", json!(NOW + 600)), ("auth_time", json!(NOW))] {
            claims[name] = value;
        }
        for (name, value) in changes {
            claims[*name] = value.clone();
        }
        self.signer.sign(&Signer::header(), &claims)
    }

    /// What a call with these `authorization` headers comes to: `ok`, or kind and reason.
    async fn with_headers(&self, values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        match authenticate(&self.policy, &headers, &self.verifier).await {
            Ok(context) => {
                assert_eq!(context.is_some(), self.policy.access == Access::User);
                "ok".to_owned()
            }
            Err(error) => format!("{} {}", error.kind().http_status().as_u16(), error.reason()),
        }
    }

    async fn call(&self, changes: &[(&str, Value)]) -> String {
        self.with_headers(&[&format!("Bearer {}", self.token(changes))]).await
    }
}

#[tokio::test]
async fn scopes_only_narrow() {
    let cases = [
        ("projects:read", "*", true),
        ("projects:read", "*:read", true),
        ("projects:read", "projects:read", true),
        ("projects:read", "apis:read projects:read", true),
        ("projects:read", "projects:write", false),
        ("projects:read", "projects:rea", false),
        ("projects:read", "projects:reader", false),
        ("projects:read", "projects", false),
        ("projects:read", "projects:*", false),
        ("projects:read", "Projects:Read", false),
        ("projects:read", "projects:read,apis:read", false),
        ("projects:read", "", false),
        ("projects:read", "*:write", false),
        ("projects:write", "*", true),
        ("projects:write", "*:read", false),
        ("projects:write", "*:write", false),
        ("projects:write", "* ", true),
        ("projects:spread", "*:read", false),
        ("", "", true),
        ("", "nothing", true),
    ];
    for (permission, scope, may) in cases {
        let wall = Wall::new(permission, Proof::Any);
        let expected = if may { "ok" } else { "403 INSUFFICIENT_SCOPE" };
        assert_eq!(wall.call(&[("scope", json!(scope))]).await, expected, "{permission} by {scope:?}");
    }
}

#[tokio::test]
async fn programs_do_not_pass_for_people() {
    for method in [AMR_PERSONAL_TOKEN, AMR_SERVICE_KEY] {
        let amr = [("amr", json!([method]))];
        assert_eq!(Wall::new("", Proof::Any).call(&amr).await, "ok");
        for proof in [Proof::Interactive, Proof::Recent] {
            let wall = Wall::new("", proof);
            assert_eq!(wall.call(&amr).await, "403 INTERACTIVE_LOGIN_REQUIRED", "{method} {proof:?}");
            // Whatever else stands beside it.
            let both = [("amr", json!(["pwd", "otp", method]))];
            assert_eq!(wall.call(&both).await, "403 INTERACTIVE_LOGIN_REQUIRED", "{method} {proof:?}");
        }
    }
    for methods in [json!(["pwd"]), json!(["pwd", "otp"]), json!(["hwk"]), json!(["fed"])] {
        assert_eq!(Wall::new("", Proof::Interactive).call(&[("amr", methods)]).await, "ok");
    }
}

#[tokio::test]
async fn a_proof_is_recent_for_ten_minutes() {
    for (age, recent) in [(0, true), (RECENT, true), (RECENT + 1, false), (86_400, false)] {
        let auth_time = [("auth_time", json!(NOW - age))];
        let expected = if recent { "ok" } else { "401 STEP_UP_REQUIRED" };
        assert_eq!(Wall::new("", Proof::Recent).call(&auth_time).await, expected, "{age}");
        assert_eq!(Wall::new("", Proof::Interactive).call(&auth_time).await, "ok", "{age}");
    }
    // Nobody proves anything in the future.
    let later = [("auth_time", json!(NOW + 3_600))];
    assert_eq!(Wall::new("", Proof::Recent).call(&later).await, "401 INVALID_TOKEN");
    // What a token may not do at all it is told before it is sent for a proof.
    let (old, scope) = (("auth_time", json!(NOW - 3_600)), ("scope", json!("apis:read")));
    assert_eq!(Wall::new("keys:write", Proof::Recent).call(&[old, scope]).await, "403 INSUFFICIENT_SCOPE");
}

#[tokio::test]
async fn a_token_stands_in_one_place() {
    let wall = Wall::new("", Proof::Any);
    let token = wall.token(&[]);
    let bearer = format!("Bearer {token}");
    assert_eq!(wall.with_headers(&[&bearer]).await, "ok");
    assert_eq!(wall.with_headers(&[&format!("bearer {token}")]).await, "ok");
    for headers in [
        &[][..],
        &[""],
        &["Bearer"],
        &[&token],
        &[&format!("Basic {token}")],
        &[&format!("DPoP {token}")],
        &[&bearer, &bearer],
        &["Basic eDp5", &bearer],
        &[&format!("{bearer}, {bearer}")],
        &["Bearer "],
    ] {
        let verdict = wall.with_headers(headers).await;
        assert!(verdict.starts_with("401 "), "{headers:?}: {verdict}");
    }
    let open = Wall { policy: MethodPolicy { access: Access::Public, ..wall.policy.clone() }, ..wall };
    assert_eq!(open.with_headers(&["Bearer garbage"]).await, "ok");
}

#[test]
fn unreadable_messages_are_the_callers_fault() {
    let text = "failed to decode Protobuf message: Api.backend_services: BackendService.name: \
        invalid string value: data is not UTF-8 encoded";
    let error = unread(&Status::internal(text).into_http()).unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::InvalidArgument, "MALFORMED_MESSAGE"));
    let [violation] = error.violations() else { panic!("{error:?}") };
    assert_eq!(violation.field, "backendServices.name");
    assert_eq!(violation.message, "cannot be read: invalid string value: data is not UTF-8 encoded");
    let varint = unread(&Status::internal("failed to decode Protobuf message: invalid varint").into_http());
    assert!(varint.unwrap().violations().is_empty());
}

#[test]
fn what_is_our_fault_stays_so() {
    for status in [
        Status::internal("something went wrong on our side"),
        Status::unavailable("failed to decode Protobuf message"),
        Status::from(crate::Error::internal(anyhow::anyhow!("failed to decode Protobuf message"))),
    ] {
        assert!(unread(&status.into_http()).is_none());
    }
}
