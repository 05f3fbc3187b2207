//! The project-service as a process of its own.

use std::process::ExitCode;

use project_service::{DEFAULTS, NAME, start};

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::config::main(NAME, DEFAULTS, start).await
}
