//! Weights in files: checkpoints of Hugging Face and onnxruntime-training in, PEFT adapters and merged models out.
//!
//! ```text
//! model folder ──Shards::open──▶ Shards ──bind──────▶ Graph ──training──▶ Values ──peft::write──▶ adapter folder
//! adapter folder ──peft::read──▶ Saved ──peft::bind──▶  │                   └─────merge::write──▶ model folder
//! ```
//!
//! Files are memory-mapped, and a weight of the graph is a slice of the map: nothing is copied, and nothing converted, before
//! a value is used. What is written is written to the disk under another name first, and gets its own when it is whole.
//!
//! | to | go to |
//! |---|---|
//! | open a checkpoint | [`shards`]; onnxruntime-training's format is in `ort_checkpoint.rs` |
//! | know how names are matched, or handle another spelling | [`mod@bind`], [`names`] |
//! | read or write adapters, or one more field of their configuration | [`peft`] |
//! | write a model with its adapters merged | [`merge`] |
//! | know which files go with weights, and which stay when a folder is replaced | [`side_files`] |
//! | write any folder whole or not at all, any safetensors file piece by piece | [`atomic_dir`], [`safetensors_file`] |
//! | change a message | [`error`] |
//!
//! ```no_run
//! use lorafa_weights::{Values, peft, shards::Shards};
//! # use lorafa_onnx::external::ExternalStore;
//!
//! # fn f(mut graph: lorafa_ir::Graph) -> Result<(), Box<dyn std::error::Error>> {
//! println!("{}", lorafa_weights::bind(&mut graph, &Shards::open("llama-2-7b")?)?);
//! let store = ExternalStore::new(".");
//! lorafa_weights::missing(&graph, &store)?;
//! let values = Values { store: &store, trained: None };
//! peft::write("adapter", &graph, values, peft::Info::default())?;
//! # Ok(())
//! # }
//! ```

mod adapters;
pub mod atomic_dir;
pub mod bind;
mod dtype;
pub mod error;
pub mod merge;
pub mod names;
mod ort_checkpoint;
pub mod peft;
pub mod safetensors_file;
pub mod shards;
pub mod side_files;
mod values;
mod weight;

pub use bind::{bind, missing};
pub use error::{SaveError, WeightsError};
pub use values::{Trained, Values};
