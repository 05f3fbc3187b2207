//! The refusal test: every RPC of the contract, called by everybody who must not.
//!
//! It walks the descriptors and builds requests from them, so a new RPC cannot be forgotten.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "access/belongings.rs"]
mod belongings;
#[path = "access/call.rs"]
mod call;
#[path = "access/requests.rs"]
mod requests;
mod support;

use bytes::Bytes;
use proto::{Access, Contract, MethodPolicy, Proof};
use service_kit::{
    Error,
    client::{Upstream, UpstreamConfig},
    tls::DevCa,
};
use suite::grpc;
use tonic::{Code, Status, transport::Channel};

use crate::{
    belongings::{assert_all_there, ids_of, personal_token, service_account},
    call::{Credentials, call},
    requests::{Ids, names_something, request},
    support::{Provider, TestSuite, wait_for},
};

/// The services that have a port of their own, by the package of their methods.
const PACKAGES: [(&str, &str); 3] = [
    ("tollgate.auth.v1", "auth-service"),
    ("tollgate.project.v1", "project-service"),
    ("tollgate.gateway.v1", "gateway-service"),
];

/// All that nobody needs to log in for.
const PUBLIC: [&str; 17] = [
    "/tollgate.auth.v1.AuthService/Login",
    "/tollgate.auth.v1.AuthService/Refresh",
    "/tollgate.auth.v1.AuthService/RequestEmailVerification",
    "/tollgate.auth.v1.AuthService/RequestPasswordReset",
    "/tollgate.auth.v1.AuthService/ResetPassword",
    "/tollgate.auth.v1.AuthService/SignUp",
    "/tollgate.auth.v1.AuthService/VerifyEmail",
    "/tollgate.auth.v1.DeviceService/ExchangeDeviceCode",
    "/tollgate.auth.v1.DeviceService/StartDeviceAuthorization",
    "/tollgate.auth.v1.KeyService/GetJwks",
    "/tollgate.auth.v1.ProviderService/FinishProviderLogin",
    "/tollgate.auth.v1.ProviderService/ListProviders",
    "/tollgate.auth.v1.ProviderService/StartProviderLogin",
    "/tollgate.auth.v1.SecondFactorService/FinishPasskeyLogin",
    "/tollgate.auth.v1.SecondFactorService/StartPasskeyLogin",
    "/tollgate.auth.v1.SecondFactorService/StartPasskeyVerification",
    "/tollgate.auth.v1.SecondFactorService/VerifySecondFactor",
];

fn methods(access: Access) -> Vec<&'static MethodPolicy> {
    let mut found: Vec<_> = Contract::get().methods().filter(|method| method.access == access).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no method for {access:?}");
    found
}

/// Calls every method and says where the answer is not the wanted one.
async fn all_answer(
    channel: &Channel,
    access: Access,
    credentials: &Credentials<'_>,
    wanted: &[Code],
    ids: &Ids,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for method in methods(access) {
        let answer = call(channel.clone(), method, request(method, ids), credentials).await;
        if !answer.as_ref().is_err_and(|status| wanted.contains(&status.code())) {
            wrong.push(format!("{} with {credentials:?}: {}", method.path, shown(&answer)));
        }
    }
    wrong
}

fn shown(answer: &Result<(), Status>) -> String {
    match answer {
        Ok(()) => "OK".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_method_has_a_policy() {
    let without: Vec<_> = Contract::get()
        .methods()
        .filter(|method| method.access == Access::Unspecified)
        .map(|method| &method.path)
        .collect();
    assert!(without.is_empty(), "{without:?}");
    for method in Contract::get().methods() {
        assert!(PACKAGES.iter().any(|(package, _)| *package == method.package()), "{}", method.path);
    }
}

#[test]
fn what_is_open_to_everybody_is_listed_here() {
    let open: Vec<&str> = methods(Access::Public).into_iter().map(|method| method.path.as_str()).collect();
    assert_eq!(open, PUBLIC);
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_edge_nobody_gets_in_without_proof() {
    let provider = Provider::start().await;
    let suite = TestSuite::configured(&provider.settings()).await;
    let account = suite.account().await;
    let ids = ids_of(&account, &provider).await;
    let channel = grpc::channel(&suite.client).unwrap();
    let token = account.client.token().unwrap();
    let mut wrong = Vec::new();

    let nothing = Credentials::default();
    let garbage = Credentials { bearer: Some("garbage"), ..nothing };
    let key_for_user = Credentials { api_key: Some("garbage"), ..nothing };
    for credentials in [&nothing, &garbage, &key_for_user] {
        wrong.extend(all_answer(&channel, Access::User, credentials, &[Code::Unauthenticated], &ids).await);
    }
    let user = Credentials { bearer: Some(token), ..nothing };
    for credentials in [&nothing, &key_for_user, &user] {
        wrong
            .extend(all_answer(&channel, Access::Gateway, credentials, &[Code::Unauthenticated], &ids).await);
    }
    // Methods between services do not exist for anybody outside.
    let refused = [Code::PermissionDenied, Code::Unimplemented, Code::NotFound];
    wrong.extend(all_answer(&channel, Access::Service, &user, &refused, &ids).await);
    // A header that names a user proves nothing.
    let forged = Credentials { forged_user: Some(&account.user_id), ..nothing };
    wrong.extend(all_answer(&channel, Access::User, &forged, &[Code::Unauthenticated], &ids).await);
    assert_none(&wrong);
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_organization_sees_nothing_on_sqlite() {
    let provider = Provider::start().await;
    another_organization_sees_nothing(TestSuite::configured(&provider.settings()).await, &provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_organization_sees_nothing_on_postgresql() {
    let provider = Provider::start().await;
    let suite = TestSuite::on_postgres_configured(&provider.settings()).await;
    another_organization_sees_nothing(suite, &provider).await;
}

/// What belongs to others answers like what does not exist, to the letter.
async fn another_organization_sees_nothing(suite: TestSuite, provider: &Provider) {
    let (owner, stranger) = (suite.account().await, suite.account().await);
    let theirs = ids_of(&owner, provider).await;
    let nowhere = Ids::nowhere();
    let channel = grpc::channel(&suite.client).unwrap();
    let credentials = Credentials { bearer: stranger.client.token(), ..Credentials::default() };
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for method in methods(Access::User).into_iter().filter(|method| names_something(method)) {
        tried += 1;
        let hidden = call(channel.clone(), method, request(method, &theirs), &credentials).await;
        let absent = call(channel.clone(), method, request(method, &nowhere), &credentials).await;
        let same = match (&hidden, &absent) {
            (Err(hidden), Err(absent)) => {
                hidden.code() == Code::NotFound
                    && (hidden.code(), hidden.message()) == (absent.code(), absent.message())
            }
            _ => false,
        };
        if !same {
            wrong.push(format!("{}: theirs {}; nowhere {}", method.path, shown(&hidden), shown(&absent)));
        }
    }
    assert_none(&wrong);
    assert!(tried >= 40, "only {tried} methods name something of somebody");
    assert_all_there(&owner, &theirs).await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_program_does_nothing_that_needs_a_person_or_another_scope() {
    let provider = Provider::start().await;
    let suite = TestSuite::configured(&provider.settings()).await;
    let account = suite.account().await;
    let ids = ids_of(&account, &provider).await;
    let channel = grpc::channel(&suite.client).unwrap();
    let everything = personal_token(&account, &["*"]).await.1;
    let reading = personal_token(&account, &[]).await.1;
    let mut wrong = Vec::new();
    for method in methods(Access::User) {
        for (bearer, refused, reason) in [
            (&everything, method.proof != Proof::Any, "INTERACTIVE_LOGIN_REQUIRED"),
            (&reading, !method.permission.ends_with(":read"), "INSUFFICIENT_SCOPE"),
        ] {
            if refused {
                let credentials = Credentials { bearer: Some(bearer), ..Credentials::default() };
                let answer = call(channel.clone(), method, request(method, &ids), &credentials).await;
                if answer.clone().map_err(|status| Error::from(status).reason().to_owned())
                    != Err(reason.to_owned())
                {
                    wrong.push(format!("{} not {reason}: {}", method.path, shown(&answer)));
                }
            }
        }
    }
    assert_none(&wrong);
    assert_all_there(&account, &ids).await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_changes_nothing() {
    let provider = Provider::start().await;
    let suite = TestSuite::configured(&provider.settings()).await;
    let account = suite.account().await;
    let ids = ids_of(&account, &provider).await;
    let (viewer, _, key) = service_account(&account, "looks", "viewer").await;
    let client = suite.client.with_token(&key);
    wait_for("the viewer is a member", async || {
        let reply = client.get(&format!("/api/v1/projects/{}", account.project)).await.unwrap();
        (reply.status == 200).then_some(())
    })
    .await;
    let channel = grpc::channel(&suite.client).unwrap();
    let credentials = Credentials { bearer: Some(&key), ..Credentials::default() };
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for method in methods(Access::User).into_iter().filter(|method| method.permission.ends_with(":write")) {
        tried += 1;
        let answer = call(channel.clone(), method, request(method, &ids), &credentials).await;
        // A program has no profile that it could change.
        let other =
            if method.permission == "profile:write" { Code::NotFound } else { Code::PermissionDenied };
        let wanted = [Code::PermissionDenied, other];
        if !answer.as_ref().is_err_and(|status| wanted.contains(&status.code())) {
            wrong.push(format!("{}: {}", method.path, shown(&answer)));
        }
    }
    assert_none(&wrong);
    assert!(tried >= 30, "only {tried} methods write");
    account.client.delete(&format!("/api/v1/service-accounts/{viewer}")).await.unwrap().expect(204).unwrap();
    assert_all_there(&account, &ids).await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_port_admits_services_by_name_and_nobody_else() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let bearer = account.client.token();
    let credentials = Credentials { bearer, ..Credentials::default() };
    let ca = DevCa::load_or_create(suite.suite.ca_file().parent().unwrap()).unwrap();
    let ports =
        [suite.suite.auth(), suite.suite.project(), suite.suite.gateway()].map(|service| service.addr);
    let mut wrong = Vec::new();
    for ((package, service), addr) in PACKAGES.into_iter().zip(ports) {
        assert!(call::refuses_without_certificate(addr).await, "{service} admits anybody");
        let config = UpstreamConfig { address: addr.to_string(), connections: 1 };
        let of = Contract::get().methods().filter(|method| method.package() == package);
        let mut of: Vec<_> = of.collect();
        of.sort_by(|a, b| a.path.cmp(&b.path));
        for peer in ["billing-service", "edge-proxy", "auth-service", "project-service", "gateway-service"] {
            let upstream = Upstream::new(&ca.identity(peer).unwrap(), service, &config).unwrap();
            for method in of.iter().filter(|method| !method.admits_peer(peer)) {
                let answer = call(upstream.clone(), method, Bytes::new(), &credentials).await;
                if !answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied) {
                    wrong.push(format!("{peer} at {}: {}", method.path, shown(&answer)));
                }
            }
        }
        // The edge is a peer; without a user's token it gets no further either.
        let edge = Upstream::new(&ca.identity("edge-proxy").unwrap(), service, &config).unwrap();
        for method in of.iter().filter(|method| method.access == Access::User) {
            let answer = call(edge.clone(), method, Bytes::new(), &Credentials::default()).await;
            if !answer.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated) {
                wrong.push(format!("edge-proxy without a token at {}: {}", method.path, shown(&answer)));
            }
        }
    }
    assert_none(&wrong);
    suite.suite.shutdown().await;
}
