//! Ops that change shape.

use super::proto::{axis, dims, int, ints};
use super::{ExportError, Writer};
use lorafa_ir::ops::{Concat, Expand, Pad, Reshape, Slice, Transpose};
use lorafa_ir::{Dim, OpData, Shape};

/// Dimensions in an attribute, which must be numbers by now.
pub(super) fn numbers(w: &Writer<'_>, op: &OpData, dims: &Shape) -> Result<Vec<i64>, ExportError> {
    dims.iter().map(|d| number(w, op, d)).collect()
}

/// A dimension in an attribute, which must be a number by now.
pub(super) fn number(w: &Writer<'_>, op: &OpData, dim: &Dim) -> Result<i64, ExportError> {
    dim.known()
        .ok_or_else(|| w.refuse(op, format!("{dim} is not bound to a number; bind it first")))
}

/// The op's operand under the name of its result.
pub(super) fn identity(w: &mut Writer<'_>, op: &OpData) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    w.node(op, "Identity", inputs, vec![]);
    Ok(())
}

pub(super) fn reshape(
    w: &mut Writer<'_>,
    op: &OpData,
    reshape: &Reshape,
) -> Result<(), ExportError> {
    let mut inputs = w.operands(op)?;
    let shape = numbers(w, op, &reshape.shape)?;
    inputs.push(w.ints(&shape)?);
    // Without it, a zero copies a dimension.
    let attributes = if shape.contains(&0) {
        vec![int("allowzero", 1)]
    } else {
        vec![]
    };
    w.node(op, "Reshape", inputs, attributes);
    Ok(())
}

pub(super) fn expand(w: &mut Writer<'_>, op: &OpData, expand: &Expand) -> Result<(), ExportError> {
    let mut inputs = w.operands(op)?;
    let shape = numbers(w, op, &expand.shape)?;
    inputs.push(w.ints(&shape)?);
    w.node(op, "Expand", inputs, vec![]);
    Ok(())
}

pub(super) fn transpose(
    w: &mut Writer<'_>,
    op: &OpData,
    transpose: &Transpose,
) -> Result<(), ExportError> {
    // An empty permutation reads as a missing one.
    if transpose.perm.is_empty() {
        return identity(w, op);
    }
    let inputs = w.operands(op)?;
    let perm = ints("perm", transpose.perm.iter().map(|axis| *axis as i64));
    w.node(op, "Transpose", inputs, vec![perm]);
    Ok(())
}

pub(super) fn slice(w: &mut Writer<'_>, op: &OpData, slice: &Slice) -> Result<(), ExportError> {
    if slice.axes.is_empty() {
        return identity(w, op);
    }
    let from = dims(w.graph.ty(op.operands[0]));
    let mut columns: [Vec<i64>; 4] = Default::default();
    for part in &slice.axes {
        let (start, len) = (number(w, op, &part.start)?, number(w, op, &part.len)?);
        let size = from.get(part.axis).copied().unwrap_or(0);
        let (start, end, step) = bounds(start, len, part.step, size);
        for (column, n) in columns.iter_mut().zip([start, end, part.axis as i64, step]) {
            column.push(n);
        }
    }
    let mut inputs = w.operands(op)?;
    for column in &columns {
        inputs.push(w.ints(column)?);
    }
    w.node(op, "Slice", inputs, vec![]);
    Ok(())
}

/// ONNX's start, end and step of `len` indices from `start`, which are inside of an axis of `size`.
fn bounds(start: i64, len: i64, step: i64, size: i64) -> (i64, i64, i64) {
    if len == 0 {
        return (0, 0, 1);
    }
    let last = start.saturating_add((len - 1).saturating_mul(step));
    if step > 0 {
        (start, last + 1, step)
    } else if last > 0 {
        (start, last - 1, step)
    } else {
        // -1 would count from the end.
        (start, -size - 1, step)
    }
}

pub(super) fn pad(w: &mut Writer<'_>, op: &OpData, pad: &Pad) -> Result<(), ExportError> {
    if pad.before.is_empty() {
        return identity(w, op);
    }
    let mut amounts = numbers(w, op, &pad.before)?;
    amounts.extend(numbers(w, op, &pad.after)?);
    let mut inputs = w.operands(op)?;
    inputs.push(w.ints(&amounts)?);
    if pad.value.0 != 0.0 {
        let dtype = w.graph.ty(op.operands[0]).dtype;
        inputs.push(w.scalar(dtype, pad.value.0)?);
    }
    w.node(op, "Pad", inputs, vec![]);
    Ok(())
}

pub(super) fn concat(w: &mut Writer<'_>, op: &OpData, concat: Concat) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    w.node(op, "Concat", inputs, vec![axis(concat.axis)]);
    Ok(())
}
