//! `convert-precision`: trains in the element type that was asked for, as PyTorch would.
//!
//! ```text
//! - param %w : f32[8,8] frozen
//! + param %w : bf16[8,8] frozen {stored=f32}
//! + v9 = cast v1 {to=f32}       : f32[4,8]
//! - v2 = pow v1, v0             : f32[4,8]
//! + v2 = pow v9, v0             : f32[4,8]
//!   …
//! - v7 = matmul v6, %w {trans_b}: f32[4,8]
//! + v7 = matmul v6, %w {trans_b}: bf16[4,8]
//! ```
//!
//! Between 16-bit types, or from 16 bits to f32, every tensor of the model's type gets the new
//! one (`uniform`). From f32 to 16 bits, weights and products do, and what loses too much by it
//! stays in f32 (`mixed`), as in a model that PyTorch loads in 16 bits.

mod mixed;
mod uniform;

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::{Adapter, DType, Graph, Patch, PatchError, Region};
use std::collections::BTreeMap;

/// See the module.
pub struct ConvertPrecision;

impl Pass for ConvertPrecision {
    fn name(&self) -> &'static str {
        "convert-precision"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let Some(main) = main_dtype(graph) else {
            cx.note("the model has no float weights");
            return Ok(Changed::No);
        };
        let target = cx.options.dtype.unwrap_or(main);
        if !matches!(target, DType::F32 | DType::BF16 | DType::F16) {
            let refusal = format!("cannot train in {target}: give --dtype f32, bf16 or f16");
            return Err(PassError::Refused(refusal));
        }
        let adapters = cx.options.inject.adapter_dtype;
        if adapters.is_some_and(|dtype| dtype.size() < target.size()) {
            let refusal =
                format!("adapters are not narrower than the model, which trains in {target}");
            return Err(PassError::Refused(refusal));
        }
        if main == target {
            cx.note(format_args!("the model is in {target}"));
            return Ok(Changed::No);
        }
        if graph.ops().any(|op| op.site.region != Region::Forward) {
            let refusal = format!(
                "the model holds its own backward pass, in {main}: export its forward pass to \
                 train it in {target}"
            );
            return Err(PassError::Refused(refusal));
        }
        let mut patch = graph.patch("convert-precision");
        if narrows(patch.graph(), Some(target)) {
            mixed::convert(&mut patch, target, adapters)?;
        } else {
            uniform::convert(&mut patch, main, target)?;
        }
        follow_adapters(&mut patch);
        let changes = patch.changes();
        cx.note(format_args!("{main} to {target}"));
        Ok(Changed::from_count(changes))
    }
}

/// Gives every float tensor the type f64.
pub(crate) fn widen(patch: &mut Patch<'_>) -> Result<(), PatchError> {
    let floats = [DType::F32, DType::BF16, DType::F16];
    floats
        .into_iter()
        .try_for_each(|from| uniform::convert(patch, from, DType::F64))
}

/// Whether an f32 model is to be trained in 16 bits.
pub fn narrows(graph: &Graph, target: Option<DType>) -> bool {
    target.is_some_and(DType::is_half) && main_dtype(graph) == Some(DType::F32)
}

/// The float type of most bytes of weights; the smaller one of two that have as many.
pub fn main_dtype(graph: &Graph) -> Option<DType> {
    let mut bytes: BTreeMap<DType, u64> = BTreeMap::new();
    let weights = graph.params().map(|(_, p)| p);
    for p in weights.filter(|p| p.is_weight() && p.ty.dtype.is_float()) {
        let sum = bytes.entry(p.ty.dtype).or_default();
        *sum = sum.saturating_add(p.ty.bytes().unwrap_or(0));
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map(|(dtype, _)| dtype)
}

/// Makes adapters name what the product with A reads now.
fn follow_adapters(patch: &mut Patch<'_>) {
    let adapters: Vec<Adapter> = patch.graph().adapters().to_vec();
    let graph = patch.graph();
    let followed: Vec<Adapter> = adapters
        .iter()
        .map(|known| {
            let product = graph.def(known.xa);
            let x = product.operands.first().copied().unwrap_or(known.x);
            Adapter { x, ..known.clone() }
        })
        .collect();
    if followed != adapters {
        patch.retain_adapters(|_| false);
        for adapter in followed {
            patch.adapter(adapter);
        }
    }
}
