//! Weights in and out, against what PyTorch gave and against files that do not fit.

mod atomic_dir;
mod checkpoints;
mod common;
#[path = "../../../lorafa-ir/tests/common/decompose.rs"]
mod decompose;
mod ort_checkpoints;
mod saved;
