//! The `tollgate` binary: the whole suite in one process, and a client that tries it.

use std::process::ExitCode;

/// That of the edge, which is most of what allocates here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    suite::cli::main().await
}
