//! Adapters as PEFT loads them.

use super::config::{Config, Number, Pairs};
use super::{CONFIG, patterns, tensors};
use crate::adapters::{Adapted, adapted};
use crate::atomic_dir::StagedDir;
use crate::error::SaveError;
use crate::names::saved_module;
use crate::safetensors_file::{self, Entry};
use crate::shards::ADAPTER;
use crate::values::Values;
use crate::weight::{Layout, Weights};
use lorafa_ir::{Adapter, Graph, Op, Region};
use lorafa_passes::attach_loss::LossKind;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What a graph does not say about its adapters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info<'a> {
    /// The name or folder of the adapted model.
    pub base_model: Option<&'a str>,
    /// What the model was trained for.
    pub loss: Option<LossKind>,
    /// Whether scales are alpha/√rank and not alpha/rank.
    pub rslora: bool,
}

/// Writes the adapters of `graph` to the folder `dir`, whole or not at all. A folder that is there is replaced if it holds
/// an adapter and [side files](crate::side_files) only.
///
/// # Errors
///
/// [`SaveError`]; there are no adapters, their values cannot be had, or the folder cannot be written.
pub fn write(
    dir: impl AsRef<Path>,
    graph: &Graph,
    values: Values<'_>,
    info: Info<'_>,
) -> Result<(), SaveError> {
    let staged = StagedDir::new(dir, ours)?;
    stage(&staged, graph, values, info)?;
    Ok(staged.commit()?)
}

/// Whether [`write()`] would write the adapters of `graph` to the folder `dir`, as far as that can be told before they are
/// trained.
///
/// # Errors
///
/// As [`write()`].
pub fn check(dir: impl AsRef<Path>, graph: &Graph) -> Result<(), SaveError> {
    tensors(graph, &adapted(graph)?)?;
    Ok(StagedDir::check(dir, ours)?)
}

fn ours(name: &str) -> bool {
    name == CONFIG || name == ADAPTER
}

/// Writes what [`write()`] writes into a folder that holds other files, too.
///
/// # Errors
///
/// As [`write()`].
pub fn stage(
    staged: &StagedDir,
    graph: &Graph,
    values: Values<'_>,
    info: Info<'_>,
) -> Result<(), SaveError> {
    let adapters = adapted(graph)?;
    if adapters.is_empty() {
        return Err(SaveError::NoAdapters);
    }
    let config = config(graph, &adapters, info);
    let mut json = serde_json::to_vec_pretty(&config).map_err(SaveError::Json)?;
    json.push(b'\n');
    let tensors = tensors(graph, &adapters)?;
    let entries = tensors.iter().enumerate().map(|(i, tensor)| {
        let entry = Entry {
            name: tensor.name.clone(),
            dtype: values.dtype(tensor.param),
            shape: tensor.param.ty.known_shape().unwrap_or_default().to_vec(),
        };
        (entry, i)
    });
    staged.file(CONFIG, &json)?;
    safetensors_file::write(staged.create(ADAPTER)?, entries.collect(), |i, file| {
        let (_, bytes) = values.get(tensors[i].param)?;
        Ok(file.write(&bytes)?)
    })
}

fn config(graph: &Graph, adapters: &[Adapted], info: Info<'_>) -> Config {
    let ranks: BTreeMap<&str, u64> = adapters.iter().map(|a| (&*a.module, a.rank)).collect();
    let alphas = adapters
        .iter()
        .map(|a| (&*a.module, alpha(a.scale, divisor(a.rank, info.rslora))));
    let alphas: BTreeMap<&str, f64> = alphas.collect();
    let (rank, rank_pattern) = patterns::pattern(&ranks);
    let (alpha, alpha_pattern) = patterns::pattern(&alphas);
    let alpha_pattern = alpha_pattern.0.into_iter().map(|(key, a)| (key, Number(a)));
    let saved = graph.params().filter(|(_, p)| p.is_weight());
    let saved: BTreeSet<String> = saved.filter_map(|(_, p)| saved_module(&p.name)).collect();
    // PEFT looks for targets outside of the modules that it saves.
    let outside = |module: &String| {
        let inside = |s: &String| format!(".{module}.").contains(&format!(".{s}."));
        !saved.iter().any(inside)
    };
    let known = patterns::known_modules(graph)
        .into_iter()
        .filter(outside)
        .collect();
    let (names, excluded) = patterns::target_modules(&ranks.keys().copied().collect(), &known);
    let weights = Weights::new(graph);
    let conv1d = |a: &Adapted| {
        let weight = weights.of(&a.module);
        weight.is_some_and(|(.., layout)| layout == Some(Layout::InOut))
    };
    Config {
        alpha_pattern: Pairs(alpha_pattern.collect()),
        base_model_name_or_path: info.base_model.map(str::to_string),
        bias: "none".to_string(),
        exclude_modules: (!excluded.is_empty()).then(|| json!(excluded)),
        fan_in_fan_out: adapters.iter().any(conv1d),
        inference_mode: true,
        init_lora_weights: json!(true),
        lora_alpha: Number(alpha.unwrap_or(1.0)),
        lora_dropout: dropout(graph),
        modules_to_save: (!saved.is_empty()).then(|| saved.into_iter().collect()),
        peft_type: "LORA".to_string(),
        r: rank.unwrap_or(1),
        rank_pattern,
        target_modules: Some(json!(names)),
        task_type: info.loss.map(|loss| task(loss).to_string()),
        use_dora: false,
        use_rslora: info.rslora,
        others: BTreeMap::new(),
    }
}

/// What PEFT divides alpha by.
fn divisor(rank: u64, rslora: bool) -> f64 {
    match rslora {
        true => (rank as f64).sqrt(),
        false => rank as f64,
    }
}

/// The numerator for which PEFT gets the scale. An exporter writes scales as f32: where a whole number gives the same f32,
/// that is what was asked for, and else a short one.
fn alpha(scale: f64, divisor: f64) -> f64 {
    let alpha = scale * divisor;
    let same = |candidate: &f64| (candidate / divisor) as f32 == scale as f32;
    [alpha.round(), short(alpha)]
        .into_iter()
        .find(same)
        .unwrap_or(alpha)
}

/// The shortest decimal that is the same f32.
fn short(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

/// The share of A's input that is dropped in training, that of most adapters. What the adapted layer reads, too, is dropped
/// by the model itself.
fn dropout(graph: &Graph) -> f64 {
    let products: BTreeSet<_> = graph
        .adapters()
        .iter()
        .map(|a| graph.def(a.xa).id)
        .collect();
    let ratio = |adapter: &Adapter| {
        let mut x = adapter.x;
        while let Op::Cast(_) | Op::Reshape(_) = graph.def(x).kind {
            x = *graph.def(x).operands.first()?;
        }
        let Op::Dropout(dropout) = &graph.def(x).kind else {
            return None;
        };
        let readers = graph.uses(x).into_iter().map(|read| graph.op(read.op));
        let mut other = readers.filter(|op| op.site.region == Region::Forward);
        let only_a = other
            .all(|op| products.contains(&op.id) || matches!(op.kind, Op::Cast(_) | Op::Reshape(_)));
        only_a.then_some(dropout.ratio.0)
    };
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for adapter in graph.adapters() {
        *counts
            .entry(ratio(adapter).unwrap_or(0.0).to_bits())
            .or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or(0.0, |(bits, _)| short(f64::from_bits(bits)))
}

fn task(loss: LossKind) -> &'static str {
    match loss {
        LossKind::CausalLm => "CAUSAL_LM",
        LossKind::SeqCls => "SEQ_CLS",
        LossKind::Seq2Seq => "SEQ_2_SEQ_LM",
        LossKind::TokenCls => "TOKEN_CLS",
    }
}

#[cfg(test)]
mod tests {
    use super::alpha;

    #[test]
    fn alpha_is_what_was_asked_for_or_exact() {
        assert_eq!(alpha(f64::from(16.0f32 / 3.0), 3.0), 16.0);
        assert_eq!(alpha(2.0, 4.0), 8.0);
        assert_eq!(alpha(0.3, 4.0), 1.2);
        assert_eq!(alpha(16.0 / 8f64.sqrt(), 8f64.sqrt()), 16.0);
    }
}
