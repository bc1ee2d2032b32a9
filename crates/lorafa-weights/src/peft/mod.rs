//! Adapters in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! | in the graph | in the file |
//! |---|---|
//! | `base_model.model.model.layers.0.q_proj.lora_A.default.weight` | `base_model.model.model.layers.0.q_proj.lora_A.weight` |
//! | `base_model.model.score.modules_to_save.default.weight` | `base_model.model.score.weight` |
//!
//! `tests/peft/load.sh` loads what this writes with PEFT itself.

mod config;
mod patterns;
mod read;
mod write;

pub use config::Config;
pub use read::{Saved, bind, read};
pub use write::{Info, stage, write};

/// The file with ranks, scales and targets.
pub(crate) const CONFIG: &str = "adapter_config.json";
