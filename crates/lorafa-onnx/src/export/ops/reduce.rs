//! Reductions, running sums and softmax.

use super::proto::{axis, int};
use super::shape::identity;
use super::{ExportError, Writer};
use lorafa_ir::OpData;
use lorafa_ir::ops::{CumSum, Reduce, ReduceKind, Softmax};

pub(super) fn reduce(w: &mut Writer<'_>, op: &OpData, reduce: &Reduce) -> Result<(), ExportError> {
    // No axes would read as all of them.
    if reduce.axes.is_empty() {
        return identity(w, op);
    }
    let onnx = match reduce.kind {
        ReduceKind::Sum => "ReduceSum",
        ReduceKind::Mean => "ReduceMean",
        ReduceKind::Max => "ReduceMax",
    };
    let axes: Vec<i64> = reduce.axes.iter().map(|axis| *axis as i64).collect();
    let mut inputs = w.operands(op)?;
    inputs.push(w.ints(&axes)?);
    let keep = int("keepdims", i64::from(reduce.keep_dims));
    w.node(op, onnx, inputs, vec![keep]);
    Ok(())
}

pub(super) fn cumsum(w: &mut Writer<'_>, op: &OpData, cumsum: CumSum) -> Result<(), ExportError> {
    let mut inputs = w.operands(op)?;
    inputs.push(w.int(cumsum.axis as i64)?);
    let flags = [("exclusive", cumsum.exclusive), ("reverse", cumsum.reverse)];
    let set = flags.iter().filter(|(_, on)| *on);
    let attributes = set.map(|(name, _)| int(name, 1)).collect();
    w.node(op, "CumSum", inputs, attributes);
    Ok(())
}

pub(super) fn softmax(
    w: &mut Writer<'_>,
    op: &OpData,
    softmax: Softmax,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let onnx = if softmax.log { "LogSoftmax" } else { "Softmax" };
    w.node(op, onnx, inputs, vec![axis(softmax.axis)]);
    Ok(())
}
