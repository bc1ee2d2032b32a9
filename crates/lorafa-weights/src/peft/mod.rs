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

pub use read::{Saved, bind, read};
pub use write::{Info, check, stage, write};

use crate::adapters::Adapted;
use crate::error::SaveError;
use crate::names::{PEFT_PREFIX, plain, saved_module};
use lorafa_ir::ops::Param;
use lorafa_ir::{Graph, ValueId};
use std::collections::BTreeSet;

/// The file with ranks, scales and targets.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// A tensor of an adapter's file.
struct Tensor<'g> {
    /// Its name in the file.
    name: String,
    value: ValueId,
    param: &'g Param,
}

/// What an adapter's file holds: A and B of each adapter, and what trains in full next to them.
///
/// # Errors
///
/// [`SaveError::Twice`] if two parameters have one name there.
fn tensors<'g>(graph: &'g Graph, adapters: &[Adapted<'g>]) -> Result<Vec<Tensor<'g>>, SaveError> {
    let factors = adapters.iter().flat_map(|adapter| {
        [("A", adapter.a), ("B", adapter.b)].map(|(which, (value, param))| Tensor {
            name: format!("{PEFT_PREFIX}{}.lora_{which}.weight", adapter.module),
            value,
            param,
        })
    });
    let full = graph.params().filter(|(_, p)| p.is_weight());
    let full = full.filter(|(_, p)| saved_module(&p.name).is_some());
    let full = full.map(|(value, param)| Tensor {
        name: format!("{PEFT_PREFIX}{}", plain(&param.name)),
        value,
        param,
    });
    let tensors: Vec<Tensor> = factors.chain(full).collect();
    let mut names = BTreeSet::new();
    match tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        None => Ok(tensors),
        Some(twice) => Err(SaveError::Twice {
            name: twice.name.clone(),
        }),
    }
}
