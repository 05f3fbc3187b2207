//! What each service of the suite is told: its own defaults with the data folder in place of `data/`,
//! then the user's file, then the environment, then the sockets that were bound.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use service_kit::{
    config::{Layers, env_prefix},
    server::Listeners,
    telemetry::TelemetryConfig,
};
use toml::{Table, Value};

use crate::SuiteConfig;

/// The folder that the services' defaults keep everything in.
const DEFAULT_FOLDER: &str = "data/";

/// What is otherwise in the suite than in services on their own: in one process it is for development. There
/// mail may go nowhere, and one address is everybody.
const DEVELOPMENT: &str = "
[auth.account]
verify_email = false

[edge.limits]
credential_per_minute = 60
sign_up_per_hour = 600
mail_per_hour = 600
refresh_per_minute = 300
address_per_minute = 0
user_per_minute = 0
token_per_minute = 0
heavy_per_minute = 0
connections_per_address = 10000
";

/// Where the application is, as the services' defaults say.
const DEFAULT_URL: &str = "https://localhost:8443";

/// The settings of all services.
#[derive(Debug)]
pub struct Plan {
    /// auth-service.
    pub auth: Service,
    /// project-service.
    pub project: Service,
    /// gateway-service.
    pub gateway: Service,
    /// edge-proxy.
    pub edge: Service,
}

/// The settings of one service.
#[derive(Debug)]
pub struct Service {
    /// The service's name.
    pub name: &'static str,
    /// Its section in the suite's file.
    pub section: &'static str,
    /// Its settings.
    pub layers: Layers,
    upstreams: Vec<String>,
}

impl Plan {
    /// Reads defaults, file and environment.
    pub fn read(config: &SuiteConfig) -> anyhow::Result<Self> {
        let mut file = match &config.file {
            Some(file) => read_file(file)?,
            None => Table::new(),
        };
        let folder = &config.data_dir;
        let mut service = |name, section, defaults| {
            let over = match file.remove(section) {
                Some(Value::Table(over)) => over,
                Some(_) => anyhow::bail!("{section} must be a section"),
                None => Table::new(),
            };
            Service::read(name, section, defaults, folder, over)
        };
        let mut plan = Self {
            auth: service(auth_service::NAME, "auth", auth_service::DEFAULTS)?,
            project: service(project_service::NAME, "project", project_service::DEFAULTS)?,
            gateway: service(gateway_service::NAME, "gateway", gateway_service::DEFAULTS)?,
            edge: service(edge_proxy::NAME, "edge", edge_proxy::DEFAULTS)?,
        };
        if let Some(unknown) = file.keys().next() {
            anyhow::bail!("unknown section [{unknown}]: there are [auth], [project], [gateway] and [edge]");
        }
        plan.edge.set("listen", &config.listen);
        if config.listen.ends_with(":0") {
            plan.edge.any_port("admin_listen")?;
            for service in [&mut plan.auth, &mut plan.project, &mut plan.gateway] {
                service.any_port("listen")?;
                service.any_port("admin_listen")?;
            }
        }
        Ok(plan)
    }

    /// Tells every service that calls `upstream` where it is.
    pub fn connect(&mut self, upstream: &str, address: SocketAddr) {
        for service in [&mut self.auth, &mut self.project, &mut self.gateway, &mut self.edge] {
            if service.upstreams.iter().any(|name| name == upstream) {
                service.set(&format!("upstreams.{upstream}.address"), &address.to_string());
            }
        }
    }

    /// Lets the services hear each other, unless the settings name another bus.
    pub fn share_bus(&mut self) -> anyhow::Result<()> {
        static SUITES: AtomicU64 = AtomicU64::new(0);
        let own = format!("memory:suite-{}", SUITES.fetch_add(1, Ordering::Relaxed));
        for service in [&mut self.project, &mut self.gateway, &mut self.edge] {
            let url: String = service.layers.section("bus.url")?;
            if url == "memory" {
                service.set("bus.url", &own);
            }
        }
        Ok(())
    }

    /// Links in mail lead to where the suite is, and passkeys belong there, unless the settings name another
    /// place.
    pub fn publish(&mut self, url: &str) -> anyhow::Result<()> {
        let public_url: String = self.auth.layers.section("account.public_url")?;
        if public_url == DEFAULT_URL {
            self.auth.set("account.public_url", url);
        }
        let origins: Vec<String> = self.auth.layers.section("passkeys.origins")?;
        if origins == [DEFAULT_URL] {
            self.auth.layers = self.auth.layers.clone().set("passkeys.origins", &format!("[\"{url}\"]"));
        }
        Ok(())
    }

    /// Whether every service would take its settings.
    ///
    /// # Errors
    /// Names what is unknown or of the wrong type.
    pub fn check(&self) -> anyhow::Result<()> {
        self.auth.check::<auth_service::Config>()?;
        self.project.check::<project_service::Config>()?;
        self.gateway.check::<gateway_service::Config>()?;
        self.edge.check::<edge_proxy::Config>()
    }

    /// How the process logs and traces: as the edge is told.
    pub fn telemetry(&self) -> anyhow::Result<TelemetryConfig> {
        self.edge.layers.section("telemetry")
    }

    /// The effective settings of all services as TOML, secrets hidden.
    pub fn print(&self) -> anyhow::Result<String> {
        let mut all = Table::new();
        for service in [&self.auth, &self.project, &self.gateway, &self.edge] {
            let values: Table = service.layers.print()?.parse()?;
            all.insert(service.section.to_owned(), Value::Table(values));
        }
        Ok(toml::to_string(&all)?)
    }
}

impl Service {
    fn read(
        name: &'static str,
        section: &'static str,
        defaults: &str,
        folder: &Path,
        over: Table,
    ) -> anyhow::Result<Self> {
        let mut values: Table = defaults.parse().with_context(|| format!("the defaults of {name}"))?;
        let folder = folder.to_str().context("the data folder's name is not UTF-8")?;
        move_folder(&mut values, folder);
        if let Some(reflection) = values.get_mut("reflection") {
            *reflection = Value::Boolean(true);
        }
        if let Some(Value::Table(development)) = DEVELOPMENT.parse::<Table>()?.remove(section) {
            merge(&mut values, development);
        }
        merge(&mut values, over);
        let upstreams = match values.get("upstreams") {
            Some(Value::Table(upstreams)) => upstreams.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let layers = Layers::new(&toml::to_string(&values)?, None, &env_prefix(name))?;
        Ok(Self { name, section, layers, upstreams })
    }

    fn check<C: serde::de::DeserializeOwned>(&self) -> anyhow::Result<()> {
        self.layers.extract::<C>().map(drop).with_context(|| format!("[{}]", self.section))
    }

    /// Binds the service's sockets.
    pub async fn bind(&self) -> anyhow::Result<Listeners> {
        let (main, admin): (String, String) =
            (self.layers.section("listen")?, self.layers.section("admin_listen")?);
        Listeners::bind(&main, &admin).await.with_context(|| self.name)
    }

    fn set(&mut self, key: &str, text: &str) {
        // Quoted, because `[::1]:8443` would read as a list.
        self.layers = self.layers.clone().set(key, &format!("\"{text}\""));
    }

    fn any_port(&mut self, key: &str) -> anyhow::Result<()> {
        let address: String = self.layers.section(key)?;
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        self.set(key, &format!("{host}:0"));
        Ok(())
    }
}

fn read_file(file: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
    text.parse().with_context(|| format!("{} is not TOML", file.display()))
}

/// Puts `folder` in place of `data/` wherever a default keeps something.
fn move_folder(values: &mut Table, folder: &str) {
    for (_, value) in values.iter_mut() {
        match value {
            Value::Table(inner) => move_folder(inner, folder),
            Value::String(text) => {
                for scheme in ["", "sqlite:"] {
                    let rest = text.strip_prefix(scheme).and_then(|path| path.strip_prefix(DEFAULT_FOLDER));
                    if let Some(rest) = rest {
                        *text = format!("{scheme}{folder}/{rest}");
                        break;
                    }
                }
            }
            _ => {}
        }
    }
}

fn merge(values: &mut Table, over: Table) {
    for (key, value) in over {
        match (values.get_mut(&key), value) {
            (Some(Value::Table(values)), Value::Table(over)) => merge(values, over),
            (_, value) => drop(values.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::Plan;
    use crate::SuiteConfig;

    fn plan(file: Option<&str>, listen: &str) -> anyhow::Result<Plan> {
        let folder = tempfile::tempdir().unwrap();
        let file = file.map(|text| {
            let path = folder.path().join("suite.toml");
            std::fs::write(&path, text).unwrap();
            path
        });
        Plan::read(&SuiteConfig { data_dir: PathBuf::from("/x/y"), listen: listen.to_owned(), file })
    }

    #[test]
    fn everything_lies_under_the_data_folder() {
        let mut plan = plan(None, "127.0.0.1:0").unwrap();
        for upstream in ["auth", "project", "gateway"] {
            plan.connect(upstream, "[::1]:77".parse().unwrap());
        }
        let printed = plan.print().unwrap();
        assert!(!printed.contains("\"data/") && !printed.contains(":data/"), "{printed}");
        for wanted in [
            "sqlite:/x/y/auth.db",
            "sqlite:/x/y/project.db",
            "sqlite:/x/y/gateway.db",
            "/x/y/mail",
            "/x/y/audit-heads",
            "[::1]:77",
        ] {
            assert!(printed.contains(wanted), "{wanted} is missing in {printed}");
        }
        let table: toml::Table = printed.parse().unwrap();
        assert_eq!(table["auth"]["upstreams"]["project"]["address"].as_str(), Some("[::1]:77"));
        assert!(!printed.contains("127.0.0.1:9001") && !printed.contains("127.0.0.1:12000"), "{printed}");
        plan.check().unwrap();
    }

    #[test]
    fn links_lead_to_the_suite_unless_the_file_says_where() {
        let mut plan_without = plan(None, "127.0.0.1:0").unwrap();
        plan_without.publish("https://localhost:4711").unwrap();
        let printed = plan_without.print().unwrap();
        assert!(printed.contains("public_url = \"https://localhost:4711\""), "{printed}");
        assert!(printed.contains("origins = [\"https://localhost:4711\"]"), "{printed}");
        let file = "[auth.account]\npublic_url = \"https://app.example.com\"\n";
        let mut plan_with = plan(Some(file), "127.0.0.1:0").unwrap();
        plan_with.publish("https://localhost:4711").unwrap();
        assert!(plan_with.print().unwrap().contains("public_url = \"https://app.example.com\""));
    }

    #[test]
    fn a_given_port_leaves_the_internal_ones_as_they_are() {
        let printed = plan(None, "127.0.0.1:9443").unwrap().print().unwrap();
        for wanted in ["127.0.0.1:9443", "127.0.0.1:9000", "127.0.0.1:10001", "127.0.0.1:12000"] {
            assert!(printed.contains(wanted), "{wanted} is missing in {printed}");
        }
    }

    #[test]
    fn the_suite_is_for_development_unless_the_file_says_otherwise() {
        let read = |file| plan(file, "127.0.0.1:0").unwrap().print().unwrap().parse::<toml::Table>().unwrap();
        let table = read(None);
        assert_eq!(table["auth"]["account"]["verify_email"].as_bool(), Some(false));
        assert_eq!(table["auth"]["reflection"].as_bool(), Some(true));
        let limit = |table: &toml::Table, name: &str| table["edge"]["limits"][name].as_integer();
        assert_eq!(limit(&table, "credential_per_minute"), Some(60));
        assert_eq!(limit(&table, "sign_up_per_hour"), Some(600));
        assert_eq!(limit(&table, "gateway_connects_per_minute"), Some(10));
        let file = "[auth.account]\nverify_email = true\n[edge.limits]\nsign_up_per_hour = 7\n";
        let table = read(Some(file));
        assert_eq!(table["auth"]["account"]["verify_email"].as_bool(), Some(true));
        assert_eq!(limit(&table, "sign_up_per_hour"), Some(7));
        assert_eq!(limit(&table, "refresh_per_minute"), Some(300));
        assert_eq!(table["edge"]["limits"]["idle_seconds"].as_integer(), Some(300));
    }

    #[test]
    fn the_file_wins_over_defaults_and_unknown_keys_are_named() {
        let file = "[auth.database]\nurl = \"postgres://u:canary@h/db\"\n[auth.password]\niterations = 3\n";
        let plan_with_file = plan(Some(file), "127.0.0.1:0").unwrap();
        let printed = plan_with_file.print().unwrap();
        assert!(printed.contains("postgres://***@h/db") && !printed.contains("canary"), "{printed}");
        assert!(printed.contains("iterations = 3"), "{printed}");
        let unknown = plan(Some("[auht]\nx = 1\n"), "127.0.0.1:0").unwrap_err().to_string();
        assert!(unknown.contains("auht"), "{unknown}");
        let unknown = plan(Some("[auth]\nlissten = 1\n"), "127.0.0.1:0").unwrap().check();
        assert!(format!("{:#}", unknown.unwrap_err()).contains("lissten"));
    }
}
