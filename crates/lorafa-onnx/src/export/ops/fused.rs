//! Fused ops that opset 23 has: attention, rotary embeddings and root mean square normalization.
//!
//! Where its operator does not mean the same, or lacks a result that something reads, the op is a
//! function (`functions`).

use super::proto::{axis, dims, float, int, ints};
use super::{ExportError, Writer};
use lorafa_ir::ops::{Attention, RmsNorm, Rotary};
use lorafa_ir::{DType, Graph, Op, OpData, TensorType, ValueId};

/// The opset that they came with.
const SINCE: i64 = 23;

/// Whether the opset has an operator that gives all of the op that is read.
pub(in crate::export) fn has_operator(graph: &Graph, op: &OpData, opset: i64) -> bool {
    let ty = |slot: usize| graph.ty(op.operands[slot]);
    let read = |slot: usize| graph.is_used(op.results[slot]);
    opset >= SINCE
        && match &op.kind {
            // It has scores in the type of its operands, and no rule for a query that sees nothing.
            Op::Attention(attention) => {
                let sees = !attention.may_see_nothing(op.operands.len());
                sees && ty(0).dtype == DType::F32 && !read(1)
            }
            // Its statistics are f32, and it does not give them.
            Op::RmsNorm(_) => ty(0).dtype != DType::F64 && !read(1),
            Op::Rotary(_) => {
                ty(0).dtype != DType::F64
                    && ty(1).shape == ty(2).shape
                    && table_shapes(ty(0), ty(1)).is_some()
            }
            _ => false,
        }
}

/// `[batch or 1, seq, width]` of a table that all heads share, and the same for every batch.
fn table_shapes(x: &TensorType, table: &TensorType) -> Option<[Vec<i64>; 2]> {
    let (x, own) = (dims(x), dims(table));
    let [batch, _, seq, _] = x.as_slice() else {
        return None;
    };
    let mut padded = vec![1; 4 - own.len().min(4)];
    padded.extend(own);
    match padded.as_slice() {
        [b, 1, s, width] if s == seq && (*b == 1 || b == batch) => {
            Some([vec![*b, *s, *width], vec![*batch, *s, *width]])
        }
        _ => None,
    }
}

/// The operator's result has the heads before the rows.
pub(super) fn attention(
    w: &mut Writer<'_>,
    op: &OpData,
    attention: Attention,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let mut attributes = vec![float("scale", attention.scale.0)];
    if attention.causal {
        attributes.push(int("is_causal", 1));
    }
    let mut ty = w.graph.ty(op.results[0]).clone();
    ty.shape.swap(1, 2);
    let heads_first = w.helper("Attention", inputs, attributes, &ty);
    let perm = ints("perm", [0, 2, 1, 3]);
    w.node(op, "Transpose", vec![heads_first], vec![perm]);
    Ok(())
}

pub(super) fn rms_norm(w: &mut Writer<'_>, op: &OpData, norm: RmsNorm) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let attributes = vec![axis(norm.axis), float("epsilon", norm.eps.0)];
    w.node(op, "RMSNormalization", inputs, attributes);
    Ok(())
}

/// Turning back is turning by minus the sine.
pub(super) fn rotary(w: &mut Writer<'_>, op: &OpData, rotary: Rotary) -> Result<(), ExportError> {
    let mut inputs = vec![w.read(op.operands[0])?];
    for (slot, negated) in [(1, false), (2, rotary.inverse)] {
        inputs.push(table(w, op, op.operands[slot], negated)?);
    }
    let attributes = match rotary.interleaved {
        true => vec![int("interleaved", 1)],
        false => vec![],
    };
    w.node(op, "RotaryEmbedding", inputs, attributes);
    Ok(())
}

/// A table of sines or cosines as the operator reads it.
fn table(
    w: &mut Writer<'_>,
    op: &OpData,
    value: ValueId,
    negated: bool,
) -> Result<String, ExportError> {
    let ty = w.graph.ty(value).clone();
    let Some([own, whole]) = table_shapes(w.graph.ty(op.operands[0]), &ty) else {
        return Err(w.refuse(op, "ONNX has no operator for it"));
    };
    let mut name = w.read(value)?;
    if negated {
        name = w.shared("Neg", vec![name], &ty);
    }
    let mut found = dims(&ty);
    for (onnx, wanted) in [("Reshape", own), ("Expand", whole)] {
        if found != wanted {
            let shape = w.ints(&wanted)?;
            let ty = ty.with_shape(wanted.iter().map(|n| (*n).into()));
            name = w.shared(onnx, vec![name, shape], &ty);
            found = wanted;
        }
    }
    Ok(name)
}
