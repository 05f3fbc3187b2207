//! The command line of auth-service: without a command it serves, with one it does a single thing on the
//! configured database, beside a running service or without one.

mod audit;
mod keys;
mod users;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};
use service_kit::{
    Clock, Ids,
    config::{Flags, report, serve},
    db::Database,
};

use crate::{Config, DEFAULTS, NAME, domain::audit::Journal, start};

/// Accounts, sessions and the keys that sign access tokens. Serves until SIGTERM or SIGINT when there is
/// no command.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work on the audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Work on the keys that sign access tokens.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Work on accounts.
    #[command(subcommand)]
    Users(users::Command),
}

/// Reads the command line and does what it says.
pub async fn main() -> ExitCode {
    let Cli { flags, command } = Cli::parse();
    match command {
        None => report(NAME, Box::pin(serve(&flags, NAME, DEFAULTS, start)).await),
        Some(Command::Audit(command)) => Box::pin(audit::run(&flags, command)).await,
        Some(Command::Keys(command)) => report(NAME, keys::run(&flags, command).await),
        Some(Command::Users(command)) => report(NAME, users::run(&flags, command).await),
    }
}

/// The configuration for a command; `None` when the flags only ask to see it.
fn configured(flags: &Flags) -> anyhow::Result<Option<Config>> {
    let layers = flags.layers(NAME, DEFAULTS)?;
    let config: Config = layers.extract()?;
    config.check()?;
    Ok(if flags.print(&layers)? { None } else { Some(config) })
}

/// The database for a command. It must be there, with the tables of this version.
async fn database(config: &Config) -> anyhow::Result<Database> {
    Database::open_existing(&config.database, &sqlx::migrate!()).await
}

/// Begins the events of what a command does.
fn journal() -> Journal {
    let clock = Clock::system();
    Journal::new(clock.clone(), Ids::new(clock))
}

/// Tells what was done.
fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
