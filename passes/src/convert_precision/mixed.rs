//! f32 to 16 bits, with f32 where PyTorch and Hugging Face keep it.
//!
//! A value is *weak* if no float weight or input leads to it: masks, rotary angles, numbers. Weak
//! values stay in f32 until they meet a *strong* one. Strong values are 16-bit, except results of
//! the ops in [`is_wide`], which compute in f32. Where a 16-bit and an f32 strong value meet, as in
//! RMSNorm's `x·rstd`, the op computes in f32 and its result goes back to 16 bits at once.

use super::uniform::{drop_empty_cast, keep_operands, rounded, rounded_fill};
use lorafa_ir::ops::{Binary, BinaryKind, Op, Param, Reduce, ReduceKind, Role, Unary, UnaryKind};
use lorafa_ir::{DType, Graph, OpData, OpId, Patch, PatchError, ValueId, ValueMap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Converts the model's f32 weights to `target`, the adapters' to `adapters` if that is given.
pub(super) fn convert(
    patch: &mut Patch<'_>,
    target: DType,
    adapters: Option<DType>,
) -> Result<(), PatchError> {
    let mut m = Mixed {
        target,
        apart: adapters
            .filter(|d| *d != target)
            .map_or(BTreeSet::new(), |_| adapted(patch.graph())),
        strong: strong(patch.graph()),
        casts: BTreeMap::new(),
    };
    let weights: Vec<ValueId> = patch
        .graph()
        .params()
        .filter(|(_, p)| p.is_weight() && p.ty.dtype == DType::F32)
        .map(|(value, _)| value)
        .collect();
    for value in weights {
        let dtype = if m.apart.contains(&value) {
            adapters.unwrap_or(target)
        } else {
            target
        };
        if dtype != DType::F32 {
            patch.update_param(value, |p| p.ty.dtype = dtype);
        }
    }
    for id in patch.graph().order() {
        m.op(patch, id)?;
    }
    Ok(())
}

/// The adapters' parameters.
fn adapted(graph: &Graph) -> BTreeSet<ValueId> {
    graph.adapters().iter().flat_map(|a| [a.a, a.b]).collect()
}

/// Whether a float weight or input leads to each value.
fn strong(graph: &Graph) -> ValueMap<bool> {
    let mut strong = ValueMap::new(false);
    for id in graph.order() {
        let op = graph.op(id);
        let is = match &op.kind {
            Op::Param(p) => p.role != Role::Constant && p.ty.dtype.is_float(),
            _ => op.operands.iter().any(|v| *strong.get(*v)),
        };
        op.results.iter().for_each(|v| strong.set(*v, is));
    }
    strong
}

/// Ops whose 16-bit operands are cast to f32 first, and whose results stay f32. A power is one
/// only as a norm has it, in a mean of squares.
fn is_wide(graph: &Graph, op: &OpData) -> bool {
    use UnaryKind::{Cos, Erf, Exp, Log, Reciprocal, Sin, Sqrt};
    match &op.kind {
        Op::Unary(Unary(k)) => matches!(k, Sqrt | Reciprocal | Exp | Log | Sin | Cos | Erf),
        Op::Binary(Binary(BinaryKind::Pow)) => {
            let readers = graph.uses(op.results[0]);
            let mut readers = readers.iter().map(|u| &graph.op(u.op).kind);
            readers.any(|kind| matches!(kind, Op::Reduce(_)))
        }
        Op::Reduce(Reduce { kind, .. }) => matches!(kind, ReduceKind::Sum | ReduceKind::Mean),
        Op::CumSum(_) | Op::CrossEntropy(_) => true,
        _ => false,
    }
}

struct Mixed {
    target: DType,
    /// Parameters that keep a type of their own.
    apart: BTreeSet<ValueId>,
    strong: ValueMap<bool>,
    casts: BTreeMap<(ValueId, DType), ValueId>,
}

impl Mixed {
    fn op(&mut self, patch: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
        let op = patch.graph().op(id).clone();
        let floats: Vec<(usize, ValueId)> = op
            .operands
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, v)| patch.ty(*v).dtype.is_float())
            .collect();
        if floats.is_empty() || matches!(op.kind, Op::Cast(_)) {
            patch.reinfer(id)?;
            drop_empty_cast(patch, id)?;
            return Ok(());
        }
        if let Op::Onnx(_) = op.kind {
            return keep_operands(patch, id, DType::F32);
        }
        let strong: Vec<ValueId> = floats
            .iter()
            .map(|(_, v)| *v)
            .filter(|v| *self.strong.get(*v))
            .collect();
        let (dtype, narrow) = self.dtype(patch.graph(), &op, &strong);
        for (slot, operand) in floats {
            let cast = self.cast(patch, id, operand, dtype)?;
            if cast != operand {
                patch.set_operand(id, slot, cast);
            }
        }
        patch.reinfer(id)?;
        if narrow {
            self.narrow(patch, &op)?;
        }
        Ok(())
    }

    /// The type that an op computes in, and whether its result goes back to 16 bits.
    fn dtype(&self, graph: &Graph, op: &OpData, strong: &[ValueId]) -> (DType, bool) {
        let dtypes: BTreeSet<DType> = strong.iter().map(|v| graph.ty(*v).dtype).collect();
        if is_wide(graph, op) || strong.is_empty() {
            return (DType::F32, false);
        }
        match &op.kind {
            Op::MatMul(_) => (self.product_dtype(graph, op), false),
            Op::Attention(_) => (self.target, false),
            Op::LayerNorm(_) | Op::RmsNorm(_) => (graph.ty(op.operands[0]).dtype, false),
            _ => match dtypes.first() {
                Some(one) if dtypes.len() == 1 => (*one, false),
                _ => (DType::F32, true),
            },
        }
    }

    /// A product is taken in 16 bits, one with an adapter's weight in that weight's type.
    fn product_dtype(&self, graph: &Graph, op: &OpData) -> DType {
        let weights = op.operands.iter().map(|v| source(graph, *v));
        let apart = weights
            .filter(|v| self.apart.contains(v))
            .map(|v| graph.ty(v).dtype);
        apart.max_by_key(|d| d.size()).unwrap_or(self.target)
    }

    /// `value` in another type, for `reader`; made once. What it is made anew of comes first, however deep that lies.
    fn cast(
        &mut self,
        patch: &mut Patch<'_>,
        reader: OpId,
        value: ValueId,
        to: DType,
    ) -> Result<ValueId, PatchError> {
        let mut cast = value;
        let mut work = vec![(reader, value)];
        while let Some((reader, value)) = work.last().copied() {
            if let Some(there) = self.there(patch.graph(), value, to) {
                cast = there;
                work.pop();
                continue;
            }
            let (mut operands, mut missing) = (Vec::new(), Vec::new());
            let def = patch.graph().def(value);
            let anew = match self.strong.get(value) {
                true => None,
                false => anew(patch.graph(), def, to),
            };
            if let Some((_, from)) = &anew {
                operands = def.operands.to_vec();
                for operand in &mut operands[*from..] {
                    match self.there(patch.graph(), *operand, to) {
                        Some(there) => *operand = there,
                        None => missing.push((def.id, *operand)),
                    }
                }
            }
            if !missing.is_empty() {
                work.extend(missing.into_iter().rev());
                continue;
            }
            let made = match anew {
                Some((kind, _)) => {
                    let op = def.id;
                    patch.at(op).add1(kind, &operands)?
                }
                None => patch.at(reader).cast(value, to)?,
            };
            self.strong.set(made, *self.strong.get(value));
            self.casts.insert((value, to), made);
        }
        Ok(cast)
    }

    /// `value` in another type, if there is such a value.
    fn there(&self, graph: &Graph, value: ValueId, to: DType) -> Option<ValueId> {
        match graph.ty(value).dtype == to {
            true => Some(value),
            false => self.casts.get(&(value, to)).copied(),
        }
    }

    /// Sends an op's f32 result back to 16 bits for all its readers.
    fn narrow(&mut self, patch: &mut Patch<'_>, op: &OpData) -> Result<(), PatchError> {
        for wide in op.results.iter().copied() {
            if patch.ty(wide).dtype != DType::F32 {
                continue;
            }
            let cast = patch.at(op.id).cast(wide, self.target)?;
            patch.retarget(wide, cast);
            let reader = patch.graph().value(cast).op;
            patch.set_operand(reader, 0, wide);
            self.strong.set(cast, true);
        }
        Ok(())
    }
}

/// The op that makes a weak value anew in another type, of operands in that type from the given one on, where a cast would
/// turn the largest numbers, which stand for minus infinity in masks, into infinities: constants and what only picks from
/// them.
fn anew(graph: &Graph, def: &OpData, to: DType) -> Option<(Op, usize)> {
    match &def.kind {
        Op::Constant(c) => Some((rounded(c, to).into(), 0)),
        Op::Fill(f) => Some((rounded_fill(f, to).into(), 0)),
        Op::Param(p) if p.role == Role::Constant => Some((renamed(p, to), 0)),
        Op::Select(_) => Some((def.kind.clone(), 1)),
        Op::Reshape(_) | Op::Expand(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_) => {
            Some((def.kind.clone(), 0))
        }
        Op::Binary(Binary(BinaryKind::Mul)) if exceeds(graph, def, to) => {
            Some((def.kind.clone(), 0))
        }
        _ => None,
    }
}

/// A table in another type, under a name of its own; its values are converted when written.
fn renamed(param: &Param, to: DType) -> Op {
    let mut param = param.clone();
    param.name = Arc::from(format!("{}.{to}", param.name));
    param.ty.dtype = to;
    Op::Param(Box::new(param))
}

/// Whether a constant operand is out of range for `to`.
fn exceeds(graph: &Graph, op: &OpData, to: DType) -> bool {
    let max = to.round(f64::MAX);
    op.operands.iter().any(|v| match &graph.def(*v).kind {
        Op::Constant(c) => c
            .literal
            .to_f64()
            .iter()
            .any(|x| x.is_finite() && x.abs() > max),
        _ => false,
    })
}

/// The value behind casts and transposes.
fn source(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Op::Cast(_) | Op::Transpose(_) = graph.def(value).kind {
        value = graph.def(value).operands[0];
    }
    value
}
