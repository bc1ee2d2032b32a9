//! Ops that read or write by index.

use super::proto::{axis, int, string};
use super::{ExportError, Writer};
use crate::dtype::to_onnx;
use crate::proto::AttributeProto;
use lorafa_ir::ops::{GatherNd, ScatterElements, ScatterNd};
use lorafa_ir::{DType, OpData};

pub(super) fn gather(
    w: &mut Writer<'_>,
    op: &OpData,
    along: usize,
    onnx: &str,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    w.node(op, onnx, inputs, vec![axis(along)]);
    Ok(())
}

/// The operands, with the index vectors as i64: the operators on them take no other.
fn with_wide_indices(w: &mut Writer<'_>, op: &OpData) -> Result<Vec<String>, ExportError> {
    let mut inputs = w.operands(op)?;
    let ty = w.graph.ty(op.operands[1]).with_dtype(DType::I64);
    if w.graph.ty(op.operands[1]).dtype != DType::I64 {
        let to = int("to", i64::from(to_onnx(DType::I64)));
        inputs[1] = w.helper("Cast", vec![inputs[1].clone()], vec![to], &ty);
    }
    Ok(inputs)
}

pub(super) fn gather_nd(
    w: &mut Writer<'_>,
    op: &OpData,
    gather: GatherNd,
) -> Result<(), ExportError> {
    let inputs = with_wide_indices(w, op)?;
    let attributes = match gather.batch_dims {
        0 => vec![],
        n => vec![int("batch_dims", n as i64)],
    };
    w.node(op, "GatherND", inputs, attributes);
    Ok(())
}

fn reduction(add: bool) -> Option<AttributeProto> {
    add.then(|| string("reduction", "add"))
}

pub(super) fn scatter_elements(
    w: &mut Writer<'_>,
    op: &OpData,
    scatter: ScatterElements,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let attributes = std::iter::once(axis(scatter.axis)).chain(reduction(scatter.add));
    w.node(op, "ScatterElements", inputs, attributes.collect());
    Ok(())
}

pub(super) fn scatter_nd(
    w: &mut Writer<'_>,
    op: &OpData,
    scatter: ScatterNd,
) -> Result<(), ExportError> {
    let inputs = with_wide_indices(w, op)?;
    let attributes = reduction(scatter.add).into_iter().collect();
    w.node(op, "ScatterND", inputs, attributes);
    Ok(())
}
