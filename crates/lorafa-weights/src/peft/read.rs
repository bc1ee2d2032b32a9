//! Adapters that PEFT or this crate saved.

use super::config::{Config, Number};
use super::{CONFIG, Tensor, tensors};
use crate::adapters::{Adapted, adapted};
use crate::bind::{fits, set, stored};
use crate::error::{SaveError, TensorProblem, WeightsError};
use crate::shards::{self, ADAPTER, Shards};
use lorafa_ir::ops::Stored;
use lorafa_ir::{Graph, ValueId};
use lorafa_passes::targets::{Patterns, TargetsError};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How far two scales may differ, relative: an exporter writes them as f32.
const SCALE_TOLERANCE: f64 = 1e-6;

/// How A and B may start: the base weight stays as it is. Others take a part of it away, each time that PEFT loads them.
const INITS: &[&str] = &["gaussian", "eva", "mica", "orthogonal"];

/// Fields with which an adapter is more than `scale·B·A` next to a weight, or trains more than A and B.
const VARIANTS: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// An adapter folder, memory-mapped.
#[derive(Clone, Debug)]
pub struct Saved {
    path: PathBuf,
    config: Config,
    tensors: Shards,
    ranks: Patterns<u64>,
    alphas: Patterns<f64>,
}

/// Opens the adapter folder `dir`.
///
/// # Errors
///
/// [`WeightsError::File`] for a file that is not there or broken; [`WeightsError::Adapter`] for a kind of adapter that is
/// not supported.
pub fn read(dir: impl AsRef<Path>) -> Result<Saved, WeightsError> {
    let dir = dir.as_ref();
    let path = dir.join(CONFIG);
    let config: Config = shards::read_json(&path)?;
    if let Some(what) = unsupported(&config) {
        return Err(WeightsError::Adapter { path, what });
    }
    let pattern = |error: TargetsError| WeightsError::Adapter {
        path: path.clone(),
        what: error.to_string(),
    };
    let ranks = Patterns::new(config.rank_pattern.0.iter().map(|(k, r)| (k, *r)));
    let alphas = config.alpha_pattern.0.iter().map(|(k, Number(a))| (k, *a));
    Ok(Saved {
        path: dir.to_owned(),
        ranks: ranks.map_err(pattern)?,
        alphas: Patterns::new(alphas).map_err(pattern)?,
        tensors: Shards::open(dir.join(ADAPTER))?,
        config,
    })
}

fn unsupported(config: &Config) -> Option<String> {
    if config.peft_type != "LORA" {
        return Some(format!(
            "this is an adapter of type {}, not LORA",
            config.peft_type
        ));
    }
    if config.use_dora {
        return Some("the adapter uses DoRA, which has no LoRA-FA form".to_string());
    }
    if let Value::String(init) = &config.init_lora_weights
        && !INITS.contains(&init.to_lowercase().as_str())
    {
        return Some(format!(
            "`init_lora_weights` is {init}, which changes the base weights; save the adapter with \
             `path_initial_model_for_weight_conversion`, which makes it a plain LoRA adapter"
        ));
    }
    let others = &config.others;
    let set = |field: &&&str| others.get(**field).is_some_and(|value| !is_off(value));
    if let Some(field) = VARIANTS.iter().find(set) {
        return Some(format!(
            "`{field}` is set, which plain LoRA has not; give an adapter that was trained without it"
        ));
    }
    let bias = &config.bias;
    (bias != "none")
        .then(|| format!("the adapter trains biases (`bias` is {bias}), which is not supported"))
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(entries) => entries.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

impl Saved {
    /// The factor on `B·A` of a module.
    fn scale(&self, module: &str) -> f64 {
        let rank = self.ranks.get(module).unwrap_or(self.config.r) as f64;
        let alpha = self.alphas.get(module).unwrap_or(self.config.lora_alpha.0);
        match self.config.use_rslora {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }
}

/// Gives the adapters of `graph`, and the modules that PEFT trains in full next to them, the values that `saved` has for
/// them.
///
/// # Errors
///
/// [`WeightsError::Tensors`] with everything that does not fit: an adapter that is missing, has another rank or scale, or
/// that the graph has no place for. The graph is not changed then. [`WeightsError::Adapter`] if the graph's own adapters
/// are none that PEFT could hold.
pub fn bind(graph: &mut Graph, saved: &Saved) -> Result<(), WeightsError> {
    let refused = |error: SaveError| WeightsError::Adapter {
        path: saved.path.clone(),
        what: error.to_string(),
    };
    let adapters = adapted(graph).map_err(refused)?;
    let wanted = tensors(graph, &adapters).map_err(refused)?;
    let scales = adapters.iter().filter_map(|a| other_scale(a, saved));
    let mut problems: Vec<TensorProblem> = scales.collect();
    let mut values: Vec<(ValueId, Stored)> = Vec::new();
    for Tensor { name, value, param } in &wanted {
        match saved.tensors.get(name) {
            Some(tensor) => match fits(name, name, &param.ty, tensor) {
                Ok(dtype) => values.push((*value, stored(dtype, tensor))),
                Err(problem) => problems.push(problem),
            },
            None => problems.push(TensorProblem::Missing {
                name: name.clone(),
                sought: vec![name.clone()],
            }),
        }
    }
    let names: BTreeSet<&str> = wanted.iter().map(|tensor| tensor.name.as_str()).collect();
    let unused = saved.tensors.iter();
    let unused = unused.filter(|(name, _)| !names.contains(name));
    problems.extend(unused.map(|(name, _)| TensorProblem::Unused {
        tensor: name.to_string(),
    }));
    if !problems.is_empty() {
        return Err(WeightsError::Tensors {
            path: saved.path.clone(),
            problems,
        });
    }
    set(graph, values);
    Ok(())
}

fn other_scale(adapter: &Adapted, saved: &Saved) -> Option<TensorProblem> {
    let (expected, found) = (adapter.scale, saved.scale(&adapter.module));
    let same = (expected - found).abs() <= SCALE_TOLERANCE * expected.abs();
    (!same).then(|| TensorProblem::Scale {
        module: adapter.module.clone(),
        expected,
        found,
    })
}
