//! The `edge-proxy` binary.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::config::main_from(edge_proxy::NAME, edge_proxy::DEFAULTS, edge_proxy::start).await
}
