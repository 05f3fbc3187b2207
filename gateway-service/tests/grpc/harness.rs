//! A gateway-service between its neighbours, and the clients that tests call it with.

use std::{sync::Arc, time::Duration};

use gateway_service::{Config, LinkConfig, Upstreams};
use proto::gateway::{
    AppendEventsRequest, AppendEventsResponse, Gateway, NewEvent, RegisterGatewayRequest, RotateTokenRequest,
    RotateTokenResponse, delivery_service_client::DeliveryServiceClient,
    gateway_internal_service_client::GatewayInternalServiceClient,
    gateway_operations_service_client::GatewayOperationsServiceClient,
    gateway_service_client::GatewayServiceClient,
};
use proto::project::DesiredDeployment;
use service_kit::{
    Clock, Ids,
    bus::BusConfig,
    client::{Upstream, UpstreamConfig},
    db::Database,
    idempotency::IdempotencyConfig,
    server::{Listeners, Running},
    telemetry::{LogFormat, TelemetryConfig},
    testing::{Signer, TestDatabase},
    tls::{DevCa, TlsConfig},
};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::fake::{self, Project};

/// Longer than anything takes, shorter than anybody's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An administrator of [`World::organization`].
pub(crate) const ADMIN: &str = "01890000-0000-7000-8000-00000000000a";

pub(crate) struct World {
    pub(crate) project: Arc<Project>,
    pub(crate) organization: String,
    pub(crate) ids: Ids,
    pub(crate) link: LinkConfig,
    pub(crate) bus: BusConfig,
    database: TestDatabase,
    ca: DevCa,
    folder: tempfile::TempDir,
    signer: Signer,
    neighbours: [Running; 2],
    service: Option<Running>,
    addr: std::net::SocketAddr,
}

/// One world on each kind of database.
pub(crate) async fn worlds() -> Vec<World> {
    let mut worlds = Vec::new();
    for database in TestDatabase::both() {
        worlds.push(World::start(database, quick()).await);
    }
    worlds
}

pub(crate) fn quick() -> LinkConfig {
    LinkConfig {
        max_connections: 100,
        hello_ms: 5_000,
        heartbeat_ms: 20_000,
        // Nobody is given up for silence because the machine is slow; what is about silence sets its own.
        silence_ms: 600_000,
        poll_ms: 200,
        max_connections_per_organization: 100,
        redeliver_ms: 60_000,
        refused_retries: 0,
        drift_ms: 300_000,
        reconcile_ms: 300_000,
        node_timeout_ms: 3_000,
        retention_hours: 168,
    }
}

impl World {
    /// What project-service says of a gateway whose event this is.
    pub(crate) fn wants(&self, event: &NewEvent) -> DesiredDeployment {
        DesiredDeployment {
            api_id: event.artifact_id.clone(),
            deployment_id: event.deployment_id.clone(),
            deployed: event.r#type == "api.deployed",
            event_type: event.r#type.clone(),
            payload_json: event.payload_json.clone(),
            event_id: event.id.clone(),
            ..DesiredDeployment::default()
        }
    }

    /// Lets project-service want the deployments that these events are of, and no others.
    pub(crate) fn want(&self, events: &[NewEvent]) {
        *self.project.desired.lock().unwrap() = events.iter().map(|event| self.wants(event)).collect();
    }

    pub(crate) async fn start(database: TestDatabase, link: LinkConfig) -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(folder.path()).unwrap();
        let (signer, project) = (Signer::new(), Arc::new(Project::default()));
        let neighbours =
            [fake::serve_auth(&ca, &signer).await, fake::serve_project(&ca, &signer, project.clone()).await];
        let ids = Ids::new(Clock::system());
        let organization = ids.next();
        project.join(ADMIN, &organization, "admin");
        let addr = neighbours[0].addr;
        let mut world = Self {
            project,
            organization,
            ids,
            link,
            bus: BusConfig { url: "memory".into() },
            database,
            ca,
            folder,
            signer,
            neighbours,
            service: None,
            addr,
        };
        world.begin().await;
        world
    }

    /// Starts the service (again), on a new port.
    pub(crate) async fn begin(&mut self) {
        let running = self.instance().await;
        self.addr = running.addr;
        self.service = Some(running);
    }

    /// Another instance on the same database.
    pub(crate) async fn instance(&self) -> Running {
        gateway_service::start(self.config(), listeners().await).await.unwrap()
    }

    /// Another instance on the same database, with a clock of its own.
    pub(crate) async fn instance_at(&self, clock: Clock) -> Running {
        gateway_service::start_at(self.config(), listeners().await, clock).await.unwrap()
    }

    /// Ends the service as SIGTERM does.
    pub(crate) async fn end(&mut self) {
        self.service.take().expect("a service that runs").shutdown().await;
    }

    /// Talks to another address from now on.
    pub(crate) fn turn_to(&mut self, addr: std::net::SocketAddr) {
        self.addr = addr;
    }

    pub(crate) fn config(&self) -> Config {
        let upstream =
            |running: &Running| UpstreamConfig { address: running.addr.to_string(), connections: 1 };
        Config {
            listen: String::new(),
            admin_listen: String::new(),
            reflection: false,
            tls: TlsConfig {
                dev_ca_dir: self.folder.path().to_owned(),
                ca: "".into(),
                cert: "".into(),
                key: "".into(),
            },
            database: self.database.config.clone(),
            token: Signer::config(),
            telemetry: TelemetryConfig {
                log: "info".into(),
                format: LogFormat::Text,
                otlp_endpoint: String::new(),
            },
            upstreams: Upstreams {
                auth: upstream(&self.neighbours[0]),
                project: upstream(&self.neighbours[1]),
            },
            link: self.link,
            bus: self.bus.clone(),
            idempotency: IdempotencyConfig { hours: 24, max_per_caller: 10_000 },
        }
    }

    /// The database, past the service.
    pub(crate) async fn database(&self) -> Database {
        static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();
        Database::open(&self.database.config, &MIGRATIONS).await.unwrap()
    }

    /// Runs a statement past the service.
    pub(crate) async fn execute(&self, sql: &'static str) {
        match self.database().await {
            Database::Sqlite(pool) => {
                let mut tx = pool.begin().await.unwrap();
                sqlx::query(sql).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
            Database::Postgres(pool) => {
                let mut tx = pool.begin().await.unwrap();
                sqlx::query(sql).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
        }
    }

    /// The number that a query past the service finds.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        match self.database().await {
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool.read()).await.unwrap(),
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool.read()).await.unwrap(),
        }
    }

    /// The service as `peer` reaches it.
    pub(crate) fn upstream(&self, peer: &str) -> Upstream {
        let config = UpstreamConfig { address: self.addr.to_string(), connections: 1 };
        Upstream::new(&self.ca.identity(peer).unwrap(), gateway_service::NAME, &config).unwrap()
    }

    pub(crate) fn registry(&self) -> GatewayServiceClient<Upstream> {
        GatewayServiceClient::new(self.upstream("edge-proxy"))
    }

    pub(crate) fn internal(&self) -> GatewayInternalServiceClient<Upstream> {
        GatewayInternalServiceClient::new(self.upstream("edge-proxy"))
    }

    pub(crate) fn operations(&self) -> GatewayOperationsServiceClient<Upstream> {
        GatewayOperationsServiceClient::new(self.upstream("edge-proxy"))
    }

    pub(crate) fn delivery(&self) -> DeliveryServiceClient<Upstream> {
        DeliveryServiceClient::new(self.upstream("project-service"))
    }

    /// A request of a user.
    pub(crate) fn by<T>(&self, user: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = format!("Bearer {}", self.signer.token(user, "*"));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        request
    }

    pub(crate) fn registration(&self, name: &str) -> RegisterGatewayRequest {
        RegisterGatewayRequest {
            organization_id: self.organization.clone(),
            name: name.into(),
            display_name: "Edge".into(),
            ..RegisterGatewayRequest::default()
        }
    }

    pub(crate) async fn register(&self, name: &str) -> Gateway {
        let request = self.by(ADMIN, self.registration(name));
        self.registry().register_gateway(request).await.unwrap().into_inner()
    }

    pub(crate) async fn rotate(&self, gateway_id: &str) -> Result<RotateTokenResponse, Status> {
        let request = self.by(ADMIN, RotateTokenRequest { gateway_id: gateway_id.into() });
        Ok(self.registry().rotate_token(request).await?.into_inner())
    }

    /// A gateway with a token.
    pub(crate) async fn gateway(&self, name: &str) -> (Gateway, RotateTokenResponse) {
        let gateway = self.register(name).await;
        let token = self.rotate(&gateway.id).await.unwrap();
        (gateway, token)
    }

    pub(crate) async fn is_active(&self, gateway_id: &str) -> bool {
        let request = proto::gateway::GetGatewayRequest { gateway_id: gateway_id.into() };
        self.registry().get_gateway(self.by(ADMIN, request)).await.unwrap().into_inner().is_active
    }

    pub(crate) async fn append(&self, events: Vec<NewEvent>) -> AppendEventsResponse {
        self.delivery().append_events(AppendEventsRequest { events }).await.unwrap().into_inner()
    }

    /// An event that deploys a new deployment of an API.
    pub(crate) fn deploy(&self, gateway_id: &str, api_id: &str) -> NewEvent {
        self.event(gateway_id, api_id, &self.ids.next(), "api.deployed")
    }

    pub(crate) fn event(&self, gateway_id: &str, api: &str, deployment: &str, event_type: &str) -> NewEvent {
        NewEvent {
            id: self.ids.next(),
            gateway_id: gateway_id.into(),
            r#type: event_type.into(),
            payload_json: format!(
                r#"{{"apiId":"{api}","deploymentId":"{deployment}","revisionId":"r","vhost":"","environment":"production"}}"#
            ),
            artifact_id: api.into(),
            deployment_id: deployment.into(),
            user_id: String::new(),
        }
    }
}

pub(crate) async fn listeners() -> Listeners {
    Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()
}

/// A request of a gateway.
pub(crate) fn with_key<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("api-key", token.parse().unwrap());
    request
}

/// The fields that a status names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    bad.into_iter().map(|violation| violation.field).collect()
}

/// The reason of a status.
pub(crate) fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
