//! The `tollgate` binary: the whole suite in one process, and a client that tries it.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    suite::cli::main().await
}
