//! A running auth-service with a database, a clock and clients of its own.

use auth_service::{Config, DEFAULTS};
use proto::auth::{
    LoginRequest, RefreshRequest, SignUpRequest, TokenPair, User, auth_service_client::AuthServiceClient,
    key_service_client::KeyServiceClient,
};
use service_kit::{
    Clock, Error, Kind,
    client::{Upstream, UpstreamConfig},
    config::Layers,
    server::{Listeners, Running},
    testing::TestDatabase,
    tls::Identity,
};
use tempfile::TempDir;
use tonic::{Request, Response, Status};

/// The time at which every test begins, in Unix milliseconds.
pub(crate) const START: i64 = 1_766_000_000_000;
pub(crate) const PASSWORD: &str = "canary-p4ss-of-a-test";

pub(crate) type Client = AuthServiceClient<Upstream>;

/// What an instance runs on.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) clock: Clock,
    pub(crate) database: TestDatabase,
    pub(crate) config: Config,
    _folder: TempDir,
}

/// A running instance.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(crate) running: Running,
    setup: Setup,
}

impl std::ops::Deref for Auth {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl Setup {
    pub(crate) fn new(database: TestDatabase) -> Self {
        service_kit::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let config = config(&database, &folder);
        Self { clock: Clock::fixed(START), database, config, _folder: folder }
    }

    /// Starts an instance; several may run on one setup.
    pub(crate) async fn launch(&self) -> Running {
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let start = auth_service::start_at(self.config.clone(), listeners, self.clock.clone());
        Box::pin(start).await.unwrap()
    }

    pub(crate) fn upstream_to(&self, running: &Running, from: &str) -> Upstream {
        let identity = Identity::load(&self.config.tls, from).unwrap();
        let config = UpstreamConfig { address: running.addr.to_string(), connections: 1 };
        Upstream::new(&identity, "auth-service", &config).unwrap()
    }
}

impl Auth {
    pub(crate) async fn start(database: TestDatabase) -> Self {
        Self::over(Setup::new(database)).await
    }

    pub(crate) async fn over(setup: Setup) -> Self {
        Self { running: setup.launch().await, setup }
    }

    /// Stops it and starts it again over the same data, with a changed configuration.
    pub(crate) async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { running, mut setup } = self;
        running.shutdown().await;
        change(&mut setup.config);
        Self { running: setup.launch().await, setup }
    }

    /// A channel of a service that calls this one.
    pub(crate) fn upstream(&self, from: &str) -> Upstream {
        self.upstream_to(&self.running, from)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.upstream("edge-proxy"))
    }

    pub(crate) fn keys(&self) -> KeyServiceClient<Upstream> {
        KeyServiceClient::new(self.upstream("edge-proxy"))
    }

    /// Signs somebody up and logs him in.
    pub(crate) async fn user(&self, email: &str) -> (User, TokenPair) {
        let user = self.client().sign_up(sign_up(email)).await.unwrap().into_inner();
        (user, login(&self.client(), email, PASSWORD).await.unwrap())
    }
}

fn config(database: &TestDatabase, folder: &TempDir) -> Config {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut config: Config = Layers::new(DEFAULTS, None, "TOLLGATE_AUTH_TEST__")
        .unwrap()
        .set("tls.dev_ca_dir", &path("tls"))
        .set("keys.sealing_key_file", &path("at-rest.key"))
        .set("mail.folder", &path("mail"))
        .set("audit.heads_folder", &path("heads"))
        .set("audit.export_every", "3600")
        .set("account.verify_email", "false")
        .extract()
        .unwrap();
    config.database = database.config.clone();
    config
}

/// Runs a test on an empty SQLite and an empty PostgreSQL database.
pub(crate) async fn on_both(test: impl AsyncFn(Auth)) {
    for database in TestDatabase::both() {
        Box::pin(test(Auth::start(database).await)).await;
    }
}

pub(crate) fn sign_up(email: &str) -> SignUpRequest {
    SignUpRequest { email: email.into(), password: PASSWORD.into(), name: "Jane Doe".into() }
}

pub(crate) async fn login(client: &Client, email: &str, password: &str) -> Result<TokenPair, Error> {
    let request = LoginRequest { email: email.into(), password: password.into(), ..LoginRequest::default() };
    answer(client.clone().login(request).await)
}

pub(crate) async fn refresh(client: &Client, token: &str) -> Result<TokenPair, Error> {
    answer(client.clone().refresh(RefreshRequest { refresh_token: token.into() }).await)
}

/// A request with an access token.
pub(crate) fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub(crate) fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(Error::from)
}

/// What a refusal says to programs.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (Kind, String) {
    let error = answer.unwrap_err();
    (error.kind(), error.reason().to_owned())
}

/// The fields that a refusal names.
pub(crate) fn fields<T: std::fmt::Debug>(answer: Result<T, Error>) -> Vec<String> {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    let mut fields: Vec<String> =
        error.violations().iter().map(|violation| violation.field.clone()).collect();
    fields.dedup();
    fields
}
