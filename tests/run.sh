#!/bin/sh
# Every test there is. Needs Rust, a C++ compiler, and Python 3 with pip: the onnxruntime run sets up its own environment
# in .venv, and libtorch is installed into .libtorch (545 MB) unless LIBTORCH says where there is one. What PEFT needs to load
# what is saved is installed there, too (59 MB), next to a libtorch of its own if LIBTORCH names another.
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
LIBTORCH="$(crates/lorafa-exec/setup.sh)"
export LIBTORCH
# The crates that know libtorch again, with it.
torch="-p lorafa-exec -p lorafa-train -p lorafa-cli --features lorafa-exec/torch,lorafa-train/torch,lorafa-cli/torch"
step cargo clippy --locked $torch --all-targets -- -D warnings
step cargo doc --locked $torch --no-deps
step cargo test --locked -p lorafa-exec --features torch
step cargo test --locked -p lorafa-cli --features torch --lib --bins --test train
# The tests of lorafa-cli have built the binary, with libtorch.
step bench/smoke.sh --bin target/debug/lorafa-opt
step tests/cuda/run.py --bin target/debug/lorafa-opt
step tests/conformance/run.sh --bin target/debug/lorafa-opt
step tests/peft/load.sh
