//! `auth-service audit`: verifies the audit log, exports its heads.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use service_kit::{
    Clock,
    config::{Flags, report},
    seal::Sealer,
};

use super::{configured, database, say};
use crate::{
    NAME,
    domain::audit_log::{Evidence, Exporter, Summary, Verification},
    store,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Verify the audit log: every chain of events, and every exported head.
    ///
    /// Reads only, and may run beside the service. Ends with 0 when all is well, with 1 when something is
    /// wrong, after naming the first thing, and with 2 when it could not be verified.
    Verify(Verify),
    /// Export the heads that changed since the last export, now.
    Export,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// A folder of exported heads; may be repeated. Without it the configured one, which must be complete.
    #[arg(long, value_name = "FOLDER")]
    heads: Vec<PathBuf>,
    /// The public key that exported heads must be signed with, a JWK; may be repeated. Without it our own.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Verify one chain only: user:ID, organization:ID, nobody:DIGIT or system.
    #[arg(long, value_name = "CHAIN")]
    chain: Option<String>,
}

pub(super) async fn run(flags: &Flags, command: Command) -> ExitCode {
    match command {
        Command::Export => report(NAME, export(flags).await),
        Command::Verify(asked) => match verify(flags, asked).await {
            Ok(code) => code,
            Err(error) => {
                report(NAME, Err(error));
                ExitCode::from(2)
            }
        },
    }
}

async fn verify(flags: &Flags, asked: Verify) -> anyhow::Result<ExitCode> {
    let Some(config) = configured(flags)? else { return Ok(ExitCode::SUCCESS) };
    let evidence = Evidence::gather(&config, &asked.heads, &asked.key)?;
    let store = store::open(&database(&config).await?).audit_log;
    match Verification::new(store, evidence, asked.chain).run().await? {
        Ok(Summary { chains, events, heads }) => {
            say(&format!(
                "the audit log is intact: {events} events in {chains} chains, {heads} exported heads"
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(finding) => {
            say(&format!("the audit log is NOT intact: {finding}"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn export(flags: &Flags) -> anyhow::Result<()> {
    let Some(config) = configured(flags)? else { return Ok(()) };
    let file = &config.keys.sealing_key_file;
    // A new sealing key would open nothing that the service has sealed.
    anyhow::ensure!(file.is_file(), "there is no keys.sealing_key_file {}", file.display());
    let sealer =
        Sealer::load_or_create(file).with_context(|| format!("keys.sealing_key_file {}", file.display()))?;
    let store = store::open(&database(&config).await?).audit_log;
    let count = Exporter::new(&config, store, sealer, Clock::system()).export().await?;
    say(&format!("{count} heads exported to {}", config.audit.heads_folder.display()))
}
