//! `tollgate demo`: the whole story against a running suite, told step by step. It calls as a client of
//! the public API and as a gateway, and stops at the first answer that is not what the story needs.

mod document;
mod printer;
mod story;

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{ca_file, client::Client, demo::document::Document, demo::story::Story, trust::Trust};

/// How long the platform may take for what it does on its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// The flags of `tollgate demo`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Where the suite is.
    #[arg(long, value_name = "URL", default_value = "https://localhost:8443")]
    pub url: String,
    /// The suite's data folder, for its CA.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    pub data_dir: PathBuf,
    /// The CA to believe, instead of that of the data folder.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub ca: Option<PathBuf>,
    /// An OpenAPI 3 document to import, JSON or YAML; a pet store when it is not given.
    #[arg(long, value_name = "FILE")]
    pub openapi: Option<PathBuf>,
    /// The e-mail address to sign up with; a new one each time when it is not given.
    #[arg(long, value_name = "EMAIL")]
    pub email: Option<String>,
}

/// Tells the story.
///
/// # Errors
/// At the first answer that is not what the story needs, with that answer's text.
pub async fn run(options: Options) -> anyhow::Result<()> {
    service_kit::tls::install_provider();
    let ca = options.ca.unwrap_or_else(|| ca_file(&options.data_dir));
    let client = Client::new(&options.url, &Trust::from_ca_file(&ca)?)?;
    let document = match &options.openapi {
        Some(file) => Document::read(file)?,
        None => Document::built_in()?,
    };
    Story::new(client, document, options.email).tell().await
}
