//! The `edge-proxy` binary.

use std::process::ExitCode;

/// Calls are many blocks that live for a moment: the system's allocator takes a tenth more of a core for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::config::main_from(edge_proxy::NAME, edge_proxy::DEFAULTS, edge_proxy::start).await
}
