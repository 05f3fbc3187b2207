//! A service whose calls do what a test tells them, on a database of its own, behind the wall.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use proto::project::{
    CreateOrganizationRequest, CreateProjectRequest, DeleteProjectRequest, GetOrganizationRequest,
    GetProjectRequest, ListOrganizationsRequest, ListOrganizationsResponse, ListProjectsRequest,
    ListProjectsResponse, Organization, Project, UpdateOrganizationRequest, UpdateProjectRequest,
    organization_service_client::OrganizationServiceClient,
    organization_service_server::{OrganizationService, OrganizationServiceServer},
    project_service_client::ProjectServiceClient,
    project_service_server::{ProjectService, ProjectServiceServer},
};
use service_kit::{
    Clock, Error, Kind,
    admin::Readiness,
    client::{Upstream, UpstreamConfig},
    db::Database,
    idempotency::{IdempotencyConfig, Keys, REPLAYED},
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::{Signer, TestDatabase},
    tls::DevCa,
    token::Verifier,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, service::Routes};
use tonic_types::StatusExt as _;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("tests/migrations");

/// What a call does, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits to be let on.
    Wait,
    /// Writes a thing in a transaction.
    Write,
    /// The same, and waits to be let on before the commit.
    WriteWaiting,
    Fail(Kind),
    Panic,
}

/// What calls do, and what they have done.
#[derive(Debug)]
pub(super) struct Things {
    database: Database,
    plan: Mutex<Vec<Step>>,
    pub(super) runs: AtomicUsize,
    /// How many wait.
    pub(super) waiting: AtomicUsize,
    /// Lets those on that wait.
    pub(super) gate: Semaphore,
}

impl Things {
    pub(super) fn plan(&self, steps: &[Step]) {
        *self.plan.lock().unwrap() = steps.to_vec();
    }

    /// Does what is planned; the id of the thing.
    async fn create(&self, name: &str) -> Result<String, Error> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let id = format!("{name}-{run}-{:016x}", u64::from_be_bytes(service_kit::opaque::random()));
        let plan = self.plan.lock().unwrap().clone();
        for step in plan {
            match step {
                Step::Wait => self.wait().await,
                Step::Write => self.write(&id, false).await?,
                Step::WriteWaiting => self.write(&id, true).await?,
                Step::Fail(kind) => {
                    return Err(Error::new(kind, "AS_TOLD", "as told").naming("name", "is bad"));
                }
                Step::Panic => panic!("as told"),
            }
        }
        Ok(id)
    }

    async fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    async fn write(&self, id: &str, waits: bool) -> Result<(), Error> {
        const INSERT: &str = "INSERT INTO things (id, name, active, made_at) VALUES ($1, $1, TRUE, 0)";
        match &self.database {
            Database::Sqlite(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::query(INSERT).bind(id).execute(&mut *tx).await?;
                if waits {
                    self.wait().await;
                }
                tx.commit().await?;
            }
            Database::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::query(INSERT).bind(id).execute(&mut *tx).await?;
                if waits {
                    self.wait().await;
                }
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Handler(Arc<Things>);

#[async_trait]
impl OrganizationService for Handler {
    async fn create_organization(
        &self,
        request: Request<CreateOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        let request = request.into_inner();
        let id = self.0.create(&request.handle).await?;
        Ok(Response::new(Organization { id, handle: request.handle, ..Organization::default() }))
    }

    async fn list_organizations(
        &self,
        _: Request<ListOrganizationsRequest>,
    ) -> Result<Response<ListOrganizationsResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get_organization(
        &self,
        _: Request<GetOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn update_organization(
        &self,
        _: Request<UpdateOrganizationRequest>,
    ) -> Result<Response<Organization>, Status> {
        Ok(Response::new(Default::default()))
    }
}

#[async_trait]
impl ProjectService for Handler {
    async fn create_project(
        &self,
        request: Request<CreateProjectRequest>,
    ) -> Result<Response<Project>, Status> {
        let id = self.0.create(&request.into_inner().name).await?;
        Ok(Response::new(Project { id, ..Project::default() }))
    }

    async fn list_projects(
        &self,
        _: Request<ListProjectsRequest>,
    ) -> Result<Response<ListProjectsResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get_project(&self, _: Request<GetProjectRequest>) -> Result<Response<Project>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn update_project(&self, _: Request<UpdateProjectRequest>) -> Result<Response<Project>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn delete_project(&self, _: Request<DeleteProjectRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// An instance of the service.
pub(super) struct Instance {
    pub(super) things: Arc<Things>,
    upstream: Upstream,
    _running: Running,
}

/// One database, and the instances on it.
pub(super) struct World {
    pub(super) database: Database,
    pub(super) clock: Clock,
    pub(super) signer: Signer,
    config: IdempotencyConfig,
    ca: DevCa,
    _keep: (TestDatabase, tempfile::TempDir),
}

/// What a call was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Result<String, Status>,
    pub(super) replayed: bool,
}

impl World {
    /// One on each kind of database.
    pub(super) async fn each() -> Vec<Self> {
        Self::each_with(IdempotencyConfig { hours: 24, max_per_caller: 100 }).await
    }

    pub(super) async fn each_with(config: IdempotencyConfig) -> Vec<Self> {
        service_kit::tls::install_provider();
        let mut worlds = Vec::new();
        for test in TestDatabase::both() {
            let database = Database::open(&test.config, &MIGRATIONS).await.unwrap();
            let folder = tempfile::tempdir().unwrap();
            let ca = DevCa::load_or_create(folder.path()).unwrap();
            let (clock, signer) = (Clock::fixed(1_700_000_000_000), Signer::new());
            worlds.push(Self { database, clock, signer, config, ca, _keep: (test, folder) });
        }
        worlds
    }

    /// Starts an instance, which writes a thing at each call unless it is told otherwise.
    pub(super) async fn instance(&self) -> Instance {
        let things = Arc::new(Things {
            database: self.database.clone(),
            plan: Mutex::new(vec![Step::Write]),
            runs: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        });
        let tasks = Tasks::new();
        let routes = Routes::new(OrganizationServiceServer::new(Handler(things.clone())))
            .add_service(ProjectServiceServer::new(Handler(things.clone())));
        let keys = Keys::start(&self.database, self.config, self.clock.clone(), &tasks).unwrap();
        let server = GrpcServer {
            name: "project-service",
            identity: self.ca.identity("project-service").unwrap(),
            verifier: Verifier::new(Signer::config(), Arc::new(self.signer.clone()), Clock::system()),
            routes: keys.guard(routes),
            tasks,
            readiness: Readiness::new(),
            reflection: false,
        };
        let running =
            server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap();
        let config = UpstreamConfig { address: running.addr.to_string(), connections: 1 };
        let edge = self.ca.identity("edge-proxy").unwrap();
        let upstream = Upstream::new(&edge, "project-service", &config).unwrap();
        Instance { things, upstream, _running: running }
    }

    /// A call of a user with all scopes.
    pub(super) fn by<'a>(&self, user: &str, instance: &'a Instance) -> Caller<'a> {
        self.with_token(&self.signer.token(user, "*"), instance)
    }

    pub(super) fn with_token<'a>(&self, token: &str, instance: &'a Instance) -> Caller<'a> {
        Caller { upstream: &instance.upstream, token: token.to_owned(), timeout: None }
    }

    /// How many things there are.
    pub(super) async fn things(&self) -> i64 {
        self.number("SELECT COUNT(*) FROM things").await
    }

    /// How many keys are remembered.
    pub(super) async fn keys(&self) -> i64 {
        self.number("SELECT COUNT(*) FROM idempotency_keys").await
    }

    async fn number(&self, sql: &'static str) -> i64 {
        match &self.database {
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool.read()).await.unwrap(),
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool.read()).await.unwrap(),
        }
    }

    /// All bytes that the rows of keys hold.
    pub(super) async fn stored(&self) -> Vec<u8> {
        type Row = (String, Vec<u8>, String, Vec<u8>, String, Option<Vec<u8>>);
        let sql = "SELECT principal, key_hash, method, fingerprint, owner, outcome FROM idempotency_keys";
        let rows: Vec<Row> = match &self.database {
            Database::Sqlite(pool) => sqlx::query_as(sql).fetch_all(pool.read()).await.unwrap(),
            Database::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool.read()).await.unwrap(),
        };
        let row = |(principal, hash, method, fingerprint, owner, outcome): Row| {
            [
                principal.into_bytes(),
                hash,
                method.into_bytes(),
                fingerprint,
                owner.into_bytes(),
                outcome.unwrap(),
            ]
        };
        rows.into_iter().flat_map(row).collect::<Vec<_>>().concat()
    }

    /// From now on no answer can be noted, as if the process died before.
    pub(super) async fn lose_answers(&self) {
        const SQLITE: &str = "CREATE TRIGGER no_notes BEFORE UPDATE OF outcome ON idempotency_keys
            BEGIN SELECT RAISE(ABORT, 'no notes'); END";
        const POSTGRES: &str = "CREATE FUNCTION no_notes() RETURNS trigger LANGUAGE plpgsql AS
              $$ BEGIN RAISE EXCEPTION 'no notes'; END $$;
            CREATE TRIGGER no_notes BEFORE UPDATE OF outcome ON idempotency_keys
              FOR EACH ROW EXECUTE FUNCTION no_notes()";
        self.define(SQLITE, POSTGRES).await.unwrap();
    }

    /// Answers can be noted again.
    pub(super) async fn keep_answers(&self) {
        self.define("DROP TRIGGER no_notes", "DROP TRIGGER no_notes ON idempotency_keys").await.unwrap();
    }

    async fn define(&self, sqlite: &'static str, postgres: &'static str) -> sqlx::Result<()> {
        match &self.database {
            Database::Sqlite(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::raw_sql(sqlite).execute(&mut *tx).await?;
                tx.commit().await
            }
            Database::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::raw_sql(postgres).execute(&mut *tx).await?;
                tx.commit().await
            }
        }
    }
}

/// Who calls.
#[derive(Clone)]
pub(super) struct Caller<'a> {
    upstream: &'a Upstream,
    token: String,
    pub(super) timeout: Option<Duration>,
}

impl Caller<'_> {
    fn request<T>(&self, message: T, keys: &[&str]) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        for key in keys {
            request.metadata_mut().append("idempotency-key", key.parse().unwrap());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    /// Creates an organization; its id.
    pub(super) async fn create(&self, keys: &[&str], name: &str) -> Answer {
        let message = CreateOrganizationRequest { handle: name.to_owned(), ..Default::default() };
        let mut client = OrganizationServiceClient::new(self.upstream.clone());
        answer(client.create_organization(self.request(message, keys)).await.map(|r| r.map(|o| o.id)))
    }

    /// Creates a project with the same bytes in its request; its id.
    pub(super) async fn create_project(&self, keys: &[&str], name: &str) -> Answer {
        let message = CreateProjectRequest { name: name.to_owned(), ..Default::default() };
        let mut client = ProjectServiceClient::new(self.upstream.clone());
        answer(client.create_project(self.request(message, keys)).await.map(|r| r.map(|p| p.id)))
    }

    /// Changes an organization, which takes no key.
    pub(super) async fn update(&self, keys: &[&str]) -> Answer {
        let mut client = OrganizationServiceClient::new(self.upstream.clone());
        let request = self.request(UpdateOrganizationRequest::default(), keys);
        answer(client.update_organization(request).await.map(|r| r.map(|o| o.id)))
    }
}

fn answer(answered: Result<Response<String>, Status>) -> Answer {
    let of = |metadata: &tonic::metadata::MetadataMap| metadata.contains_key(REPLAYED.as_str());
    let replayed = answered.as_ref().map_or_else(|s| of(s.metadata()), |r| of(r.metadata()));
    Answer { outcome: answered.map(Response::into_inner), replayed }
}

impl Answer {
    /// The id of what was created for the first time.
    pub(super) fn created(self) -> String {
        assert!(!self.replayed, "{self:?}");
        self.outcome.unwrap()
    }

    /// The id of what was created before.
    pub(super) fn replayed(self) -> String {
        assert!(self.replayed, "{self:?}");
        self.outcome.unwrap()
    }

    /// Code and reason of a refusal.
    #[track_caller]
    pub(super) fn refused(&self) -> (tonic::Code, String) {
        let status = self.outcome.as_ref().unwrap_err();
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        (status.code(), reason)
    }

    /// The fields that a refusal names, with what it says of them.
    pub(super) fn fields(&self) -> HashMap<String, String> {
        let details = self.outcome.as_ref().unwrap_err().get_details_bad_request();
        details
            .map(|details| details.field_violations)
            .unwrap_or_default()
            .into_iter()
            .map(|v| (v.field, v.description))
            .collect()
    }
}

/// Waits until something holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
