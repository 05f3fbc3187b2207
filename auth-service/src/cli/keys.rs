//! `auth-service keys`: the keys that sign access tokens.

use clap::{Args, Subcommand};
use proto::time::Timestamp;
use service_kit::{Clock, config::Flags};

use super::{configured, say};
use crate::{
    Config,
    domain::keys::{KeyInfo, KeyState, Revoked, SigningKeys},
    signing_keys,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the keys, the oldest first: what each does, since when or from when, and its name.
    List,
    /// Publish the next key; it signs once everybody can know it.
    Rotate,
    /// Make a key worthless at once, and all access tokens that it has signed.
    Revoke(Key),
}

#[derive(Debug, Args)]
pub(super) struct Key {
    /// The name of the key.
    #[arg(value_name = "KID", allow_hyphen_values = true)]
    kid: String,
}

pub(super) async fn run(flags: &Flags, command: Command) -> anyhow::Result<()> {
    let Some(config) = configured(flags)? else { return Ok(()) };
    let keys = open(&config).await?;
    match command {
        Command::List => list(&keys).await,
        Command::Rotate => rotate(&keys).await,
        Command::Revoke(Key { kid }) => revoke(&keys, &kid).await,
    }
}

async fn open(config: &Config) -> anyhow::Result<SigningKeys> {
    signing_keys(config, Clock::system()).await
}

async fn list(keys: &SigningKeys) -> anyhow::Result<()> {
    for key in keys.list().await? {
        say(&line(&key))?;
    }
    Ok(())
}

async fn rotate(keys: &SigningKeys) -> anyhow::Result<()> {
    say(&line(&keys.rotate().await?))
}

async fn revoke(keys: &SigningKeys, kid: &str) -> anyhow::Result<()> {
    say(&match keys.revoke(kid).await? {
        Revoked::Apart => format!("{kid} is revoked; it was not the one that signs"),
        Revoked::ReplacedBy(successor) => format!("{kid} is revoked; {successor} signs now"),
        Revoked::Before => format!("{kid} is revoked, as before"),
    })
}

/// `signing 2026-08-22T10:00:00.000Z KID`.
fn line(key: &KeyInfo) -> String {
    let (state, time) = match key.state {
        KeyState::Waiting => ("waiting", key.activates_at),
        KeyState::Signing => ("signing", key.activates_at),
        KeyState::Retired => ("retired", key.activates_at),
        KeyState::Revoked => ("revoked", key.revoked_at.unwrap_or(key.activates_at)),
    };
    let time = Timestamp::from_unix_ms(time).to_rfc3339().unwrap_or_default();
    format!("{state} {time} {}", key.kid)
}
