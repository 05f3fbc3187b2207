#!/usr/bin/env bash
# What `make edge` runs: builds the edge for what it does most (profile-guided optimisation). An edge that counts what
# it does works for the mixed clients of the soak test; then the compiler goes by the counts. The result is
# target/profiled/edge-proxy. TRAIN_SECONDS=n seconds of work (30).
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
merge=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if ! [ -x "$merge" ]; then
    if ! command -v rustup > /dev/null; then
        echo "missing: llvm-profdata of this very Rust; with rustup: rustup component add llvm-tools" >&2
        exit 1
    fi
    rustup component add llvm-tools
fi

mkdir -p "${CARGO_TARGET_DIR:-target}/profiled"
work=$(cd "${CARGO_TARGET_DIR:-target}/profiled" && pwd)
# Cargo does not see that counts have changed: what was built by others must not stay.
rm -rf "$work/edge-proxy" "$work/counts" "$work/by-counts"

build() { # FOLDER FLAG
    # With a target that is named, build scripts and macros are built without the flag.
    RUSTFLAGS="${RUSTFLAGS:-} $2" cargo build --locked --release -p edge-proxy --target "$host" --target-dir "$work/$1"
}
echo "building an edge that counts ..." >&2
build counting "-Cprofile-generate=$work/counts"
echo "letting it work ..." >&2
# Of what it counts most should be what clients do most.
EDGE=$work/counting/$host/release/edge-proxy SOAK_ORDINARY=20 SOAK_SECONDS=${TRAIN_SECONDS:-30} \
    cargo test --locked --workspace --test soak
"$merge" merge --output "$work/counts/all.profdata" "$work/counts"/*.profraw
echo "building the edge by the counts ..." >&2
build by-counts "-Cprofile-use=$work/counts/all.profdata"
cp "$work/by-counts/$host/release/edge-proxy" "$work/edge-proxy"
rm -rf "$work/counts" "$work/by-counts"
