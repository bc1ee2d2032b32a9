#!/bin/sh
# Every test there is. Needs Rust, a C linker, and Python 3 with pip for the onnxruntime run, which sets up its own
# environment in .venv.
set -eu
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; "$@"; }
export RUSTDOCFLAGS="-D warnings"
# Snapshots are compared, never written.
export INSTA_UPDATE=no
step cargo fmt --all --check
step cargo clippy --locked --workspace --all-targets -- -D warnings
step cargo doc --locked --workspace --no-deps
step cargo test --locked --workspace
step cargo build --locked --release -p lorafa-cli
step tests/conformance/run.sh --bin target/release/lorafa-opt
