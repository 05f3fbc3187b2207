#!/usr/bin/env bash
# Says what is missing to build Tollgate, and how to get it. Installs nothing.
set -euo pipefail

missing=0
need() { # PROGRAM WHAT HOW
    command -v "$1" > /dev/null && return
    printf 'missing: %s (%s)\n    %s\n' "$1" "$2" "$3" >&2
    missing=1
}
need cargo "Rust; the version is in rust-toolchain.toml" \
    "https://rustup.rs, or: apt-get install rustup; then open a new shell"
need rustc "Rust; the version is in rust-toolchain.toml" "as for cargo"
need cc "a C compiler, for aws-lc and SQLite" "Debian, Ubuntu: apt-get install gcc libc6-dev; macOS: xcode-select --install"
exit "$missing"
