//! Adapters that PEFT or this crate saved.

use super::CONFIG;
use super::config::{Config, Number};
use crate::adapters::{Adapted, adapted};
use crate::bind::{fits, set, stored};
use crate::error::{SaveError, TensorProblem, WeightsError};
use crate::names::{PEFT_PREFIX, plain, saved_module};
use crate::shards::{self, ADAPTER, Shards};
use lorafa_ir::ops::Stored;
use lorafa_ir::{Graph, TensorType, ValueId};
use lorafa_passes::targets::{Patterns, TargetsError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How far two scales may differ, relative: an exporter writes them as f32.
const SCALE_TOLERANCE: f64 = 1e-6;

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
    let bias = &config.bias;
    (bias != "none")
        .then(|| format!("the adapter trains biases (`bias` is {bias}), which is not supported"))
}

impl Saved {
    /// What the folder says about the adapter.
    pub fn config(&self) -> &Config {
        &self.config
    }

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
    let adapters = adapted(graph).map_err(|error: SaveError| WeightsError::Adapter {
        path: saved.path.clone(),
        what: error.to_string(),
    })?;
    let mut wanted: Vec<(String, ValueId, &TensorType)> = Vec::new();
    let mut problems = Vec::new();
    for adapter in &adapters {
        let module = &adapter.module;
        for (which, (value, param)) in [("A", adapter.a), ("B", adapter.b)] {
            let name = format!("{PEFT_PREFIX}{module}.lora_{which}.weight");
            wanted.push((name, value, &param.ty));
        }
        problems.extend(other_scale(adapter, saved));
    }
    for (value, param) in graph.params() {
        if param.is_weight() && saved_module(&param.name).is_some() {
            wanted.push((
                format!("{PEFT_PREFIX}{}", plain(&param.name)),
                value,
                &param.ty,
            ));
        }
    }
    let mut values: Vec<(ValueId, Stored)> = Vec::new();
    for (name, value, ty) in &wanted {
        match saved.tensors.get(name) {
            Some(tensor) => match fits(name, name, ty, tensor) {
                Ok(dtype) => values.push((*value, stored(dtype, tensor))),
                Err(problem) => problems.push(problem),
            },
            None => problems.push(TensorProblem::Missing {
                name: name.clone(),
                sought: vec![name.clone()],
            }),
        }
    }
    let names: BTreeSet<&str> = wanted.iter().map(|(name, ..)| name.as_str()).collect();
    let unused = saved
        .tensors
        .iter()
        .filter(|(name, _)| !names.contains(name));
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
