//! Training data: text and token ids in, batches of a step's inputs out.
mod batch;
mod chat;
mod dataset;
mod digest;
mod error;
mod example;
mod form;
mod jsonl;
mod pack;
mod permutation;
mod safetensors;
mod sampler;
mod spec;
mod tokenizer;

pub use batch::Batch;
pub use chat::Date;
pub use dataset::{Dataset, EvalSize, Options, Skipped, Summary};
pub use error::{
    ChatError, DataError, DataErrorKind, FileError, Place, RecordError, TokenizerError, UseError,
};
pub use form::Form;
pub use sampler::{Position, Sampler};
pub use spec::{InputSpec, Spec, SpecError, Task};
pub use tokenizer::Tokenizer;
