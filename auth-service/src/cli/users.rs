//! `auth-service users`: what an operator does to accounts.

use clap::{Args, Subcommand};
use service_kit::config::Flags;

use super::{configured, database, journal, say};
use crate::{domain::accounts::set_disabled, store};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Disable an account: nobody can log in to it, its sessions and personal tokens end at once.
    Disable(Account),
    /// Enable an account that was disabled. What was ended stays ended.
    Enable(Account),
}

#[derive(Debug, Args)]
pub(super) struct Account {
    /// The e-mail address of the account.
    #[arg(value_name = "EMAIL")]
    email: String,
}

pub(super) async fn run(flags: &Flags, command: Command) -> anyhow::Result<()> {
    let Some(config) = configured(flags)? else { return Ok(()) };
    let (email, disabled) = match command {
        Command::Disable(account) => (account.email, true),
        Command::Enable(account) => (account.email, false),
    };
    let stores = store::open(&database(&config).await?);
    let changed = set_disabled(&stores, &journal(), &email, disabled).await?;
    let state = if disabled { "disabled" } else { "enabled" };
    say(&format!("{email} is {state}{}", if changed { "" } else { ", as before" }))
}
