//! The command line of `tollgate`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use service_kit::config::Flags;

use crate::{Suite, SuiteConfig, ca_file, demo, settings::Plan};

/// The whole of Tollgate in one process.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start every service and serve until SIGTERM or SIGINT.
    Up(Up),
    /// Run one service as a process of its own, like its own binary.
    Serve(Serve),
    /// Tell the whole story against a running suite, from sign-up to an API on a gateway.
    Demo(demo::Options),
}

#[derive(Debug, Args)]
struct Up {
    /// The folder for databases, keys and the development CA.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Where to serve; with port 0 every internal listener takes a free port too.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8443")]
    listen: String,
    /// A TOML file with sections [auth], [project], [gateway] and [edge] over the services' defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as TOML, secrets hidden, and exit.
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Args)]
struct Serve {
    /// Which service.
    #[arg(value_enum)]
    service: ServiceName,
    #[command(flatten)]
    flags: Flags,
}

/// The services, by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServiceName {
    AuthService,
    ProjectService,
    GatewayService,
    EdgeProxy,
}

/// Reads the flags and does what they say.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Up(up) => Box::pin(run(up)).await,
        Command::Serve(one) => Box::pin(serve(one)).await,
        Command::Demo(options) => Box::pin(demo::run(options)).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to hear that stderr is closed.
            let _ = writeln!(std::io::stderr(), "tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(Serve { service, flags }: Serve) -> anyhow::Result<()> {
    use service_kit::config::{serve, serve_from};
    let flags = &flags;
    match service {
        ServiceName::AuthService => {
            Box::pin(serve(flags, auth_service::NAME, auth_service::DEFAULTS, auth_service::start)).await
        }
        ServiceName::ProjectService => {
            let (name, defaults) = (project_service::NAME, project_service::DEFAULTS);
            Box::pin(serve(flags, name, defaults, project_service::start)).await
        }
        ServiceName::GatewayService => {
            let (name, defaults) = (gateway_service::NAME, gateway_service::DEFAULTS);
            Box::pin(serve(flags, name, defaults, gateway_service::start)).await
        }
        ServiceName::EdgeProxy => {
            Box::pin(serve_from(flags, edge_proxy::NAME, edge_proxy::DEFAULTS, edge_proxy::start)).await
        }
    }
}

async fn run(up: Up) -> anyhow::Result<()> {
    let data_dir = up.data_dir.clone();
    let config = SuiteConfig { data_dir: up.data_dir, listen: up.listen, file: up.config };
    let plan = Plan::read(&config)?;
    plan.check()?;
    if up.print_config {
        return Ok(std::io::stdout().write_all(plan.print()?.as_bytes())?);
    }
    let _telemetry = service_kit::telemetry::init(&plan.telemetry()?, "tollgate")?;
    // Listened for from the very beginning, so that a signal while starting is not lost.
    let mut signal = Box::pin(service_kit::shutdown::signal());
    let suite = tokio::select! {
        suite = Box::pin(Suite::start(config)) => suite?,
        signal = &mut signal => return signal,
    };
    writeln!(std::io::stdout(), "ready {}", suite.edge_url())?;
    writeln!(std::io::stderr(), "{}", hints(suite.edge_url(), &data_dir))?;
    tokio::select! {
        signal = &mut signal => signal?,
        reason = suite.failure() => anyhow::bail!("{reason}"),
    }
    tracing::info!("draining; a second signal ends at once");
    suite.shutdown().await;
    Ok(())
}

fn hints(url: &str, data_dir: &std::path::Path) -> String {
    let (ca, folder) = (ca_file(data_dir), data_dir.display());
    let ca = ca.display();
    let body = r#"{"email":"you@example.com","password":"correct horse battery","name":"You"}"#;
    format!(
        "\nTollgate is ready at {url}\n\
         \n  trust      {ca}\n  the story  make demo    (or: tollgate demo --url {url} --data-dir {folder})\n  \
         the API    {url}/openapi.json\n  \
         by hand    curl --cacert {ca} {url}/api/v1/auth/signup \\\n               \
         -H 'content-type: application/json' -d '{body}'\n"
    )
}
