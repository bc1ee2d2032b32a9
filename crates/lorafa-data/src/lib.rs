//! Training data: text and token ids in, batches of a step's inputs out.
//!
//! ```text
//!  tokenizer.json ──▶ Tokenizer ─┐                      ┌─ split ─▶ train, eval
//!                                ▼                      │
//!  *.jsonl ───── form ─▶ Record ─┬─▶ Example ─▶ Dataset ┤              Batch: every input of the Spec,
//!  *.safetensors ─ rows ─────────┘      cut     packed? │                ▲    padded to its shape
//!                                                       └─ Sampler ─ rows ┘
//! ```
//!
//! A step is static: each of its inputs has a fixed shape, `[batch, sequence]` as a rule. A [`Spec`] names the inputs; a
//! [`Dataset`] reads files into unpadded examples that fit; a [`Sampler`] says which rows come next, and
//! [`Dataset::batch`] makes them tensors. Token ids are those of transformers, masks of prompts those of TRL; the tests ask
//! both.
//!
//! ```no_run
//! use lorafa_data::{Dataset, InputSpec, Options, Sampler, Spec, Task, Tokenizer};
//!
//! # fn main() -> Result<(), lorafa_data::DataError> {
//! let input = |name: &str| InputSpec { name: name.to_owned(), shape: vec![4, 512] };
//! let spec = Spec {
//!     task: Task::CausalLm,
//!     batch: 4,
//!     inputs: ["input_ids", "attention_mask", "labels"].map(input).to_vec(),
//!     vocab: Some(32000),
//!     classes: None,
//! };
//! let tokenizer = Tokenizer::open("llama/tokenizer.json")?;
//! let data = Dataset::load(&["chat.jsonl"], &spec, Some(&tokenizer), &Options::default())?;
//! let mut sampler = Sampler::new(data.len(), 4, 42, true)?;
//! let batch = data.batch(&sampler.next_batch())?;
//! assert_eq!(batch.inputs["input_ids"].len(), 4 * 512);
//! # Ok(())
//! # }
//! ```
//!
//! What is done to a text, by task:
//!
//! | form ([`Form`]) | tokens | what trains |
//! |---|---|---|
//! | text | the text and the end-of-sequence token | all |
//! | prompt and completion, Alpaca | both joined and the end-of-sequence token | the completion |
//! | chat, ShareGPT | the chat template's text, which has its own special tokens | what the assistant says |
//! | text and label | the text, or a pair, cut so that special tokens stay | its class |
//! | source and target | each by itself, cut so that special tokens stay | the target |
//! | token ids | as they are | as `labels` says |
//!
//! The end-of-sequence token is not repeated where the text or the post-processor has it, nor the beginning-of-sequence token
//! where the text begins with it. Sequences that are too long lose their end ([`Summary::truncated`]).
//!
//! | to | go to |
//! |---|---|
//! | add a form of JSON lines | `form` |
//! | read another kind of file | a reader like `jsonl` or `safetensors`, then `dataset` |
//! | change what trains, or how an example is cut | `example` |
//! | know how templates are rendered, and answers found | `chat`; what they expect of Python, `chat/python` |
//! | know what is read next to tokenizer.json | `tokenizer/folder` |
//! | make another input | [`Task::inputs`] and `batch` |
//! | change how examples share rows | `pack` |
//! | know the order of training to the bit | `sampler`, `permutation` |

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
