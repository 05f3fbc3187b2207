//! A verifier and the authority that it follows, over a real connection.

use std::{sync::Arc, time::Duration};

use proto::auth::{GetProfileRequest, auth_service_client::AuthServiceClient};
use service_kit::{
    Clock, Kind,
    admin::Readiness,
    client::{Upstream, UpstreamConfig},
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::DevCa,
    token::{RemoteAuthority, Verifier},
};
use tonic::{Code, Request};

async fn serve(ca: &DevCa, signer: &Signer, listeners: Listeners) -> Running {
    let server = GrpcServer {
        name: "auth-service",
        identity: ca.identity("auth-service").unwrap(),
        verifier: Verifier::new(Signer::config(), Arc::new(signer.clone()), Clock::system()),
        routes: signer.routes(),
        tasks: Tasks::new(),
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(listeners).await.unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_verifier_follows_an_authority_that_comes_and_goes() {
    service_kit::tls::install_provider();
    let (folder, signer) = (tempfile::tempdir().unwrap(), Signer::new());
    let ca = DevCa::load_or_create(folder.path()).unwrap();
    let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
    let address = listeners.main.local_addr().unwrap().to_string();
    let upstream = |from: &str| {
        let config = UpstreamConfig { address: address.clone(), connections: 1 };
        Upstream::new(&ca.identity(from).unwrap(), "auth-service", &config).unwrap()
    };
    let running = serve(&ca, &signer, listeners).await;

    let clock = Clock::fixed(Clock::system().now_ms());
    let authority = Arc::new(RemoteAuthority::new(upstream("project-service")));
    let (verifier, tasks) = (Verifier::new(Signer::config(), authority, clock.clone()), Tasks::new());
    verifier.follow(&tasks);
    let (jane, joan) = (signer.token("jane", "*"), signer.token("joan", "*"));
    verifier.verify(&jane).await.unwrap();
    verifier.verify(&joan).await.unwrap();
    signer.revoke("session-of-jane");
    until("the session is dead", async || {
        verifier.verify(&jane).await.is_err_and(|error| error.reason() == "TOKEN_REVOKED")
    })
    .await;

    // Without its authority it goes on for half a minute, then it takes nobody: not even whom it knows.
    tokio::join!(running.shutdown(), async { signer.hang_up() });
    verifier.verify(&joan).await.unwrap();
    clock.advance_ms(31_000);
    until("nobody answers", async || {
        verifier.verify(&joan).await.is_err_and(|error| error.kind() == Kind::Unavailable)
    })
    .await;
    assert_eq!(verifier.verify(&jane).await.unwrap_err().reason(), "TOKEN_REVOKED");

    let listeners = Listeners::bind(&address, "127.0.0.1:0").await.unwrap();
    let running = serve(&ca, &signer, listeners).await;
    until("it is there again", async || verifier.verify(&joan).await.is_ok()).await;

    // The wall of that service, too, knows who has ended.
    let mut client = AuthServiceClient::new(upstream("edge-proxy"));
    for (token, code) in [(&jane, Code::Unauthenticated), (&joan, Code::Unimplemented)] {
        let mut request = Request::new(GetProfileRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(client.get_profile(request).await.unwrap_err().code(), code);
    }
    assert!(tasks.drain(Duration::from_secs(5)).await);
    running.shutdown().await;
}
