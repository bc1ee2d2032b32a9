//! Models with their adapters merged into the weights, `W + scale·B·A`, as Hugging Face saves models.

use crate::adapters::{Adapted, adapted};
use crate::atomic_dir::{StagedDir, StagedFile};
use crate::dtype::{from_f32, to_f32};
use crate::error::SaveError;
use crate::names;
use crate::safetensors_file::{self, Entry};
use crate::shards::{INDEX, SINGLE};
use crate::side_files;
use crate::values::Values;
use crate::weight::{self, Layout, Weights};
use bytes::Bytes;
use lorafa_ir::ops::Param;
use lorafa_ir::{DType, Graph, ValueId};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The largest file that is written, in bytes: Hugging Face's 5 GB.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Elements converted at a time.
const CHUNK: usize = 1 << 12;

/// A tensor of the merged model.
struct Merged<'g> {
    entry: Entry,
    param: &'g Param,
    /// The adapter to merge and how the weight lies.
    adapter: Option<(&'g Adapted<'g>, Layout)>,
}

/// Writes the weights of `graph`, adapters merged into them, to the folder `dir`, whole or not at all: `model.safetensors`,
/// or files of at most `max_shard_bytes` (or one tensor, if that is larger) and their index. A folder that is there is
/// replaced if it holds such files and [side files](crate::side_files) only.
///
/// Products are taken in f32 and rounded once, to the weight's own element type. Other weights are copied. A weight that
/// modules share is written once, under the name that Hugging Face saves it by. One tensor is in memory at a time.
/// `side_files` are copied as they are.
///
/// # Errors
///
/// [`SaveError`]: an adapter that cannot be merged because another module shares its weight or the weight is not f32, f16
/// or bf16; values that cannot be had; a folder that cannot be written.
pub fn write(
    dir: impl AsRef<Path>,
    graph: &Graph,
    values: Values<'_>,
    max_shard_bytes: u64,
    side_files: &[PathBuf],
) -> Result<(), SaveError> {
    check_names(graph)?;
    let adapters = adapted(graph)?;
    let tensors = tensors(graph, &adapters, values)?;
    let shards = shards(&tensors, max_shard_bytes);
    let staged = StagedDir::new(dir, ours)?;
    let count = shards.len();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let entries = shard.iter().map(|i| (tensors[*i].entry.clone(), *i));
        safetensors_file::write(staged.create(&file)?, entries.collect(), |i, file| {
            tensors[i].write(values, file)
        })?;
        files.extend(
            shard
                .iter()
                .map(|i| (&*tensors[*i].entry.name, file.clone())),
        );
    }
    if count > 1 {
        let total: u64 = tensors.iter().map(|t| t.entry.bytes()).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": files});
        let mut json = serde_json::to_vec_pretty(&index).map_err(SaveError::Json)?;
        json.push(b'\n');
        staged.file(INDEX, &json)?;
    }
    side_files::copy(side_files, &staged)?;
    Ok(staged.commit()?)
}

/// Whether [`write()`] would write such a graph to the folder `dir`, as far as that can be told before it is trained.
///
/// # Errors
///
/// As [`write()`].
pub fn check(dir: impl AsRef<Path>, graph: &Graph, values: Values<'_>) -> Result<(), SaveError> {
    check_names(graph)?;
    let adapters = adapted(graph)?;
    for Merged { entry, adapter, .. } in tensors(graph, &adapters, values)? {
        if let Some((adapter, _)) = adapter
            && from_f32(entry.dtype, &[]).is_none()
        {
            return Err(not_float(adapter, entry.dtype));
        }
    }
    Ok(StagedDir::check(dir, ours)?)
}

fn check_names(graph: &Graph) -> Result<(), SaveError> {
    let nameless = names::nameless(graph);
    match nameless.is_empty() {
        true => Ok(()),
        false => Err(SaveError::Nameless(nameless)),
    }
}

/// Whether a file is one that [`write`] makes.
fn ours(name: &str) -> bool {
    let shard = name
        .strip_prefix("model-")
        .and_then(|n| n.strip_suffix(".safetensors"));
    let numbers = |n: &str| n.bytes().all(|b| b.is_ascii_digit() || b"-of".contains(&b));
    name == SINGLE || name == INDEX || shard.is_some_and(numbers)
}

/// The tensors of the merged model, in the model's order.
fn tensors<'g>(
    graph: &'g Graph,
    adapters: &'g [Adapted<'g>],
    values: Values<'_>,
) -> Result<Vec<Merged<'g>>, SaveError> {
    let weights = Weights::new(graph);
    let mut by_weight: BTreeMap<ValueId, (&Adapted, Layout)> = BTreeMap::new();
    for adapter in adapters {
        let (value, layout) = base(graph, &weights, adapter)?;
        if by_weight.insert(value, (adapter, layout)).is_some() {
            return Err(refused(
                adapter,
                "another adapted module has the same weight",
            ));
        }
    }
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut tensors = Vec::new();
    for (value, param) in graph.params() {
        if !param.is_weight() || names::is_adapter(&param.name) {
            continue;
        }
        // The first alias of a shared weight is that of the embedding.
        let mut aliases = names::aliases(graph, value, &param.name).into_iter();
        let name = aliases.next().unwrap_or_default();
        if !taken.insert(name.clone()) {
            return Err(SaveError::Twice { name });
        }
        let entry = Entry {
            name,
            dtype: values.dtype(param),
            shape: param.ty.known_shape().unwrap_or_default().to_vec(),
        };
        let adapter = by_weight.get(&value).copied();
        tensors.push(Merged {
            entry,
            param,
            adapter,
        });
    }
    Ok(tensors)
}

/// The weight that an adapter is merged into.
fn base(
    graph: &Graph,
    weights: &Weights<'_>,
    adapter: &Adapted,
) -> Result<(ValueId, Layout), SaveError> {
    let Some((value, param, Some(layout))) = weights.of(&adapter.module) else {
        let why = "the model has no weight of its own for this module; save the adapter";
        return Err(refused(adapter, why));
    };
    if weight::is_looked_up(graph, value) {
        let why = "its weight is the embedding, too, which merging would change; save the adapter";
        return Err(refused(adapter, why));
    }
    let shape = |param: &Param| param.ty.known_shape().unwrap_or_default();
    let (a, b) = (shape(adapter.a.1), shape(adapter.b.1));
    let product = match layout {
        Layout::OutIn => [b[0], a[1]],
        Layout::InOut => [a[1], b[0]],
    };
    match shape(param).as_slice() == product {
        true => Ok((value, layout)),
        false => Err(refused(adapter, "B·A has another shape than the weight")),
    }
}

fn refused(adapter: &Adapted, why: &str) -> SaveError {
    SaveError::Adapter {
        module: adapter.module.clone(),
        why: why.to_string(),
    }
}

/// Which tensors go into which file, in order.
fn shards(tensors: &[Merged], max_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.entry.bytes();
        if size > 0 && size.saturating_add(bytes) > max_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(i);
        }
    }
    shards
}

impl Merged<'_> {
    fn write(&self, values: Values<'_>, file: &mut StagedFile) -> Result<(), SaveError> {
        let (dtype, bytes) = values.get(self.param)?;
        let Some((adapter, layout)) = self.adapter else {
            return Ok(file.write(&bytes)?);
        };
        let merged = merge((dtype, bytes), adapter, layout, values)?;
        for chunk in merged.chunks(CHUNK) {
            let bytes = from_f32(dtype, chunk).ok_or_else(|| not_float(adapter, dtype))?;
            file.write(&bytes)?;
        }
        Ok(())
    }
}

/// `W + scale·B·A` in W's layout.
fn merge(
    weight: (DType, Bytes),
    adapter: &Adapted,
    layout: Layout,
    values: Values<'_>,
) -> Result<Vec<f32>, SaveError> {
    let numbers = |(dtype, bytes): (DType, Bytes)| {
        to_f32(dtype, &bytes).ok_or_else(|| not_float(adapter, dtype))
    };
    let mut w = numbers(weight)?;
    let (a, b) = (values.get(adapter.a.1)?, values.get(adapter.b.1)?);
    let rank = adapter.rank as usize;
    add_product(
        &mut w,
        layout,
        adapter.scale as f32,
        &numbers(b)?,
        &numbers(a)?,
        rank,
    );
    Ok(w)
}

fn not_float(adapter: &Adapted, dtype: DType) -> SaveError {
    let why = format!("{dtype} values cannot be merged; f32, f16 and bf16 can. Save the adapter");
    refused(adapter, &why)
}

/// Adds `scale·B·A` to W, where B is `[out, rank]` and A `[rank, in]`, both row-major.
#[allow(unsafe_code)]
fn add_product(w: &mut [f32], layout: Layout, scale: f32, b: &[f32], a: &[f32], rank: usize) {
    let (out, inputs) = (b.len() / rank.max(1), a.len() / rank.max(1));
    let whole = b.len() == out * rank && a.len() == rank * inputs && w.len() == out * inputs;
    if !whole || w.is_empty() {
        return;
    }
    let step = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    let (row, column) = match layout {
        Layout::OutIn => (step(inputs), 1),
        Layout::InOut => (1, step(out)),
    };
    // SAFETY: the slices have as many elements as the sizes and strides reach, as was just checked, and W is borrowed
    // mutably, so that it overlaps neither of the others.
    unsafe {
        matrixmultiply::sgemm(
            out,
            rank,
            inputs,
            scale,
            b.as_ptr(),
            step(rank),
            1,
            a.as_ptr(),
            step(inputs),
            1,
            1.0,
            w.as_mut_ptr(),
            row,
            column,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_get_the_same_product() {
        // B [3, 2], A [2, 2]: small whole numbers, so that every result is exact.
        let (b, a) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, -1.0, 2.0, 0.5]);
        let (mut linear, mut conv) = ([1.0; 6], [1.0; 6]);
        add_product(&mut linear, Layout::OutIn, 2.0, &b, &a, 2);
        add_product(&mut conv, Layout::InOut, 2.0, &b, &a, 2);
        assert_eq!(linear, [11.0, 1.0, 23.0, -1.0, 35.0, -3.0]);
        assert_eq!(conv, [11.0, 23.0, 35.0, 1.0, -1.0, -3.0]);
    }

    #[test]
    fn our_files_and_no_others() {
        assert!(ours(SINGLE) && ours(INDEX) && ours("model-00001-of-00002.safetensors"));
        assert!(
            !ours("config.json")
                && side_files::is("config.json")
                && !ours("model-final.safetensors")
        );
    }
}
