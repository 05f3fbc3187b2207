//! The `auth-service` process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::config::main(auth_service::NAME, auth_service::DEFAULTS, auth_service::start).await
}
