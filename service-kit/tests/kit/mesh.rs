use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use proto::{
    auth::{
        GetJwksRequest, GetProfileRequest, Jwks,
        auth_service_client::AuthServiceClient,
        key_service_client::KeyServiceClient,
        key_service_server::{KeyService, KeyServiceServer},
    },
    project::{CheckRequest, access_service_client::AccessServiceClient},
};
use service_kit::{
    Clock,
    admin::Readiness,
    client::{Upstream, UpstreamConfig},
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::{DevCa, Identity},
    token::{TokenConfig, Verifier},
};
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status, service::Routes};

/// Answers after a while, or panics.
#[derive(Default)]
struct Keys {
    wait: Duration,
    panics: bool,
    entered: Arc<Notify>,
}

#[async_trait]
impl KeyService for Keys {
    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<Jwks>, Status> {
        self.entered.notify_one();
        tokio::time::sleep(self.wait).await;
        assert!(!self.panics, "as told");
        Ok(Response::new(Jwks::default()))
    }
}

struct Mesh {
    ca: DevCa,
    running: Running,
    _folder: tempfile::TempDir,
}

impl Mesh {
    async fn start(keys: Keys) -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(folder.path()).unwrap();
        let running = Self::serve(&ca, keys, "127.0.0.1:0").await;
        Self { ca, running, _folder: folder }
    }

    async fn serve(ca: &DevCa, keys: Keys, address: &str) -> Running {
        let config = TokenConfig { issuer: "i".into(), audience: "a".into() };
        let server = GrpcServer {
            name: "auth-service",
            identity: ca.identity("auth-service").unwrap(),
            verifier: Verifier::new(config, Arc::new(Signer::new()), Clock::system()),
            routes: Routes::new(KeyServiceServer::new(keys)),
            tasks: Tasks::new(),
            readiness: Readiness::new(),
            reflection: true,
        };
        server.serve(Listeners::bind(address, "127.0.0.1:0").await.unwrap()).await.unwrap()
    }

    fn upstream(&self, from: &Identity, to: &'static str) -> Upstream {
        let config = UpstreamConfig { address: self.running.addr.to_string(), connections: 2 };
        Upstream::new(from, to, &config).unwrap()
    }

    fn upstream_of(&self, from: &str) -> Upstream {
        self.upstream(&self.ca.identity(from).unwrap(), "auth-service")
    }
}

fn quick() -> Keys {
    Keys::default()
}

#[tokio::test]
async fn services_meet_under_mutual_tls_by_name() {
    let mesh = Mesh::start(quick()).await;
    let good = mesh.upstream_of("edge-proxy");
    good.check().await.unwrap();
    KeyServiceClient::new(good).get_jwks(GetJwksRequest {}).await.unwrap();

    // A peer that the method does not admit.
    let stranger = mesh.upstream_of("billing-service");
    let refused = KeyServiceClient::new(stranger).get_jwks(GetJwksRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // A server that is not who we asked for.
    let edge = mesh.ca.identity("edge-proxy").unwrap();
    let wrong = mesh.upstream(&edge, "project-service");
    let refused = KeyServiceClient::new(wrong).get_jwks(GetJwksRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    // A certificate of another authority.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = DevCa::load_or_create(elsewhere.path()).unwrap().identity("edge-proxy").unwrap();
    let refused =
        KeyServiceClient::new(mesh.upstream(&other, "auth-service")).get_jwks(GetJwksRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    mesh.running.shutdown().await;
}

#[tokio::test]
async fn the_wall_refuses_what_no_policy_allows() {
    let mesh = Mesh::start(quick()).await;
    let edge = mesh.upstream_of("edge-proxy");
    let profile = AuthServiceClient::new(edge.clone()).get_profile(GetProfileRequest {}).await.unwrap_err();
    assert_eq!(profile.code(), Code::Unauthenticated);
    let mut request = Request::new(GetProfileRequest {});
    request.metadata_mut().insert("authorization", "Bearer a.b.c".parse().unwrap());
    let profile = AuthServiceClient::new(edge.clone()).get_profile(request).await.unwrap_err();
    assert_eq!(profile.code(), Code::Unauthenticated);
    // SERVICE methods are closed to the edge even where they exist.
    let check = AccessServiceClient::new(edge.clone()).check(CheckRequest::default()).await.unwrap_err();
    assert_eq!(check.code(), Code::PermissionDenied);
    // What is not in the contract does not exist.
    let mut raw = tonic::client::Grpc::new(edge);
    raw.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/tollgate.auth.v1.AuthService/BecomeAdmin");
    let codec = tonic_prost::ProstCodec::<GetJwksRequest, Jwks>::default();
    let unknown = raw.unary(Request::new(GetJwksRequest {}), path, codec).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    mesh.running.shutdown().await;
}

#[tokio::test]
async fn deadlines_and_panics_have_their_answers() {
    let mesh = Mesh::start(Keys { wait: Duration::from_secs(60), ..Keys::default() }).await;
    let mut request = Request::new(GetJwksRequest {});
    request.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
    let late = KeyServiceClient::new(mesh.upstream_of("edge-proxy")).get_jwks(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);

    let mesh = Mesh::start(Keys { panics: true, ..Keys::default() }).await;
    let panicked =
        KeyServiceClient::new(mesh.upstream_of("edge-proxy")).get_jwks(GetJwksRequest {}).await.unwrap_err();
    assert_eq!(panicked.code(), Code::Internal);
    assert!(!panicked.message().contains("as told"));
    mesh.upstream_of("edge-proxy").check().await.expect("the service goes on");
}

#[tokio::test]
async fn draining_finishes_calls_and_takes_no_new_ones() {
    let entered = Arc::new(Notify::new());
    let keys = Keys { wait: Duration::from_millis(300), entered: entered.clone(), ..Keys::default() };
    let mesh = Mesh::start(keys).await;
    let upstream = mesh.upstream_of("edge-proxy");
    upstream.check().await.unwrap();
    let under_way = tokio::spawn(KeyServiceClient::new(upstream).get_jwks_owned());
    let admin = mesh.running.admin_addr;
    entered.notified().await;
    mesh.running.shutdown().await;
    under_way.await.unwrap().expect("a call under way finishes");
    assert!(tokio::net::TcpStream::connect(admin).await.is_err());
}

#[tokio::test]
async fn of_several_addresses_those_that_cannot_be_reached_are_left_alone() {
    let mesh = Mesh::start(quick()).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // Takes connections and says nothing, as a process that is stopped.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("{closed}, {},{}", silent.local_addr().unwrap(), mesh.running.addr);
    let identity = mesh.ca.identity("edge-proxy").unwrap();
    let config = UpstreamConfig { address, connections: 1 };
    let upstream = Upstream::new(&identity, "auth-service", &config).unwrap();
    let mut client = KeyServiceClient::new(upstream.clone());
    let mut failures = 0;
    for _ in 0..30 {
        failures += u32::from(client.get_jwks(GetJwksRequest {}).await.is_err());
    }
    assert_eq!(failures, 2, "one call finds out for all that follow");

    let another = Mesh::serve(&mesh.ca, quick(), &closed.to_string()).await;
    mesh.running.shutdown().await;
    let found = async { while client.get_jwks(GetJwksRequest {}).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("the one that came back is found");
    another.shutdown().await;

    for address in ["", "host", ":1", "host:99999", "a:1,,b:2"] {
        let config = UpstreamConfig { address: address.into(), connections: 1 };
        let error = Upstream::new(&identity, "auth-service", &config).unwrap_err().to_string();
        assert!(error.contains("the address of auth-service must be HOST:PORT"), "{error}");
    }
}

trait Owned {
    fn get_jwks_owned(self) -> impl Future<Output = Result<Response<Jwks>, Status>> + Send;
}

impl Owned for KeyServiceClient<Upstream> {
    async fn get_jwks_owned(mut self) -> Result<Response<Jwks>, Status> {
        self.get_jwks(GetJwksRequest {}).await
    }
}
