//! Data sets through the public interface.

mod batches;
mod common;
mod fixture;
mod forms;
mod oracle;
mod safetensors;
mod sampler;
mod tokenizers;
