//! Configuration: defaults < file < environment < flags. An unknown key is an error that names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, Parser};
use figment::{
    Figment,
    providers::{Env, Format as _, Toml},
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use crate::{
    server::{Listeners, Running},
    telemetry::TelemetryConfig,
};

/// The flags of every service, and of the commands of those that have some: flatten them.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// A TOML file over the defaults.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// A single setting over everything else; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
    /// Print the effective configuration as TOML, secrets hidden, and exit.
    #[arg(long, global = true)]
    print_config: bool,
}

/// The command line of a service without commands.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

impl Flags {
    /// The layers of a service's configuration: its defaults, and what the flags put over them.
    pub fn layers(&self, service: &str, defaults: &str) -> anyhow::Result<Layers> {
        let mut layers = Layers::new(defaults, self.config.as_ref(), &env_prefix(service))?;
        for setting in &self.set {
            let (key, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: no `=` in it"))?;
            layers = layers.set(key, value);
        }
        Ok(layers)
    }

    /// The same, to be read again.
    pub fn source(&self, service: &'static str, defaults: &'static str) -> Source {
        let flags = self.clone();
        Source::new(move || flags.layers(service, defaults))
    }

    /// Prints the configuration if the flags ask for that. Says whether they do: then there is nothing
    /// else to be done.
    pub fn print(&self, layers: &Layers) -> anyhow::Result<bool> {
        if self.print_config {
            std::io::Write::write_all(&mut std::io::stdout(), layers.print()?.as_bytes())?;
        }
        Ok(self.print_config)
    }
}

/// Where a configuration comes from: it can be read again, and may then be another.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn() -> anyhow::Result<Layers> + Send + Sync>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Source {
    /// What `read` finds.
    pub fn new(read: impl Fn() -> anyhow::Result<Layers> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Reads it.
    pub fn read(&self) -> anyhow::Result<Layers> {
        self.0()
    }
}

/// The layers of a configuration.
#[derive(Debug, Clone)]
pub struct Layers(Figment);

impl Layers {
    /// `defaults` is TOML; `prefix` that of environment variables, such as `TOLLGATE_AUTH__`.
    pub fn new(defaults: &str, file: Option<&PathBuf>, prefix: &str) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Toml::string(defaults));
        if let Some(file) = file {
            anyhow::ensure!(file.is_file(), "there is no configuration file {}", file.display());
            figment = figment.merge(Toml::file_exact(file));
        }
        Ok(Self(figment.merge(Env::prefixed(prefix).split("__"))))
    }

    /// Sets one key, `database.url=sqlite:x.db`. The value is read as TOML, or else as text.
    pub fn set(self, key: &str, value: &str) -> Self {
        let value = value.parse::<Value>().unwrap_or_else(|_| Value::from(value));
        Self(self.0.merge((key, value)))
    }

    /// The whole configuration.
    pub fn extract<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        self.0.extract().map_err(explain)
    }

    /// One section.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        self.0.extract_inner(name).map_err(explain)
    }

    /// The keys (`limits.connections`) that have another value in `other`, or are in one of the two only.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let flat = |layers: &Self| {
            let mut keys = BTreeMap::new();
            if let Ok(values) = layers.0.extract::<Dict>() {
                flatten(&values, "", &mut keys);
            }
            keys
        };
        let (one, two) = (flat(self), flat(other));
        let keys: BTreeSet<&String> = one.keys().chain(two.keys()).collect();
        keys.into_iter().filter(|key| one.get(*key) != two.get(*key)).cloned().collect()
    }

    /// The effective configuration as TOML, secrets hidden.
    pub fn print(&self) -> anyhow::Result<String> {
        let mut values: Dict = self.0.extract().map_err(explain)?;
        hide_secrets(&mut values);
        toml::to_string(&values).context("cannot print the configuration")
    }
}

fn flatten(values: &Dict, prefix: &str, keys: &mut BTreeMap<String, Value>) {
    for (key, value) in values {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) => flatten(inner, &key, keys),
            value => drop(keys.insert(key, value.clone())),
        }
    }
}

fn explain(error: figment::Error) -> anyhow::Error {
    let lines: Vec<String> = error
        .into_iter()
        .map(|error| match error.path.join(".") {
            key if key.is_empty() => error.to_string(),
            key => format!("{key}: {}", error.kind),
        })
        .collect();
    anyhow::anyhow!("the configuration is not valid: {}", lines.join("; "))
}

fn hide_secrets(values: &mut Dict) {
    for (key, value) in values.iter_mut() {
        match value {
            Value::Dict(_, inner) => hide_secrets(inner),
            Value::String(_, text) if key.ends_with("url") => {
                if let (Some(scheme), Some(at)) = (text.find("://"), text.rfind('@')) {
                    text.replace_range(scheme + 3..at, "***");
                }
            }
            Value::String(_, text) if !text.is_empty() && is_secret(key) => "***".clone_into(text),
            _ => {}
        }
    }
}

fn is_secret(key: &str) -> bool {
    ["password", "secret", "token", "passphrase"].iter().any(|word| key.ends_with(word))
}

/// The `main` of a service without commands.
pub async fn main<C, F>(
    service: &'static str,
    defaults: &'static str,
    start: fn(C, Listeners) -> F,
) -> ExitCode
where
    C: DeserializeOwned,
    F: Future<Output = anyhow::Result<Running>>,
{
    let flags = Cli::parse().flags;
    report(service, serve(&flags, service, defaults, start).await)
}

/// The same for a service that reads its configuration again while it runs.
pub async fn main_from<F>(
    service: &'static str,
    defaults: &'static str,
    start: fn(Source, Listeners) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<Running>>,
{
    let flags = Cli::parse().flags;
    report(service, serve_from(&flags, service, defaults, start).await)
}

/// The end of a process: an error goes to stderr.
pub fn report(service: &str, outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{service}: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Serves as the flags say: configuration, telemetry, bind, start, run until a signal.
pub async fn serve<C, F>(
    flags: &Flags,
    service: &'static str,
    defaults: &'static str,
    start: fn(C, Listeners) -> F,
) -> anyhow::Result<()>
where
    C: DeserializeOwned,
    F: Future<Output = anyhow::Result<Running>>,
{
    let start = async |source: Source, listeners| start(source.read()?.extract()?, listeners).await;
    serve_from(flags, service, defaults, start).await
}

/// The same for a service that reads its configuration again while it runs.
pub async fn serve_from(
    flags: &Flags,
    service: &'static str,
    defaults: &'static str,
    start: impl AsyncFnOnce(Source, Listeners) -> anyhow::Result<Running>,
) -> anyhow::Result<()> {
    let source = flags.source(service, defaults);
    let layers = source.read()?;
    if flags.print(&layers)? {
        return Ok(());
    }
    let _telemetry = crate::telemetry::init(&layers.section::<TelemetryConfig>("telemetry")?, service)?;
    crate::tls::install_provider();
    let (main, admin): (String, String) = (layers.section("listen")?, layers.section("admin_listen")?);
    // Only services that hand their ports over have such a setting.
    let reuse_port = layers.section("restart.reuse_port").unwrap_or(false);
    let listeners = Listeners::bind_as(&main, &admin, reuse_port).await?;
    start(source, listeners).await?.run().await
}

/// `TOLLGATE_AUTH__` of `auth-service`, `TOLLGATE_EDGE__` of `edge-proxy`.
pub fn env_prefix(service: &str) -> String {
    let stem = service.split('-').next().unwrap_or(service);
    format!("TOLLGATE_{}__", stem.to_uppercase())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::Layers;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        url: String,
        #[allow(dead_code, reason = "only its presence matters here")]
        password: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        database: Section,
    }

    const DEFAULTS: &str = "[database]\nurl = \"sqlite:a.db\"\npassword = \"\"\n";

    #[test]
    fn later_layers_win_and_secrets_are_hidden() {
        let layers = Layers::new(DEFAULTS, None, "TOLLGATE_TEST__").unwrap();
        let layers =
            layers.set("database.url", "postgres://u:canary@h/db").set("database.password", "canary");
        assert_eq!(layers.extract::<Config>().unwrap().database.url, "postgres://u:canary@h/db");
        let printed = layers.print().unwrap();
        assert!(printed.contains("postgres://***@h/db") && !printed.contains("canary"), "{printed}");
    }

    #[test]
    fn what_differs_is_named_by_its_key() {
        let layers = Layers::new(DEFAULTS, None, "TOLLGATE_TEST__").unwrap();
        assert!(layers.differing(&layers.clone()).is_empty());
        let other = layers.clone().set("database.url", "sqlite:b.db").set("more.of", "1");
        assert_eq!(layers.differing(&other), ["database.url", "more.of"]);
        assert_eq!(other.differing(&layers), ["database.url", "more.of"]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let layers = Layers::new(DEFAULTS, None, "TOLLGATE_TEST__").unwrap().set("database.pool", "3");
        let error = layers.extract::<Config>().unwrap_err().to_string();
        assert!(error.contains("pool"), "{error}");
    }
}
