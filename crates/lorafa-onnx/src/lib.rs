//! ONNX files for lorafa-opt.
//!
//! | module | what it owns |
//! |---|---|
//! | [`mod@file`] | [`ModelFile`](file::ModelFile): a model opened, checked and decoded over a memory map, so no weight is copied |
//! | [`external`] | references to weights kept in other files, and the one place that reads them |
//! | [`tensor`] | a tensor's payload as little-endian bytes, whichever of the protobuf's seven fields holds it |
//! | [`mod@import`] | a model as a graph of the IR |
//! | [`mod@export`] | a graph of the IR as a model |
//! | [`mod@optimizer`] | the optimizer that onnxruntime-training writes next to a model |
//! | [`mod@map`] | a file as bytes, without reading it |
//! | [`mod@write`] | a model written whole or not at all |
//! | [`proto`] | the schema's types, generated ahead of time from `proto/onnx.proto` |
//!
//! ```no_run
//! use lorafa_onnx::{external::ExternalStore, file::ModelFile, tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelFile::open("model.onnx")?;
//! let store = ExternalStore::new(model.folder());
//! for weight in &model.graph().initializer {
//!     println!("{}: {} bytes", weight.name(), tensor::read(weight, &store)?.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A model is input from a stranger. Nothing here panics on one, follows a reference out of the model's
//! folder, or allocates by a size that the file only claims. Every error's text is complete by itself: what was
//! found, what was expected, and the remedy where there is one.

pub mod dtype;
pub mod export;
pub mod external;
pub mod file;
pub mod import;
pub mod map;
pub mod optimizer;
#[rustfmt::skip]
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod proto;
pub mod tensor;
mod wire;
pub mod write;
