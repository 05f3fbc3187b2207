//! Starts the service with a stand-in for auth-service, and makes clients for users and for services.

use std::{future::Future, sync::Arc};

use project_service::{Config, DEFAULTS, NAME, domain::access::Role, store::Stores};
use proto::project::{
    Api, CreateApiRequest, CreateOrganizationRequest, ListProjectsRequest, Organization,
    access_service_client::AccessServiceClient, api_service_client::ApiServiceClient,
    deployment_service_client::DeploymentServiceClient,
    organization_service_client::OrganizationServiceClient, project_service_client::ProjectServiceClient,
};
use service_kit::{
    Clock, Error, Ids, Kind,
    admin::Readiness,
    client::{Upstream, UpstreamConfig},
    config::Layers,
    db::Database,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::{Signer, TestDatabase},
    tls::{DevCa, install_provider},
    token::{AMR_SERVICE_KEY, Verifier},
};
use tempfile::TempDir;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
};

/// The service, running; everything goes away with it.
pub(crate) struct Service {
    pub(crate) ca: DevCa,
    pub(crate) database: TestDatabase,
    pub(crate) folder: TempDir,
    pub(crate) ids: Ids,
    running: Running,
    pub(crate) signer: Signer,
    _auth: Running,
}

/// A user, as the service sees one: an access token.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) id: String,
    bearer: Bearer,
}

pub(crate) type Channel = InterceptedService<Upstream, Bearer>;

/// Adds the access token to each call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(MetadataValue<tonic::metadata::Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl User {
    fn with_token(id: &str, token: &str) -> Self {
        let bearer = format!("Bearer {token}").parse().unwrap();
        Self { id: id.to_owned(), bearer: Bearer(bearer) }
    }

    pub(crate) fn organizations(&self, service: &Service) -> OrganizationServiceClient<Channel> {
        OrganizationServiceClient::with_interceptor(service.edge(), self.bearer.clone())
    }

    pub(crate) fn projects(&self, service: &Service) -> ProjectServiceClient<Channel> {
        ProjectServiceClient::with_interceptor(service.edge(), self.bearer.clone())
    }

    pub(crate) fn apis(&self, service: &Service) -> ApiServiceClient<Channel> {
        ApiServiceClient::with_interceptor(service.edge(), self.bearer.clone())
            .max_decoding_message_size(64 * 1024 * 1024)
    }

    pub(crate) fn deployments(&self, service: &Service) -> DeploymentServiceClient<Channel> {
        DeploymentServiceClient::with_interceptor(service.edge(), self.bearer.clone())
    }
}

impl Service {
    /// The service on `database`, without a gateway-service.
    pub(crate) async fn start(database: TestDatabase) -> Self {
        Self::start_with(database, "127.0.0.1:1").await
    }

    /// The service on `database`, with a gateway-service at `gateway`.
    pub(crate) async fn start_with(database: TestDatabase, gateway: &str) -> Self {
        install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(&folder.path().join("tls")).unwrap();
        let signer = Signer::new();
        let auth = start_auth(&ca, &signer).await;
        let mut config: Config = Layers::new(DEFAULTS, None, "TOLLGATE_TEST__").unwrap().extract().unwrap();
        config.tls.dev_ca_dir = folder.path().join("tls");
        config.keys.sealing_key_file = folder.path().join("at-rest.key");
        config.database = database.config.clone();
        config.upstreams.auth.address = auth.addr.to_string();
        config.upstreams.gateway.address = gateway.to_owned();
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let running = project_service::start(config, listeners).await.unwrap();
        Self { ca, database, folder, ids: Ids::new(Clock::system()), running, signer, _auth: auth }
    }

    /// Runs a test on SQLite and on PostgreSQL.
    pub(crate) async fn on_both<F: Future<Output = ()>>(test: impl Fn(Self) -> F) {
        for database in TestDatabase::both() {
            test(Self::start(database).await).await;
        }
    }

    /// A channel that `service` would have.
    pub(crate) fn channel_of(&self, service: &str) -> Upstream {
        let identity = self.ca.identity(service).unwrap();
        let config = UpstreamConfig { address: self.running.addr.to_string(), connections: 1 };
        Upstream::new(&identity, NAME, &config).unwrap()
    }

    fn edge(&self) -> Upstream {
        self.channel_of("edge-proxy")
    }

    /// `AccessService` as gateway-service sees it.
    pub(crate) fn access(&self) -> AccessServiceClient<Upstream> {
        AccessServiceClient::new(self.channel_of("gateway-service"))
    }

    /// A user who signed up and is a member of nothing.
    pub(crate) fn user(&self) -> User {
        let id = self.ids.next();
        self.user_with_scope(&id, "*")
    }

    /// A token of user `id` that may do only this.
    pub(crate) fn user_with_scope(&self, id: &str, scope: &str) -> User {
        User::with_token(id, &self.signer.token(id, scope))
    }

    /// The key of service account `id`.
    pub(crate) fn service_account(&self, id: &str) -> User {
        let mut claims = Signer::claims(id, "*");
        claims["amr"] = [AMR_SERVICE_KEY].as_slice().into();
        User::with_token(id, &self.signer.sign(&Signer::header(), &claims))
    }

    /// A user with a role in an organization.
    pub(crate) async fn member(&self, organization_id: &str, role: Role) -> User {
        let user = self.user();
        self.stores().await.organizations.put_member(organization_id, &user.id, role, 1).await.unwrap();
        user
    }

    /// A second look at the service's database.
    pub(crate) async fn stores(&self) -> Stores {
        Stores::new(&self.open_database().await)
    }

    pub(crate) async fn open_database(&self) -> Database {
        Database::open(&self.database.config, &project_service::store::MIGRATIONS).await.unwrap()
    }

    /// A new organization of a user's.
    pub(crate) async fn organization(&self, owner: &User) -> Organization {
        let handle = format!("org-{}", &self.ids.next()[19..].replace('-', ""));
        let new = CreateOrganizationRequest { id: String::new(), handle, name: "Org".to_owned() };
        owner.organizations(self).create_organization(new).await.unwrap().into_inner()
    }

    /// The first project of an organization.
    pub(crate) async fn first_project(&self, owner: &User, organization_id: &str) -> String {
        let all = ListProjectsRequest { organization_id: organization_id.to_owned(), ..Default::default() };
        owner.projects(self).list_projects(all).await.unwrap().into_inner().list[0].id.clone()
    }

    /// An owner with an organization; the id of its first project.
    pub(crate) async fn owner(&self) -> (User, Organization, String) {
        let owner = self.user();
        let organization = self.organization(&owner).await;
        let project = self.first_project(&owner, &organization.id).await;
        (owner, organization, project)
    }

    /// A new API.
    pub(crate) async fn api(&self, owner: &User, project_id: &str, name: &str) -> Api {
        let api = Api {
            name: name.to_owned(),
            context: format!("/{name}"),
            version: "v1".to_owned(),
            ..Api::default()
        };
        let new = CreateApiRequest { project_id: project_id.to_owned(), api: Some(api) };
        owner.apis(self).create_api(new).await.unwrap().into_inner()
    }
}

/// Checks that a call was refused with this code; the error with reason and fields.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, code: Code) -> Error {
    let status = answer.expect_err("the call must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    let error = Error::from(status);
    assert_ne!(error.kind(), Kind::Internal);
    error
}

/// The names of the fields that an error is about.
pub(crate) fn fields(error: &Error) -> Vec<&str> {
    error.violations().iter().map(|violation| violation.field.as_str()).collect()
}

async fn start_auth(ca: &DevCa, signer: &Signer) -> Running {
    let server = GrpcServer {
        name: "auth-service",
        identity: ca.identity("auth-service").unwrap(),
        verifier: Verifier::new(Signer::config(), Arc::new(signer.clone()), Clock::system()),
        routes: signer.routes(),
        tasks: Tasks::new(),
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap()
}
